//! Lanes as the parameters of a statement.

use postrider_core::{LaneStart, LaneStarts, Seq};

use super::read::sooner;
use crate::watch;

/// Lanes, with the writers that their beginnings have passed.
pub(super) struct LanesOnTheWire {
    pub(super) lanes: Vec<i32>,
    /// Where each begins.
    pub(super) from: Vec<i64>,
    /// Where each ends.
    pub(super) until: Vec<i64>,
    /// The ids of the writers that were passed.
    pub(super) passed: Vec<i64>,
    /// At or above which each of them may have written.
    pub(super) since: Vec<i64>,
}

impl LanesOnTheWire {
    /// They end below `end` in any case, if given.
    pub(super) fn new(starts: &LaneStarts, end: Option<Seq>) -> Self {
        let LaneStarts { lanes, passed } = starts;
        let until = |start: &LaneStart| sooner(start.until, end).map_or(i64::MAX, |until| until.0);
        Self {
            lanes: lanes.iter().map(|start| i32::from(start.lane.0)).collect(),
            from: lanes.iter().map(|start| watch::bound(start.from)).collect(),
            until: lanes.iter().map(until).collect(),
            passed: passed.iter().map(|passed| passed.transaction.0).collect(),
            since: passed
                .iter()
                .map(|passed| watch::bound(passed.since))
                .collect(),
        }
    }
}
