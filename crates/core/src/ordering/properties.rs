//! What plan, turns, settling and lanes promise, said simply, against whatever they may be given.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use uuid::Uuid;

use super::*;
use crate::{Headers, Message, Ordered, Origin, Payload, Properties, Seq};

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
            prop_assert_eq!(chosen.len(), most.min(distinct.len()));
            for start in chosen {
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
    fn no_lane_begins_above_a_row_that_is_there_or_may_appear(
        steps in prop::collection::vec((0..8u8, any::<Index>(), 0..3u8), 1..120)
    ) {
        let mut lanes = Lanes::default();
        // Of each row its lane, and whether it is committed.
        let mut rows: BTreeMap<Seq, (Lane, bool)> = BTreeMap::new();
        let mut next = Seq(1);
        let mut horizon = None;
        // What a claim's statement showed that has not been settled yet.
        let mut claims = Vec::new();
        for (step, which, lane) in steps {
            let lane = Lane(lane * 100);
            let committed = |rows: &BTreeMap<Seq, (Lane, bool)>, wanted: bool| -> Vec<Seq> {
                rows.iter().filter(|(_, (_, is))| *is == wanted).map(|(seq, _)| *seq).collect()
            };
            match step {
                0 | 1 => {
                    rows.insert(next, (lane, false));
                    next = Seq(next.0 + 1);
                }
                2 | 3 => {
                    if let open @ [_, ..] = &committed(&rows, false)[..] {
                        rows.insert(*which.get(open), (lane, true));
                    }
                }
                4 => {
                    if let there @ [_, ..] = &committed(&rows, true)[..] {
                        rows.remove(which.get(there));
                    }
                }
                5 => horizon = committed(&rows, false).first().copied().or(Some(next)),
                6 => {
                    let from = lanes.choose(&[lane], 1, None)[0].from;
                    let of_lane = |(_, (of, is)): &(&Seq, &(Lane, bool))| *of == lane && *is;
                    let first = rows.iter().filter(of_lane).map(|(seq, _)| *seq).find(|seq| Some(*seq) >= from);
                    claims.push((lane, first, horizon, lanes.generation()));
                }
                // The server is killed and started: it draws once more what was not committed.
                _ if which.index(10) == 0 => {
                    rows.retain(|_, (_, is_committed)| *is_committed);
                    next = rows.last_key_value().map_or(Seq(1), |(last, _)| Seq(last.0 + 1));
                    horizon = None;
                    lanes.reset();
                }
                _ if !claims.is_empty() => {
                    let (lane, first, horizon, generation) = claims.swap_remove(which.index(claims.len()));
                    lanes.seen(lane, first, horizon, generation);
                }
                _ => {}
            }
            for (seq, (of, is_committed)) in &rows {
                // One that is open may be of any lane yet.
                let may_be_in = (0..=u8::MAX).map(Lane).filter(|lane: &Lane| lane == of || !is_committed);
                for lane in may_be_in.filter(|lane| lane.0 % 100 == 0) {
                    let from = lanes.clone().choose(&[lane], 1, None)[0].from;
                    prop_assert!(from.is_none_or(|from| from <= *seq), "{lane:?} begins at {from:?}, above {seq}");
                }
            }
        }
    }
}
