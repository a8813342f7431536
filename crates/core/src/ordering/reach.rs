//! How far claims read their lanes.
//!
//! All lanes are read equally far, and so as they fill: by equal numbers of rows, lanes of many keys would fall behind those of
//! few, until they are all that is left. And an index is read by the page, which holds hundreds of a lane's rows where a claim of
//! many lanes takes a few of each: a bound keeps it from looking at all of them, which halves its time.

use super::lanes::{LANES, Lane};
use crate::Seq;

/// Below which place claims need to look to find enough in each lane, as long as rows lie as densely as they did. A hint: what
/// is above waits for a later claim, and nothing is lost or put out of order by one that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// How far, on average, a row of a lane is from the next.
    apart: u64,
    /// Of each lane where the last claim has stopped.
    at: [Seq; LANES],
}

impl Reach {
    /// After a look at so many `rows` of all lanes that follow each other, from the lowest to the highest.
    #[must_use]
    pub fn of_look(lowest: Seq, highest: Seq, rows: u32) -> Self {
        let lanes = u64::try_from(LANES).unwrap_or(u64::MAX);
        let places = highest.0.abs_diff(lowest.0).saturating_add(1);
        Self {
            apart: places
                .saturating_mul(lanes)
                .div_ceil(u64::from(rows).max(1)),
            at: [lowest; LANES],
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

    /// Where a claim stops that is to find so many `rows` of this lane on average.
    #[must_use]
    pub fn until(&self, lane: Lane, rows: u32) -> Option<Seq> {
        let at = self.at.get(usize::from(lane.0))?;
        let room = self.apart.saturating_mul(u64::from(rows));
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
mod tests {
    use super::*;

    #[test]
    fn each_lane_is_read_as_far_beyond_where_it_was_left_as_its_rows_lie_apart() {
        // Two places for each row, 512 from one of a lane to the next.
        let look = || Reach::of_look(Seq(1_001), Seq(3_000), 1_000);
        let mut reach = look();
        assert_eq!(reach.until(Lane(3), 1), Some(Seq(1_001 + 512)));
        assert_eq!(reach.until(Lane(3), 7), Some(Seq(1_001 + 7 * 512)));
        reach.read(Lane(3), Seq(9_000));
        reach.read(Lane(3), Seq(8_000));
        assert_eq!(reach.until(Lane(3), 1), Some(Seq(9_000 + 512)));
        assert_eq!(reach.until(Lane(255), 1), Some(Seq(1_001 + 512)));
        let next = Reach::of_look(Seq(5_001), Seq(6_000), 1_000).after(&reach);
        assert_eq!(next.until(Lane(3), 1), Some(Seq(9_000 + 256)));
        assert_eq!(next.until(Lane(255), 1), Some(Seq(5_001 + 256)));
    }

    #[test]
    fn places_at_the_ends_of_the_range_are_no_limits() {
        let reach = Reach::of_look(Seq(i64::MIN), Seq(i64::MAX), 1);
        assert_eq!(reach.until(Lane(0), u32::MAX), Some(Seq(i64::MAX)));
        let reach = Reach::of_look(Seq(i64::MAX), Seq(i64::MAX), 0);
        assert_eq!(reach.until(Lane(0), 1), Some(Seq(i64::MAX)));
    }
}
