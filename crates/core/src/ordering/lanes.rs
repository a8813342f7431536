//! Lanes: what a claim locks, so that no two relays have messages of one key in their hands.

use crate::Seq;

/// The number of lanes; fixed for ever, since lanes are computed by the database and by every relay alike.
pub(super) const LANES: usize = 256;

/// A lane: keys of one hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(pub u8);

/// A lane, and from where on its rows are read; `None` is the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneStart {
    /// The lane.
    pub lane: Lane,
    /// No row of it is below, and none can appear there.
    pub from: Option<Seq>,
    /// Rows from here on are left to a later claim, if given: see [`Reach`](crate::Reach).
    pub until: Option<Seq>,
}

/// What a relay knows of the lanes: whose turn it is, and where each begins.
///
/// A lane's beginning is what was seen under its lock: below it there was no row, and below the horizon that was known before the snapshot
/// was taken none can appear ([`Floor::horizon`](crate::Floor::horizon)). Nothing but that horizon may be taken for
/// it: order rests on it, so what claims without keys use, a frontier that passes open writers, will not do. Forgotten whenever the floor
/// is: [`Lanes::reset`].
#[derive(Debug, Clone)]
pub struct Lanes {
    from: [Option<Seq>; LANES],
    /// The lane after the last that was chosen.
    turn: u8,
    /// What was seen in an earlier one does not count.
    generation: u64,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            from: [None; LANES],
            turn: 0,
            generation: 0,
        }
    }
}

impl Lanes {
    /// Every lane with its beginning.
    #[must_use]
    pub fn starts(&self, floor: Option<Seq>) -> Vec<LaneStart> {
        let start = |lane| LaneStart {
            lane,
            from: self.from(lane).max(floor),
            until: None,
        };
        (0..=u8::MAX).map(Lane).map(start).collect()
    }

    /// Chooses up to `most` of the lanes that have work, each once, beginning after the one that was chosen last: so each has its turn
    /// before any has it twice.
    pub fn choose(
        &mut self,
        with_work: &[Lane],
        most: usize,
        floor: Option<Seq>,
    ) -> Vec<LaneStart> {
        let mut lanes = with_work.to_vec();
        lanes.sort_unstable_by_key(|lane| lane.0.wrapping_sub(self.turn));
        lanes.dedup();
        lanes.truncate(most.max(1));
        if let Some(last) = lanes.last() {
            self.turn = last.0.wrapping_add(1);
        }
        lanes
            .into_iter()
            .map(|lane| LaneStart {
                lane,
                from: self.from(lane).max(floor),
                until: None,
            })
            .collect()
    }

    /// What [`Lanes::seen`] is told with.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// A claim under the lane's lock, with a snapshot taken after `horizon` was known, read the lane up to its limit: `first` is
    /// the first row that its settle leaves there, `None` when it leaves none. `generation`: as it was when the claim began.
    pub fn seen(&mut self, lane: Lane, first: Option<Seq>, horizon: Option<Seq>, generation: u64) {
        let Some(horizon) = horizon.filter(|_| generation == self.generation) else {
            return;
        };
        if let Some(from) = self.from.get_mut(usize::from(lane.0)) {
            let empty_below = first.map_or(horizon, |first| first.min(horizon));
            *from = (*from).max(Some(empty_below));
        }
    }

    /// Forgets all beginnings: the session of the looks was lost, the sequence fell, or a row was found where none should be.
    pub fn reset(&mut self) {
        self.from = [None; LANES];
        self.generation = self.generation.wrapping_add(1);
    }

    fn from(&self, lane: Lane) -> Option<Seq> {
        self.from.get(usize::from(lane.0)).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(chosen: &[LaneStart]) -> Vec<u8> {
        chosen.iter().map(|start| start.lane.0).collect()
    }

    #[test]
    fn each_lane_with_work_has_its_turn_before_any_has_it_twice() {
        let mut lanes = Lanes::default();
        let work = [Lane(200), Lane(3), Lane(3), Lane(90)];
        assert_eq!(names(&lanes.choose(&work, 2, None)), [3, 90]);
        assert_eq!(names(&lanes.choose(&work, 2, None)), [200, 3]);
        assert_eq!(names(&lanes.choose(&work, 2, None)), [90, 200]);
        assert_eq!(lanes.choose(&[], 2, None), []);
    }

    #[test]
    fn a_lane_begins_at_its_first_row_and_never_above_the_horizon() {
        let mut lanes = Lanes::default();
        let from = |lanes: &mut Lanes| {
            lanes
                .choose(&[Lane(7)], 1, Some(Seq(5)))
                .first()
                .and_then(|l| l.from)
        };
        assert_eq!(from(&mut lanes), Some(Seq(5)));
        lanes.seen(Lane(7), Some(Seq(90)), Some(Seq(40)), 0);
        assert_eq!(from(&mut lanes), Some(Seq(40)));
        lanes.seen(Lane(7), Some(Seq(90)), Some(Seq(100)), 0);
        assert_eq!(from(&mut lanes), Some(Seq(90)));
        lanes.seen(Lane(7), None, Some(Seq(120)), 0);
        assert_eq!(from(&mut lanes), Some(Seq(120)));
        lanes.seen(Lane(7), None, None, 0);
        assert_eq!(from(&mut lanes), Some(Seq(120)));
    }

    #[test]
    fn what_was_seen_before_a_reset_counts_for_nothing() {
        let mut lanes = Lanes::default();
        let before = lanes.generation();
        lanes.reset();
        lanes.seen(Lane(7), None, Some(Seq(40)), before);
        assert_eq!(names(&lanes.choose(&[Lane(7)], 1, None)), [7]);
        assert_eq!(
            lanes
                .choose(&[Lane(7)], 1, None)
                .first()
                .and_then(|l| l.from),
            None
        );
    }
}
