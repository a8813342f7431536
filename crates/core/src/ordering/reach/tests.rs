use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::*;

fn start(lane: u8, from: Option<i64>) -> LaneStart {
    LaneStart {
        lane: Lane(lane),
        from: from.map(Seq),
        until: None,
    }
}

fn starts() -> Vec<LaneStart> {
    (0..=u8::MAX).map(|lane| start(lane, None)).collect()
}

fn look(lowest: i64, highest: i64, rows: u32, starts: &[LaneStart]) -> Reach {
    let first = FirstRows {
        lowest: Seq(lowest),
        highest: Seq(highest),
        rows,
    };
    Reach::of_look(&first, starts)
}

/// Where a claim of one lane stops.
fn until(reach: &Reach, start: LaneStart, rows: u32) -> i64 {
    let mut lanes = [start];
    reach.bound(&mut lanes, rows);
    lanes[0].until.unwrap().0
}

fn until_of(reach: &Reach, lane: u8, rows: u32) -> i64 {
    until(reach, start(lane, None), rows)
}

#[test]
fn each_lane_is_read_as_far_beyond_where_it_was_left_as_its_rows_lie_apart() {
    // Two places for each row, 512 from one of a lane to the next.
    let mut reach = look(1_001, 3_000, 1_000, &starts());
    assert_eq!(until_of(&reach, 3, 8), 1_001 + 8 * 512);
    assert_eq!(until_of(&reach, 3, 70), 1_001 + 70 * 512);
    reach.read(Lane(3), Seq(2_000));
    reach.read(Lane(3), Seq(1_500));
    assert_eq!(until_of(&reach, 3, 8), 2_000 + 8 * 512);
    assert_eq!(until_of(&reach, 255, 8), 1_001 + 8 * 512);
    let next = look(1_501, 2_500, 1_000, &starts()).after(&reach);
    assert_eq!(until_of(&next, 3, 8), 2_000 + 8 * 256);
    assert_eq!(until_of(&next, 255, 8), 1_501 + 8 * 256);
    let begins = start(3, Some(10_001));
    assert_eq!(until(&next, begins, 8), 10_001 + 8 * 256);
}

#[test]
fn a_claim_of_few_rows_reads_far_enough_to_find_one() {
    let reach = look(1_001, 3_000, 1_000, &starts());
    assert_eq!(until_of(&reach, 3, 1), until_of(&reach, 3, 8));
    let mut lanes: Vec<LaneStart> = (0..4).map(|lane| start(lane, None)).collect();
    reach.bound(&mut lanes, 4);
    assert!(
        lanes
            .iter()
            .all(|start| start.until == Some(Seq(1_001 + 2 * 512)))
    );
}

#[test]
fn places_that_a_lane_has_been_read_beyond_are_not_counted() {
    let mut starts = starts();
    for start in starts.iter_mut().skip(64) {
        start.from = Some(Seq(9_000));
    }
    let reach = look(1_001, 5_000, 1_000, &starts);
    assert_eq!(until_of(&reach, 0, 8), 1_001 + 8 * 64 * 4);
    starts[0].from = Some(Seq(3_001));
    let reach = look(1_001, 5_000, 500, &starts);
    assert_eq!(
        until_of(&reach, 1, 8),
        1_001 + 8 * (63 * 4_000 + 2_000) / 500
    );
}

/// What each of the lanes is read, in the same order.
fn rooms(reach: &Reach, mut lanes: Vec<LaneStart>, rows: u32) -> Vec<i64> {
    reach.bound(&mut lanes, rows);
    let room = |start: &LaneStart| start.until.unwrap().0 - start.from.unwrap().0;
    lanes.iter().map(room).collect()
}

#[test]
fn lanes_come_to_one_place_and_one_that_is_far_ahead_or_behind_comes_nearer_to_it() {
    // 256 places from one row of a lane to the next, and so 25,600 for each of four lanes.
    let reach = look(1, 1_000, 1_000, &starts());
    let lanes = |froms: [i64; 4]| (0..).zip(froms).map(|(lane, from)| start(lane, Some(from)));
    let near = lanes([10_000, 12_000, 8_000, 10_000]).collect();
    assert_eq!(rooms(&reach, near, 400), [25_600, 23_600, 27_600, 25_600]);
    let behind = lanes([500, 100_000, 100_000, 100_000]).collect();
    let [most, other, ..] = rooms(&reach, behind, 400)[..] else {
        panic!("four lanes");
    };
    assert_eq!((most, other), (51_200, 17_067));
    let ahead = lanes([100_000, 500, 500, 500]).collect();
    let [least, other, ..] = rooms(&reach, ahead, 400)[..] else {
        panic!("four lanes");
    };
    assert_eq!((least, other), (12_800, 29_867));
}

/// A thousand keys in turns.
fn lane_of(seq: i64) -> u8 {
    let mut hasher = DefaultHasher::new();
    (seq % 1_000).hash(&mut hasher);
    u8::try_from(hasher.finish() & 0xff).unwrap()
}

/// What a worker has in its hands, and how far it has read.
#[derive(Default)]
struct Claimed {
    lanes: Vec<Lane>,
    rows: Vec<i64>,
    read: Vec<(Lane, Seq)>,
}

/// Lanes with fewer or more keys.
struct Outbox {
    lanes: Vec<VecDeque<i64>>,
    starts: Vec<LaneStart>,
}

impl Outbox {
    fn new(rows: i64) -> Self {
        let mut lanes = vec![VecDeque::new(); Lane::COUNT];
        for seq in 1..=rows {
            lanes[usize::from(lane_of(seq))].push_back(seq);
        }
        let starts = starts();
        Self { lanes, starts }
    }

    fn left(&self) -> usize {
        self.lanes.iter().map(VecDeque::len).sum()
    }

    /// As if lanes had been claimed from without a bound: so many rows of each, whatever it has.
    fn take_of_each(&mut self, rows: usize) {
        for (lane, start) in self.lanes.iter_mut().zip(&mut self.starts) {
            let taken = lane.drain(..rows.min(lane.len())).next_back();
            start.from = taken.map(|last| Seq(last + 1));
        }
    }

    /// The first rows there are, those in hand among them.
    fn look(&self, in_hand: &[Claimed]) -> Reach {
        let left = self.lanes.iter().flatten().copied();
        let in_hand = in_hand
            .iter()
            .flat_map(|claimed| claimed.rows.iter().copied());
        let mut rows: Vec<i64> = left.chain(in_hand).collect();
        rows.sort_unstable();
        rows.truncate(1_000);
        let first = FirstRows {
            lowest: Seq(rows[0]),
            highest: Seq(rows[rows.len() - 1]),
            rows: u32::try_from(rows.len()).unwrap(),
        };
        Reach::of_look(&first, &self.starts)
    }

    /// Reads each lane up to its end, 62 rows of it at most, and 1,000 in all, as the statement does.
    fn claim(&mut self, chosen: &[(Lane, Seq)]) -> Claimed {
        let mut claimed = Claimed::default();
        for &(lane, until) in chosen {
            let room = 62.min(1_000 - claimed.rows.len());
            let of_lane = &mut self.lanes[usize::from(lane.0)];
            let below = of_lane.iter().filter(|seq| **seq < until.0).count();
            let mut taken: Vec<i64> = of_lane.drain(..below.min(room)).collect();
            let until = match taken.last() {
                Some(last) if taken.len() == room => Seq(last + 1),
                Some(_) | None => until,
            };
            claimed.read.push((lane, until));
            claimed.rows.append(&mut taken);
            if claimed.rows.len() == 1_000 {
                break;
            }
        }
        claimed
    }

    fn settle(&mut self, claimed: &mut Claimed, reach: &mut Reach) {
        claimed.lanes.clear();
        claimed.rows.clear();
        for (lane, until) in claimed.read.drain(..) {
            reach.read(lane, until);
            self.starts[usize::from(lane.0)].from = Some(until);
        }
    }
}

/// Hazard: with rows taken for ones of all lanes, and the same lanes left each time, claims were full with a sixth of their lanes. 1,000
/// keys had 0.9 of the rate of 100,000. And with each lane read as far as any other, those that were behind stayed there to the end; rows, of which the
/// first are theirs, were thought to lie as densely everywhere, and claims came back with seven tenths of what they were to have.
#[test]
fn two_workers_read_lanes_of_unequal_numbers_of_keys_at_one_pace_until_all_are_empty() {
    for unequal in [0, 20] {
        let mut outbox = Outbox::new(200_000);
        outbox.take_of_each(unequal);
        let mut lanes = crate::Lanes::default();
        let every: Vec<Lane> = (0..=u8::MAX).map(Lane).collect();
        let mut reach: Option<Reach> = None;
        let mut in_hand = [Claimed::default(), Claimed::default()];
        let (mut claims, mut spread) = (Vec::new(), Vec::new());
        for turn in 0.. {
            if turn % 16 == 0 {
                let look = outbox.look(&in_hand);
                reach = Some(match &reach {
                    Some(before) => look.after(before),
                    None => look,
                });
            }
            let reach = reach.as_mut().unwrap();
            outbox.settle(&mut in_hand[turn % 2], reach);
            let other = &in_hand[(turn + 1) % 2].lanes;
            let free = every.iter().filter(|lane| !other.contains(lane));
            let free: Vec<Lane> = free.copied().collect();
            let chosen = lanes.choose(&free, 128, None).lanes.into_iter();
            let start = |lane: Lane| outbox.starts[usize::from(lane.0)];
            let mut chosen: Vec<LaneStart> = chosen.map(|chosen| start(chosen.lane)).collect();
            reach.bound(&mut chosen, 1_000);
            let chosen: Vec<(Lane, Seq)> = chosen
                .iter()
                .map(|start| (start.lane, start.until.unwrap()))
                .collect();
            let worker = &mut in_hand[turn % 2];
            *worker = outbox.claim(&chosen);
            worker.lanes = chosen.iter().map(|(lane, _)| *lane).collect();
            let read = worker.read.len();
            if let Some((first_left, _)) = chosen.get(read) {
                lanes.go_on_at(*first_left);
            }
            claims.push((worker.rows.len(), read));
            let waiting = outbox.lanes.iter().filter(|lane| !lane.is_empty()).count();
            let left = outbox.left();
            assert!(
                waiting > 200 || left < 8_000,
                "{left} in {waiting} lanes: {claims:?}"
            );
            let begins = |lane: usize| outbox.starts[lane].from.map_or(0, |from| from.0);
            let of_waiting = (0..Lane::COUNT).filter(|lane| !outbox.lanes[*lane].is_empty());
            let (first, last) = of_waiting.fold((i64::MAX, 0), |(first, last), lane| {
                (first.min(begins(lane)), last.max(begins(lane)))
            });
            spread.push(last.saturating_sub(first));
            if left == 0 {
                break;
            }
        }
        let rows: usize = claims.iter().map(|(rows, _)| rows).sum();
        assert!(rows > claims.len() * 900, "{unequal}: {claims:?}");
        spread.sort_unstable();
        let median = spread[spread.len() / 2];
        assert!(median < 5_000, "{unequal}: {median}");
        let few = claims
            .iter()
            .filter(|(rows, read)| *rows < 500 || *read < 100);
        let few = few.count();
        assert!(few < claims.len() / 8, "{unequal}: {few} of {claims:?}");
    }
}

#[test]
fn places_at_the_ends_of_the_range_are_no_limits() {
    let reach = look(i64::MIN, i64::MAX, 1, &starts());
    assert_eq!(until_of(&reach, 0, u32::MAX), i64::MAX);
    let reach = look(i64::MAX, i64::MAX, 0, &[]);
    assert_eq!(until_of(&reach, 0, 1), i64::MAX);
    reach.bound(&mut [], 1);
}
