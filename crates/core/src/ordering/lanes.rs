//! Lanes: what a claim locks, so that no two relays have messages of one key in their hands.

use std::sync::Arc;

use super::passed::{Passable, PassedWriter};
use crate::Seq;

/// A lane: keys of one hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(pub u8);

impl Lane {
    /// The number of lanes; fixed for ever, since lanes are computed by the database and by every relay alike.
    pub const COUNT: usize = 256;
}

/// A lane, and from where on its rows are read; `None` is the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneStart {
    /// The lane.
    pub lane: Lane,
    /// No row of it is below, and none can appear there but those of the writers that were passed.
    pub from: Option<Seq>,
    /// Rows from here on are left to a later claim, if given: see [`Reach`](crate::Reach).
    pub until: Option<Seq>,
}

/// Lanes to be read, each from its beginning, or from where a writer that was passed may have written, if the snapshot shows that it has ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LaneStarts {
    /// The lanes, each once.
    pub lanes: Vec<LaneStart>,
    /// The writers that any of the beginnings has passed.
    pub passed: Vec<PassedWriter>,
}

/// What a relay knows of the lanes: whose turn it is, and where each begins.
///
/// A lane's beginning is what a snapshot has shown: below it there was no row, and none can appear by what was known of the writers
/// before the snapshot was taken ([`Passable`]), but for those that are named beside it. Claims show it, and looks without the lanes' locks: a row that
/// somebody else is about to delete is shown, and one that was deleted never comes back. Order rests on it, so what claims without keys use, a
/// frontier that passes open writers and falls back when a look shows that they have ended, will not do: the claim itself has to see
/// it. Forgotten whenever the floor is: [`Lanes::reset`].
#[derive(Debug, Clone)]
pub struct Lanes {
    beginnings: [Option<Beginning>; Lane::COUNT],
    /// The lane after the last that was chosen.
    turn: u8,
    /// What was seen in an earlier one does not count.
    generation: u64,
}

/// Where a lane begins. It stays true for as long as the writers are asked for, whatever ends or begins.
#[derive(Debug, Clone)]
struct Beginning {
    at: Seq,
    passed: Arc<[PassedWriter]>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            beginnings: std::array::from_fn(|_| None),
            turn: 0,
            generation: 0,
        }
    }
}

impl Lanes {
    /// Every lane with its beginning.
    #[must_use]
    pub fn starts(&self, floor: Option<Seq>) -> LaneStarts {
        self.starts_of((0..=u8::MAX).map(Lane), floor)
    }

    /// Chooses up to `most` of the lanes that have work, each once, beginning after the one that was chosen last: so each has its turn
    /// before any has it twice.
    pub fn choose(&mut self, with_work: &[Lane], most: usize, floor: Option<Seq>) -> LaneStarts {
        let mut lanes = with_work.to_vec();
        lanes.sort_unstable_by_key(|lane| lane.0.wrapping_sub(self.turn));
        lanes.dedup();
        lanes.truncate(most.max(1));
        if let Some(last) = lanes.last() {
            self.turn = last.0.wrapping_add(1);
        }
        self.starts_of(lanes, floor)
    }

    /// A claim was full before it came to this lane: it is the first that is chosen next. Otherwise the same lanes would be left each time.
    pub fn go_on_at(&mut self, lane: Lane) {
        self.turn = lane.0;
    }

    /// What [`Lanes::seen`] is told with.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// A claim or a look, from the lane's beginning on and with a snapshot taken after `known` was, read the lane up to its limit:
    /// `first` is the first row that it, or the claim's settle, leaves there, `None` when it leaves none. `generation`: as it was when it began.
    ///
    /// It may be lower than before: a writer that was passed has left a row there, or another one bounds it.
    pub fn seen(&mut self, lane: Lane, first: Option<Seq>, known: &Passable, generation: u64) {
        let Some(below) = known.below.filter(|_| generation == self.generation) else {
            return;
        };
        if let Some(beginning) = self.beginnings.get_mut(usize::from(lane.0)) {
            *beginning = Some(Beginning {
                at: first.map_or(below, |first| first.min(below)),
                passed: Arc::clone(&known.passed),
            });
        }
    }

    /// Forgets all beginnings: the session of the looks was lost, the sequence fell, or a row was found where none should be.
    pub fn reset(&mut self) {
        self.beginnings.fill(None);
        self.generation = self.generation.wrapping_add(1);
    }

    fn starts_of(&self, lanes: impl IntoIterator<Item = Lane>, floor: Option<Seq>) -> LaneStarts {
        let mut starts = LaneStarts::default();
        let mut last: Option<&Arc<[PassedWriter]>> = None;
        for lane in lanes {
            let beginning = self.beginnings.get(usize::from(lane.0));
            let beginning = beginning.and_then(Option::as_ref);
            starts.lanes.push(LaneStart {
                lane,
                from: beginning.map(|beginning| beginning.at).max(floor),
                until: None,
            });
            // Lanes that were read together share them.
            if let Some(Beginning { passed, .. }) = beginning
                && last.is_none_or(|last| !Arc::ptr_eq(last, passed))
            {
                starts.passed.extend_from_slice(passed);
                last = Some(passed);
            }
        }
        // A lane that nothing came for keeps what it has passed: below the floor it is over, as are its rows. And one that began at or above all
        // beginnings brings none of them down.
        let highest = starts.lanes.iter().map(|start| start.from).max().flatten();
        for passed in &mut starts.passed {
            passed.since = passed.since.max(floor);
        }
        starts.passed.retain(|passed| passed.since < highest);
        starts.passed.sort_unstable();
        starts.passed.dedup();
        starts
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::{Floor, TransactionId, Writer};

    const LANE: Lane = Lane(7);
    const LONG: Writer = Writer::new(1, 1);

    fn names(chosen: &LaneStarts) -> Vec<u8> {
        chosen.lanes.iter().map(|start| start.lane.0).collect()
    }

    fn start(lanes: &mut Lanes) -> (Option<i64>, Vec<PassedWriter>) {
        let chosen = lanes.choose(&[LANE], 1, Some(Seq(5)));
        let from = chosen.lanes.first().and_then(|start| start.from);
        (from.map(|from| from.0), chosen.passed)
    }

    /// After these looks.
    fn known(looks: &[(i64, &[Writer])], ids: &[(Writer, i64)]) -> Passable {
        let mut floor = Floor::new();
        for (next, writers) in looks {
            floor.looked(Seq(*next), writers.iter().copied(), true);
        }
        let ids: HashMap<_, _> = ids
            .iter()
            .map(|(writer, id)| (*writer, TransactionId(*id)))
            .collect();
        Passable::new(&floor, &ids)
    }

    #[test]
    fn each_lane_with_work_has_its_turn_before_any_has_it_twice() {
        let mut lanes = Lanes::default();
        let work = [Lane(200), Lane(3), Lane(3), Lane(90)];
        assert_eq!(names(&lanes.choose(&work, 2, None)), [3, 90]);
        assert_eq!(names(&lanes.choose(&work, 2, None)), [200, 3]);
        assert_eq!(names(&lanes.choose(&work, 2, None)), [90, 200]);
        assert_eq!(names(&lanes.choose(&[], 2, None)), [] as [u8; 0]);
    }

    #[test]
    fn lanes_that_a_claim_did_not_come_to_are_the_first_of_the_next() {
        let mut lanes = Lanes::default();
        let work: Vec<Lane> = (0..=u8::MAX).map(Lane).collect();
        assert_eq!(names(&lanes.choose(&work, 3, None)), [0, 1, 2]);
        lanes.go_on_at(Lane(1));
        assert_eq!(names(&lanes.choose(&work, 3, None)), [1, 2, 3]);
    }

    #[test]
    fn a_lane_begins_at_its_first_row_and_never_above_what_was_given_before_the_claim() {
        let mut lanes = Lanes::default();
        assert_eq!(start(&mut lanes).0, Some(5));
        lanes.seen(LANE, Some(Seq(90)), &known(&[(40, &[])], &[]), 0);
        assert_eq!(start(&mut lanes).0, Some(40));
        lanes.seen(LANE, Some(Seq(90)), &known(&[(100, &[])], &[]), 0);
        assert_eq!(start(&mut lanes).0, Some(90));
        lanes.seen(LANE, None, &known(&[(120, &[])], &[]), 0);
        assert_eq!(start(&mut lanes).0, Some(120));
        lanes.seen(LANE, None, &known(&[], &[]), 0);
        assert_eq!(start(&mut lanes).0, Some(120));
    }

    #[test]
    fn a_writer_that_two_looks_have_shown_is_passed_and_named_and_a_newer_one_is_not() {
        let looks: &[(i64, &[Writer])] = &[(20, &[]), (30, &[LONG]), (40, &[LONG])];
        let mut lanes = Lanes::default();
        lanes.seen(LANE, None, &known(&looks[..2], &[(LONG, 900)]), 0);
        assert_eq!(start(&mut lanes), (Some(20), Vec::new()));
        lanes.seen(LANE, None, &known(looks, &[(LONG, 900)]), 0);
        let passed = PassedWriter {
            transaction: TransactionId(900),
            since: Some(Seq(20)),
        };
        assert_eq!(start(&mut lanes), (Some(40), vec![passed]));
        // It is asked for until the lane was read again, and where its id is not known it bounds the lane.
        let again = lanes.starts(None);
        assert_eq!((again.lanes.len(), again.passed), (256, vec![passed]));
        lanes.seen(LANE, None, &known(looks, &[]), 0);
        assert_eq!(start(&mut lanes), (Some(20), Vec::new()));
    }

    #[test]
    fn what_a_writer_that_was_passed_has_left_brings_the_lane_down_to_it() {
        let mut lanes = Lanes::default();
        lanes.seen(LANE, None, &known(&[(100, &[])], &[]), 0);
        lanes.seen(LANE, Some(Seq(22)), &known(&[(100, &[])], &[]), 0);
        assert_eq!(start(&mut lanes).0, Some(22));
    }

    /// Hazard: a lane that nothing had come for in an hour brought all that were claimed with it down to where a transaction of then had
    /// begun.
    #[test]
    fn of_a_writer_that_was_passed_nothing_below_the_floor_is_asked_for() {
        let looks: &[(i64, &[Writer])] = &[(20, &[]), (30, &[LONG]), (40, &[LONG])];
        let mut lanes = Lanes::default();
        lanes.seen(LANE, None, &known(looks, &[(LONG, 900)]), 0);
        let since = |floor: i64| {
            let starts = lanes.starts(Some(Seq(floor)));
            starts.passed.first().map(|passed| passed.since)
        };
        assert_eq!(since(20), Some(Some(Seq(20))));
        assert_eq!(since(39), Some(Some(Seq(39))));
        assert_eq!(since(40), None);
        assert_eq!(since(1_000), None);
    }

    #[test]
    fn what_was_seen_before_a_reset_counts_for_nothing() {
        let mut lanes = Lanes::default();
        let before = lanes.generation();
        lanes.reset();
        lanes.seen(LANE, None, &known(&[(40, &[])], &[]), before);
        assert_eq!(names(&lanes.choose(&[LANE], 1, None)), [7]);
        assert_eq!(start(&mut lanes).0, Some(5));
    }
}
