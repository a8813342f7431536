//! What a claim has read of its lanes.

use postrider_core::{Lane, LaneStart, Seq};

use super::is_full;
use crate::row::ReadRow;

/// What a claim read of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadLane {
    /// The lane.
    pub lane: Lane,
    /// The rows, ascending.
    pub seqs: Vec<Seq>,
    /// The first place that was not looked at; `None` if it was read to its end.
    pub until: Option<Seq>,
}

/// What a claim has read of its lanes: of each `of_each` rows at most, and `most` of all of them, with which it stopped.
pub(super) fn read_lanes(
    starts: &[LaneStart],
    end: Option<Seq>,
    rows: &[ReadRow],
    of_each: u32,
    most: u32,
) -> Vec<ReadLane> {
    let mut of_lane = vec![Vec::new(); Lane::COUNT];
    for read in rows {
        if let Some(seqs) = of_lane.get_mut(usize::from(read.lane.0)) {
            seqs.push(read.seq);
        }
    }
    let has_rows = |start: &LaneStart| {
        let seqs = of_lane.get(usize::from(start.lane.0));
        seqs.is_some_and(|seqs| !seqs.is_empty())
    };
    let stopped = is_full(rows.len(), most).then(|| starts.iter().rposition(has_rows));
    // None of those behind was looked at.
    let starts = match stopped.flatten() {
        Some(last) => starts.get(..=last).unwrap_or(starts),
        None => starts,
    };
    let last = starts
        .last()
        .filter(|_| stopped.is_some())
        .map(|start| start.lane);
    let read = starts.iter().map(|start| {
        let seqs = of_lane.get_mut(usize::from(start.lane.0));
        let seqs: Vec<Seq> = seqs.map(std::mem::take).unwrap_or_default();
        let stopped = is_full(seqs.len(), of_each) || last == Some(start.lane);
        ReadLane {
            lane: start.lane,
            until: match seqs.last().filter(|_| stopped) {
                Some(last) => Some(Seq(last.0.saturating_add(1))),
                None => sooner(start.until, end),
            },
            seqs,
        }
    });
    read.collect()
}

/// The lower of those that are given.
pub(super) fn sooner(one: Option<Seq>, other: Option<Seq>) -> Option<Seq> {
    one.into_iter().chain(other).min()
}
