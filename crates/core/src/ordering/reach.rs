//! How far claims read their lanes.
//!
//! All lanes are read equally far, and so as they fill: by equal numbers of rows, lanes of many keys would fall behind those of
//! few, until they are all that is left. And an index is read by the page, which holds hundreds of a lane's rows where a claim of
//! many lanes takes a few of each: a bound keeps it from looking at all of them, which halves its time.
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

    /// Where a claim of so many `rows` of so many lanes stops in the one that begins there.
    #[must_use]
    pub fn until(&self, start: &LaneStart, rows: u32, lanes: usize) -> Option<Seq> {
        let at = *self.at.get(usize::from(start.lane.0))?;
        let at = start.from.map_or(at, |from| from.max(at));
        let lanes = u64::try_from(lanes).unwrap_or(u64::MAX).max(1);
        let room = self.apart.saturating_mul(u64::from(rows)).div_ceil(lanes);
        Some(Seq(at.0.saturating_add_unsigned(room)))
    }

    /// A claim has read the lane up to there.
    pub fn read(&mut self, lane: Lane, until: Seq) {
        if let Some(at) = self.at.get_mut(usize::from(lane.0)) {
            *at = (*at).max(until);
        }
    }
}

#[cfg(test)]
mod tests;
