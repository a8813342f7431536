//! What plan, turns, settling and lanes promise, said simply, against whatever they may be given.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use uuid::Uuid;

use super::*;
use crate::{
    Floor, Headers, Message, Ordered, Origin, Payload, Properties, Seq, TransactionId, Writer,
};

const KEYS: [&str; 3] = ["a", "b", "c"];

/// A row of a claim; its `seq` is its position.
#[derive(Debug, Clone, Copy)]
struct Row {
    key: usize,
    held: bool,
    supersede: bool,
    other_route: bool,
    tried: bool,
    too_large: bool,
    one_by_one: bool,
}

impl Row {
    fn may_be_superseded(&self) -> bool {
        self.supersede && !self.tried && !self.too_large && !self.one_by_one
    }
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let rarely = || prop::bool::weighted(0.1);
    let row = (
        0..KEYS.len(),
        rarely(),
        prop::bool::weighted(0.7),
        prop::bool::weighted(0.2),
        rarely(),
        rarely(),
        rarely(),
    );
    let row = row.prop_map(
        |(key, held, supersede, other_route, tried, too_large, one_by_one)| Row {
            key,
            held,
            supersede,
            other_route,
            tried,
            too_large,
            one_by_one,
        },
    );
    prop::collection::vec(row, 0..25)
}

fn message(seq: usize, row: &Row) -> Message {
    Message {
        seq: Seq(seq as i64),
        id: Uuid::nil(),
        exchange: "shop".to_owned(),
        routing_key: if row.other_route { "invoice" } else { "order" }.to_owned(),
        payload: match row.too_large {
            true => Payload::TooLarge { bytes: 1 << 30 },
            false => Payload::Fetched(Vec::new()),
        },
        headers: Headers::default(),
        properties: Properties::default(),
        created_at_unix: 0,
        age_at_claim: Duration::ZERO,
        attempts: u32::from(row.tried),
        origin: Origin::Messages,
        ordered: Some(Ordered {
            key: KEYS[row.key].to_owned(),
            supersede: row.supersede,
        }),
    }
}

fn plan(rows: &[Row], blocked: [bool; KEYS.len()]) -> OrderedPlan {
    let ordered = rows.iter().enumerate().map(|(seq, row)| {
        let key = KEYS[row.key].to_owned();
        match (row.held, blocked[row.key]) {
            (true, _) => OrderedRow::Held { key },
            (false, true) => OrderedRow::Blocked {
                seq: Seq(seq as i64),
                key,
                bytes: 1,
            },
            (false, false) => OrderedRow::Free(message(seq, row)),
        }
    });
    let one_by_one = rows.iter().enumerate().filter(|(_, row)| row.one_by_one);
    let one_by_one: HashSet<Seq> = one_by_one.map(|(seq, _)| Seq(seq as i64)).collect();
    OrderedPlan::new(ordered.collect(), &one_by_one)
}

/// Of one key what may be taken: all up to the first that is held.
fn prefix(rows: &[Row], key: usize) -> Vec<Seq> {
    let of_key = rows.iter().enumerate().filter(|(_, row)| row.key == key);
    of_key
        .take_while(|(_, row)| !row.held)
        .map(|(seq, _)| Seq(seq as i64))
        .collect()
}

fn row(rows: &[Row], seq: Seq) -> &Row {
    &rows[seq.0 as usize]
}

proptest! {
    #[test]
    fn of_each_key_all_up_to_the_first_held_is_taken_once_and_in_order(
        rows in rows(), blocked in any::<[bool; 3]>()
    ) {
        let plan = plan(&rows, blocked);
        for (key, is_blocked) in blocked.into_iter().enumerate() {
            let of_key = |seq: &Seq| row(&rows, *seq).key == key;
            let park: Vec<Seq> = plan.park.iter().copied().filter(of_key).collect();
            // Each message with those that it stands for before it.
            let sent = plan.send.iter().flat_map(|message| {
                let gone = plan.superseded.get(&message.seq).into_iter().flatten();
                gone.copied().chain([message.seq])
            });
            let sent: Vec<Seq> = sent.filter(of_key).collect();
            let (taken, not) = if is_blocked { (park, sent) } else { (sent, park) };
            prop_assert_eq!(taken, prefix(&rows, key));
            prop_assert_eq!(not, []);
        }
        prop_assert_eq!(plan.held, rows.iter().any(|row| row.held));
        prop_assert_eq!(plan.is_empty(), KEYS.iter().enumerate().all(|(key, _)| prefix(&rows, key).is_empty()));
        let sent: BTreeSet<Seq> = plan.send.iter().map(|message| message.seq).collect();
        prop_assert!(plan.superseded.keys().all(|newest| sent.contains(newest)));
    }

    #[test]
    fn a_message_stands_for_those_just_before_it_that_are_marked_and_go_its_way_and_for_all_of_them(
        rows in rows(), blocked in any::<[bool; 3]>()
    ) {
        let plan = plan(&rows, blocked);
        for (key, _) in blocked.iter().enumerate().filter(|(_, blocked)| !**blocked) {
            for pair in prefix(&rows, key).windows(2) {
                let (older, newer) = (row(&rows, pair[0]), row(&rows, pair[1]));
                let superseded = !plan.send.iter().any(|message| message.seq == pair[0]);
                prop_assert_eq!(
                    superseded,
                    older.may_be_superseded()
                        && newer.may_be_superseded()
                        && older.other_route == newer.other_route
                );
            }
        }
    }

    #[test]
    fn so_many_of_a_key_are_sent_at_a_time_until_one_stops_and_each_has_one_outcome(
        keys in prop::collection::vec(prop::option::of(0..KEYS.len()), 0..25),
        in_flight_per_key in 0u32..4,
        choices in prop::collection::vec((any::<Index>(), prop::bool::weighted(0.8), any::<bool>()), 200),
    ) {
        let names = keys.iter().map(|key| key.map(|key| KEYS[key]));
        let mut turns = Turns::of_keys(names, in_flight_per_key);
        prop_assert_eq!(turns.is_ordered(), keys.iter().any(Option::is_some));
        let mut in_flight = BTreeSet::new();
        // Of each position, whether it was delivered.
        let mut outcomes: BTreeMap<usize, bool> = BTreeMap::new();
        let mut stopped = BTreeSet::new();
        for (which, delivered, send) in choices {
            let up: Vec<usize> = (0..keys.len())
                .filter(|at| turns.is_up(*at) && !in_flight.contains(at) && !outcomes.contains_key(at))
                .collect();
            // A publisher sends those of one key in their order.
            let next: Vec<usize> = up
                .iter()
                .copied()
                .filter(|at| keys[*at].is_none() || !up.iter().any(|other| other < at && keys[*other] == keys[*at]))
                .collect();
            if !next.is_empty() && (send || in_flight.is_empty()) {
                let position = *which.get(&next);
                prop_assert!(keys[position].is_none() || !stopped.contains(&keys[position]));
                in_flight.insert(position);
                let of_key = in_flight.iter().filter(|at| keys[**at] == keys[position]).count();
                prop_assert!(keys[position].is_none() || of_key <= in_flight_per_key.max(1) as usize);
            } else if !in_flight.is_empty() {
                let sent: Vec<usize> = in_flight.iter().copied().collect();
                let position = *which.get(&sent);
                in_flight.remove(&position);
                prop_assert_eq!(outcomes.insert(position, delivered), None);
                if delivered {
                    turns.delivered(position);
                    continue;
                }
                stopped.insert(keys[position]);
                for held_back in turns.stopped(position) {
                    prop_assert_eq!(keys[held_back], keys[position]);
                    if !in_flight.contains(&held_back) {
                        prop_assert_eq!(outcomes.insert(held_back, false), None);
                    }
                }
            }
        }
        prop_assert_eq!(outcomes.len(), keys.len());
        for key in 0..KEYS.len() {
            let of_key = outcomes.iter().filter(|(at, _)| keys[**at] == Some(key));
            let delivered: Vec<bool> = of_key.map(|(_, delivered)| *delivered).collect();
            prop_assert!(in_flight_per_key > 1 || delivered.is_sorted_by(|a, b| a >= b));
        }
    }

    #[test]
    fn of_each_key_only_the_first_that_was_not_delivered_may_move(
        batch in prop::collection::vec((0..KEYS.len(), 0..3u8), 0..25)
    ) {
        let mut settling = Settling::default();
        let mut undelivered = HashSet::new();
        for (key, fate) in batch {
            let fate = [Fate::Delivered, Fate::Moves, Fate::Stays][usize::from(fate)];
            let settled = settling.settle_of_key(KEYS[key], fate);
            let expected = match fate {
                Fate::Delivered => Fate::Delivered,
                other if undelivered.insert(key) => other,
                _ => Fate::Stays,
            };
            prop_assert_eq!(settled, expected);
        }
    }

    #[test]
    fn a_lane_that_has_work_is_chosen_before_another_is_chosen_twice(
        lane in any::<u8>(),
        rounds in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), 1usize..12), 1..60),
    ) {
        let mut lanes = Lanes::default();
        let mut since = HashSet::new();
        for (others, most) in rounds {
            let work: Vec<Lane> = others.into_iter().chain([lane]).map(Lane).collect();
            let chosen = lanes.choose(&work, most, None);
            let distinct: HashSet<&Lane> = work.iter().collect();
            prop_assert_eq!(chosen.lanes.len(), most.min(distinct.len()));
            for start in chosen.lanes {
                prop_assert!(work.contains(&start.lane));
                if start.lane == Lane(lane) {
                    since.clear();
                } else {
                    prop_assert!(since.insert(start.lane.0), "lane {} twice", start.lane.0);
                }
            }
        }
    }

    #[test]
    fn a_claim_of_a_lane_reads_every_row_that_its_snapshot_shows_whatever_writers_do(
        steps in prop::collection::vec((0..16u8, any::<Index>(), 0..2usize), 1..200)
    ) {
        let mut outbox = Outbox::default();
        for (step, which, lane) in steps {
            match step {
                0 => outbox.begin(),
                1 | 2 => outbox.insert(which, lane),
                3 => outbox.end(which, which.index(4) > 0),
                4 | 5 => outbox.look(which.index(4) > 0),
                6 | 7 => outbox.choose(lane),
                8 | 9 => outbox.read(lane, 1 + which.index(3))?,
                12 => outbox.look_at_lanes(),
                13 => outbox.see_first_rows()?,
                14 => outbox.take_in_first_rows(),
                15 => outbox.raise_floor(),
                // The server is killed and started: it draws once more what was not committed.
                10 if which.index(10) == 0 => outbox.restart(),
                _ => outbox.settle(lane, which.index(3) == 0),
            }
        }
        for lane in 0..2 {
            outbox.settle(lane, false);
            outbox.choose(lane);
            outbox.read(lane, usize::MAX)?;
        }
    }
}

/// An outbox with two lanes, and a relay that runs the real code on it.
#[derive(Default)]
struct Outbox {
    rows: BTreeMap<Seq, Written>,
    next: i64,
    begun: u32,
    /// The numbers of open transactions, and whether each has written a row, and so has an id.
    open: BTreeMap<u32, bool>,
    floor: Floor<Seq>,
    ids: HashMap<Writer, TransactionId>,
    lanes: Lanes,
    claims: [Option<Claim>; 2],
    lane_look: Option<LaneLook>,
}

/// A look at the first row of each lane, without their locks.
struct LaneLook {
    starts: LaneStarts,
    known: Passable,
    generation: u64,
    firsts: Option<Vec<(Lane, Option<Seq>)>>,
}

struct Written {
    lane: usize,
    by: u32,
    is_committed: bool,
}

/// A claim of a lane, from when the lane was chosen.
struct Claim {
    starts: LaneStarts,
    known: Passable,
    generation: u64,
    /// What it has read, and where it stopped, if at its limit.
    read: Option<(Vec<Seq>, Option<Seq>)>,
}

/// Where the lane is read from, as the statement has it.
fn begin(starts: &LaneStarts, lane: usize, open: &BTreeMap<u32, bool>) -> Option<Seq> {
    let is_open = |id_of: &TransactionId| open.keys().any(|number| id(*number) == *id_of);
    let passed = starts.passed.iter();
    let ended = passed.filter(|passed| !is_open(&passed.transaction));
    let of_lane = |start: &&LaneStart| start.lane == Lane(lane as u8);
    let start = starts
        .lanes
        .iter()
        .find(of_lane)
        .and_then(|start| start.from);
    ended.map(|passed| passed.since).fold(start, Option::min)
}

/// The lane's rows that a snapshot shows.
fn shown(rows: &BTreeMap<Seq, Written>, lane: usize) -> Vec<Seq> {
    let shown = rows
        .iter()
        .filter(|(_, row)| row.lane == lane && row.is_committed);
    shown.map(|(seq, _)| *seq).collect()
}

fn id(number: u32) -> TransactionId {
    TransactionId(i64::from(number))
}

impl Outbox {
    fn begin(&mut self) {
        self.begun += 1;
        self.open.insert(self.begun, false);
    }

    fn any_open(&self, which: Index) -> Option<u32> {
        let open: Vec<u32> = self.open.keys().copied().collect();
        (!open.is_empty()).then(|| *which.get(&open))
    }

    fn insert(&mut self, which: Index, lane: usize) {
        if let Some(by) = self.any_open(which) {
            self.open.insert(by, true);
            self.next += 1;
            let written = Written {
                lane,
                by,
                is_committed: false,
            };
            self.rows.insert(Seq(self.next), written);
        }
    }

    fn end(&mut self, which: Index, commits: bool) {
        if let Some(ends) = self.any_open(which) {
            self.open.remove(&ends);
            self.rows.retain(|_, row| commits || row.by != ends);
            let its = self.rows.values_mut().filter(|row| row.by == ends);
            its.for_each(|row| row.is_committed = true);
        }
    }

    fn look(&mut self, counts: bool) {
        let writers = self.open.keys().map(|number| Writer::new(1, *number));
        self.floor.looked(Seq(self.next + 1), writers, counts);
        let with_id = self.open.iter().filter(|(_, has_written)| **has_written);
        let ids = with_id.map(|(number, _)| (Writer::new(1, *number), id(*number)));
        self.ids = ids.collect();
    }

    fn raise_floor(&mut self) {
        if let Some(ask) = self.floor.ask() {
            let asked = |seq: &Seq| ask.from() <= Some(*seq) && *seq < ask.below();
            let shown = self.rows.iter().filter(|(_, row)| row.is_committed);
            let oldest = shown.map(|(seq, _)| *seq).find(asked);
            self.floor.raise(ask, oldest);
        }
    }

    fn choose(&mut self, lane: usize) {
        if self.claims[lane].is_none() {
            self.claims[lane] = Some(Claim {
                known: Passable::new(&self.floor, &self.ids),
                generation: self.lanes.generation(),
                starts: self
                    .lanes
                    .choose(&[Lane(lane as u8)], 1, self.floor.floor()),
                read: None,
            });
        }
    }

    fn read(&mut self, lane: usize, most: usize) -> Result<(), TestCaseError> {
        let Some(claim) = self.claims[lane]
            .as_mut()
            .filter(|claim| claim.read.is_none())
        else {
            return Ok(());
        };
        let from = begin(&claim.starts, lane, &self.open);
        let shown = shown(&self.rows, lane);
        if let Some(first) = shown.first() {
            prop_assert!(
                from <= Some(*first),
                "lane {lane} is read from {from:?}, above {first}"
            );
        }
        let read: Vec<Seq> = shown.into_iter().take(most).collect();
        let last = read.last().filter(|_| read.len() == most);
        let until = last.map(|last| Seq(last.0 + 1));
        claim.read = Some((read, until));
        Ok(())
    }

    /// Deletes what was read, or leaves every third row.
    fn settle(&mut self, lane: usize, leaves: bool) {
        let Some(claim) = self.claims[lane].take_if(|claim| claim.read.is_some()) else {
            return;
        };
        let (read, until) = claim.read.unwrap_or_default();
        let is_left = |seq: &Seq| leaves && seq.0 % 3 == 0;
        let left = read.iter().copied().find(is_left);
        self.rows
            .retain(|seq, _| !read.contains(seq) || is_left(seq));
        let first = left.or(until);
        self.lanes
            .seen(Lane(lane as u8), first, &claim.known, claim.generation);
    }

    fn look_at_lanes(&mut self) {
        self.lane_look.get_or_insert(LaneLook {
            starts: self.lanes.starts(self.floor.floor()),
            known: Passable::new(&self.floor, &self.ids),
            generation: self.lanes.generation(),
            firsts: None,
        });
    }

    fn see_first_rows(&mut self) -> Result<(), TestCaseError> {
        let (rows, open) = (&self.rows, &self.open);
        let Some(look) = self.lane_look.as_mut().filter(|look| look.firsts.is_none()) else {
            return Ok(());
        };
        let firsts = (0..2).map(|lane| {
            let from = begin(&look.starts, lane, open);
            let shown = shown(rows, lane);
            let found = shown.iter().find(|seq| from <= Some(**seq)).copied();
            (lane, found, shown.first().copied())
        });
        let firsts: Vec<_> = firsts.collect();
        for (lane, found, first) in &firsts {
            prop_assert_eq!(found, first, "lane {} is looked at from above", lane);
        }
        let named = |(lane, found, _)| (Lane(lane as u8), found);
        look.firsts = Some(firsts.into_iter().map(named).collect());
        Ok(())
    }

    /// However late: a claim may have read and settled meanwhile.
    fn take_in_first_rows(&mut self) {
        let Some(look) = self.lane_look.take_if(|look| look.firsts.is_some()) else {
            return;
        };
        for (lane, first) in look.firsts.into_iter().flatten() {
            self.lanes.seen(lane, first, &look.known, look.generation);
        }
    }

    /// Transactions are numbered from the start again, and places are given again that no committed row has.
    fn restart(&mut self) {
        self.rows.retain(|_, row| row.is_committed);
        self.rows.values_mut().for_each(|row| row.by = 0);
        let last = self.rows.last_key_value();
        *self = Self {
            next: last.map_or(0, |(last, _)| last.0),
            rows: std::mem::take(&mut self.rows),
            lanes: std::mem::take(&mut self.lanes),
            ..Self::default()
        };
        self.lanes.reset();
    }
}
