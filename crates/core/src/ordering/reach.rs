//! How far claims read their lanes.
//!
//! The lanes of a claim are read up to one place, and so as they fill: by equal numbers of rows, lanes of many keys would fall behind those of
//! few, until they are all that is left. And an index is read by the page, which holds hundreds of a lane's rows where a claim of
//! many lanes takes a few of each: a bound keeps it from looking at all of them, which halves its time.
//!
//! What brings them apart all the same, such as claims without a bound or claims that were full before they had come to all of their lanes, is made up
//! for by little and little: a claim of none but the lanes that are behind would be of few keys, and few keys are few messages in flight.
//!
//! How densely rows lie, a look at the first of them tells, by the places from where the lanes begin: where some lanes are
//! ahead of others, hardly any but the others' rows are there. Taken for rows of all lanes, they lay too thinly: claims were full
//! before they had come to all of their lanes, which fell behind for it, and looks saw fewer lanes still.

use super::lanes::{Lane, LaneStart};
use crate::Seq;

/// Below which place claims need to look to find enough in each lane, as long as rows lie as densely as they did. A hint: what
/// is above waits for a later claim, and nothing is lost or put out of order by one that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// How far, on average, a row of a lane is from the next.
    apart: u64,
    /// Of each lane where the last claim has stopped.
    at: [Seq; Lane::COUNT],
}

/// Rows that follow each other, the first of all lanes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstRows {
    /// The first.
    pub lowest: Seq,
    /// The last.
    pub highest: Seq,
    /// How many there are.
    pub rows: u32,
}

impl Reach {
    /// After a look at the first rows of lanes that began at `starts` before it.
    #[must_use]
    pub fn of_look(first: &FirstRows, starts: &[LaneStart]) -> Self {
        let &FirstRows {
            lowest, highest, ..
        } = first;
        let places = starts.iter().map(|start| {
            let from = start.from.map_or(lowest, |from| from.max(lowest));
            if from > highest {
                0
            } else {
                highest.0.abs_diff(from.0).saturating_add(1)
            }
        });
        let places = places.fold(0, u64::saturating_add);
        Self {
            apart: places.div_ceil(u64::from(first.rows).max(1)).max(1),
            at: [lowest; Lane::COUNT],
        }
    }

    /// The same, of lanes that were read before: each goes on where it was left.
    #[must_use]
    pub fn after(mut self, before: &Self) -> Self {
        for (at, left) in self.at.iter_mut().zip(before.at) {
            *at = left.max(*at);
        }
        self
    }

    /// Sets where a claim of so many `rows` of these lanes stops in each of them: as far, in all, as holds the rows. A lane that is behind
    /// others is read up to twice as far as on average, and one that is ahead down to half as far. Fewer than 8 rows count as 8.
    pub fn bound(&self, lanes: &mut [LaneStart], rows: u32) {
        let number = u64::try_from(lanes.len()).unwrap_or(u64::MAX).max(1);
        let room = self.apart.saturating_mul(u64::from(rows.max(LEAST_ROWS)));
        let average = i128::from(room.div_ceil(number));
        let at: Vec<i128> = lanes
            .iter()
            .map(|start| i128::from(self.at(start).0))
            .collect();
        let level = level(&at, average);
        for (start, at) in lanes.iter_mut().zip(at) {
            let until = at + share_up_to(level, at, average);
            start.until = Some(Seq(i64::try_from(until).unwrap_or(i64::MAX)));
        }
    }

    /// Where the lane goes on: where it begins, or where the last claim of it has stopped.
    fn at(&self, start: &LaneStart) -> Seq {
        let left = self.at.get(usize::from(start.lane.0)).copied();
        // A lane is one of those that there are.
        start.from.max(left).unwrap_or(Seq(i64::MAX))
    }

    /// A claim has read the lane up to there.
    pub fn read(&mut self, lane: Lane, until: Seq) {
        if let Some(at) = self.at.get_mut(usize::from(lane.0)) {
            *at = (*at).max(until);
        }
    }
}

/// A claim of fewer rows reads as far as one of so many. As far as holds one on average, there is none in every third case, and the claim
/// would come back with nothing.
const LEAST_ROWS: u32 = 8;

/// How much of a lane that goes on `at` there is to be read to bring it to this level. `average`: 1 at least.
fn share_up_to(level: i128, at: i128, average: i128) -> i128 {
    (level - at).clamp((average / 2).max(1), average * 2)
}

/// The lowest level at which the shares of all lanes make up what they are to be read on average.
fn level(at: &[i128], average: i128) -> i128 {
    let lowest = at.iter().copied().min().unwrap_or_default();
    let highest = at.iter().copied().max().unwrap_or_default();
    let wanted = at.iter().map(|_| average).sum::<i128>();
    let (mut below, mut enough) = (lowest, highest + average * 2);
    while below < enough {
        let level = below + (enough - below) / 2;
        let shares = at.iter().map(|at| share_up_to(level, *at, average));
        if shares.sum::<i128>() < wanted {
            below = level + 1;
        } else {
            enough = level;
        }
    }
    enough
}

#[cfg(test)]
mod tests;
