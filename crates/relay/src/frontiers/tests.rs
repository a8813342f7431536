use std::sync::Arc;

use postrider_core::FirstRows;

use super::*;
use crate::unsettled::Unsettled;

/// A look that shows no writer, and this place as the next.
fn look(frontiers: &Frontiers, next: Seq) {
    look_at(frontiers, next, HashMap::new());
}

/// One that shows these writers, all of which have written.
fn look_at(frontiers: &Frontiers, next: Seq, ids: HashMap<Writer, TransactionId>) {
    let look = OutboxLook {
        next,
        writers: ids.keys().copied().collect(),
        ids,
        notify_contended: false,
    };
    let _ = frontiers.looked(&look, true);
}

/// A claim from the frontier that found nothing more.
fn found_the_end(frontiers: &Frontiers) {
    let scan = frontiers.scan();
    frontiers.walked(scan, frontiers.from(&scan), Walked::ToTheEnd, None);
}

fn look_for_ordered(frontiers: &Frontiers) -> OrderedLook {
    frontiers.look_for_ordered(false, Instant::now())
}

fn all_lanes() -> Vec<Lane> {
    (0..=u8::MAX).map(Lane).collect()
}

#[test]
fn a_claim_that_found_nothing_is_spared_for_ten_times_as_long_as_it_took_unless_something_came() {
    let frontiers = Frontiers::default();
    look(&frontiers, Seq(10));
    found_the_end(&frontiers);
    let began = Instant::now();
    let after = |milliseconds| began + Duration::from_millis(milliseconds);
    assert!(!frontiers.spares_fresh(began));
    frontiers.found_no_fresh(began, Duration::from_millis(2));
    assert!(frontiers.spares_fresh(after(21)));
    assert!(!frontiers.spares_fresh(after(22)));
    frontiers.found_no_fresh(began, Duration::from_millis(100));
    assert!(frontiers.spares_fresh(after(149)));
    assert!(!frontiers.spares_fresh(after(150)));
    frontiers.given_back(Seq(7));
    assert!(!frontiers.spares_fresh(after(1)));
}

#[test]
fn where_the_frontier_must_not_follow_the_walk_goes_on_by_itself_and_begins_again() {
    let frontiers = Frontiers::default();
    // Nobody watches the outbox: nothing may be passed.
    let claim = |walked| {
        let scan = frontiers.scan();
        let from = frontiers.from(&scan);
        frontiers.walked(scan, from, walked, Some(Seq(12)));
        from.fresh
    };
    assert_eq!(claim(Walked::Until(Seq(10))), None);
    assert_eq!(claim(Walked::Full), Some(Seq(10)));
    assert_eq!(claim(Walked::Until(Seq(20))), Some(Seq(12)));
    assert_eq!(claim(Walked::ToTheEnd), Some(Seq(20)));
    assert_eq!(claim(Walked::Until(Seq(10))), None);
    // From now on the frontier could, but not by a claim that began above it.
    look(&frontiers, Seq(100));
    assert_eq!(claim(Walked::ToTheEnd), Some(Seq(10)));
    assert!(frontiers.wants_claim());
    assert_eq!(claim(Walked::Until(Seq(10))), None);
    assert_eq!(claim(Walked::ToTheEnd), Some(Seq(10)));
    assert!(!frontiers.wants_claim());
    assert_eq!(claim(Walked::ToTheEnd), Some(Seq(100)));
}

#[test]
fn a_look_back_goes_on_where_its_last_piece_ended_until_something_is_found_or_all_is_seen() {
    let frontiers = Frontiers::default();
    look(&frontiers, Seq(100));
    found_the_end(&frontiers);
    assert_eq!(frontiers.below(), Some((None, Seq(100))));
    assert!(!frontiers.looked_back(LookBack::NoneBelow(Seq(40))));
    assert_eq!(frontiers.below(), Some((Some(Seq(40)), Seq(100))));
    assert!(frontiers.looked_back(LookBack::None));
    assert_eq!(frontiers.below(), Some((None, Seq(100))));
    assert!(!frontiers.looked_back(LookBack::NoneBelow(Seq(40))));
    assert!(frontiers.looked_back(LookBack::Free(Seq(50))));
    assert_eq!(frontiers.below(), Some((None, Seq(50))));
    assert!(!frontiers.looked_back(LookBack::NoneBelow(Seq(40))));
    frontiers.reset();
    assert_eq!(frontiers.below(), None);
}

#[test]
fn one_look_is_good_for_so_many_claims_until_one_falls_short() {
    let frontiers = Frontiers::default();
    let first = FirstRows {
        lowest: Seq(1),
        highest: Seq(1_000),
        rows: 1_000,
    };
    let found = WaitingLanes {
        lanes: all_lanes(),
        lowest: Some(Seq(1)),
        many: true,
        reach: Some(Reach::of_look(&first, &[])),
        ..WaitingLanes::default()
    };
    let look = || frontiers.found_ordered(look_for_ordered(&frontiers), &found);
    look();
    for _ in 1..CLAIMS_OF_ONE_LOOK {
        assert_eq!(frontiers.take_known_lanes(), all_lanes());
    }
    assert!(frontiers.take_known_lanes().is_empty());
    for had_looked in [false, true] {
        look();
        frontiers.fell_short(had_looked);
        assert!(frontiers.take_known_lanes().is_empty());
        for one_by_one in [had_looked, false] {
            let how = look_for_ordered(&frontiers).how;
            assert_eq!(how == LookFor::FirstThenEach, one_by_one, "{how:?}");
        }
    }
}

/// Hazard: behind a row that an operator has locked, every look walked over all that was deleted since.
#[test]
fn after_a_slow_look_lanes_are_looked_at_by_themselves_for_so_many_times_as_long() {
    let frontiers = Frontiers::default();
    let began = Instant::now();
    let after = |milliseconds| began + Duration::from_millis(milliseconds);
    let how = |at, others| frontiers.look_for_ordered(others, at).how;
    let took = |milliseconds| {
        let look = frontiers.look_for_ordered(false, began);
        frontiers.look_took(&look, began, Duration::from_millis(milliseconds));
    };
    took(24);
    assert_eq!(how(after(25), false), LookFor::First);
    assert_eq!(how(after(25), true), LookFor::FirstThenEach);
    took(100);
    assert_eq!(how(after(3_199), true), LookFor::Each);
    // However long these take.
    took(1_000);
    assert_eq!(how(after(3_200), false), LookFor::First);
    let look = frontiers.look_for_ordered(false, after(3_200));
    frontiers.look_took(&look, began, Duration::from_secs(30));
    assert_eq!(how(after(59_999), false), LookFor::Each);
    assert_eq!(how(after(60_000), false), LookFor::First);
}

/// Hazard: where several relays share the lanes, each look walked once more over all that the others had deleted.
#[test]
fn a_look_at_each_lane_moves_its_beginning_by_what_was_known_before_it_and_leaves_lanes_that_a_worker_has()
 {
    let frontiers = Frontiers::default();
    look(&frontiers, Seq(100));
    let of_worker = frontiers.choose_lanes(&[Lane(3)], 1, 100);
    let taken = look_for_ordered(&frontiers);
    // Its snapshot may be older than this.
    look(&frontiers, Seq(200));
    let found = WaitingLanes {
        firsts: vec![
            (Lane(1), Some(Seq(40))),
            (Lane(2), None),
            (Lane(3), None),
            (Lane(4), Some(Seq(150))),
        ],
        ..WaitingLanes::default()
    };
    frontiers.found_ordered(taken, &found);
    let begins = |lane: usize| look_for_ordered(&frontiers).starts.lanes[lane].from;
    assert_eq!(
        [1, 2, 3, 4, 5].map(begins),
        [Some(Seq(40)), Some(Seq(100)), None, Some(Seq(100)), None]
    );
    drop(of_worker);
    // A look before which everything was forgotten.
    let taken = look_for_ordered(&frontiers);
    frontiers.reset();
    frontiers.found_ordered(taken, &found);
    assert_eq!([1, 2].map(begins), [None, None]);
}

/// Hazard: a claim that was always full before it came to its last lanes left the same ones each time.
#[test]
fn lanes_that_a_full_claim_has_not_come_to_have_the_next_turn() {
    let frontiers = Frontiers::default();
    let lanes: Vec<Lane> = (1..=4).map(Lane).collect();
    // With one row of each lane that is read.
    let turn = |read: &[u8], most: u32| {
        let chosen = frontiers.choose_lanes(&lanes, 3, most);
        let read = read.iter().map(|lane| ReadLane {
            lane: Lane(*lane),
            seqs: vec![Seq(8)],
            until: Some(Seq(10)),
        });
        frontiers.read_lanes(&chosen, &read.collect::<Vec<_>>(), |_| false);
        let starts = chosen.starts.lanes.iter();
        starts.map(|start| start.lane.0).collect::<Vec<_>>()
    };
    assert_eq!(turn(&[1], 1), [1, 2, 3]);
    assert_eq!(turn(&[2, 3], 2), [2, 3, 4]);
    assert_eq!(turn(&[4, 1, 2], 3), [4, 1, 2]);
    // Room was left: the others are in the hands of another relay.
    assert_eq!(turn(&[3], 2), [3, 4, 1]);
    assert_eq!(turn(&[2, 3, 4], 3), [2, 3, 4]);
}

#[test]
fn when_rows_are_held_no_more_claims_begin_again_at_the_lowest_of_their_own_and_at_no_other() {
    let frontiers = Arc::new(Frontiers::default());
    look(&frontiers, Seq(10));
    found_the_end(&frontiers);
    let at = || frontiers.from(&frontiers.scan()).fresh;
    let unsettled = Unsettled::new(Arc::clone(&frontiers));
    drop(unsettled.hold(vec![Seq(3), Seq(5)], None));
    assert_eq!(at(), Some(Seq(10)));
    drop(unsettled.hold(vec![Seq(3), Seq(5)], Some(Seq(5))));
    assert_eq!(at(), Some(Seq(5)));
}

#[test]
fn lanes_that_were_read_beside_a_long_transaction_begin_above_it_and_name_it_until_the_watch_begins_anew()
 {
    let frontiers = Frontiers::default();
    let id = TransactionId(900);
    let ids = HashMap::from([(Writer::new(1, 1), id)]);
    look(&frontiers, Seq(10));
    for next in [20, 30] {
        look_at(&frontiers, Seq(next), ids.clone());
    }
    let choose = || frontiers.choose_lanes(&[Lane(3)], 1, 100);
    let first = choose();
    assert_eq!(first.starts.lanes[0].from, None);
    let read = ReadLane {
        lane: Lane(3),
        seqs: vec![Seq(25)],
        until: None,
    };
    frontiers.read_lanes(&first, &[read], |_| false);
    drop(first);
    let starts = choose().starts.clone();
    assert_eq!(starts.lanes[0].from, Some(Seq(30)));
    let passed = starts.passed.iter().map(|p| (p.transaction, p.since));
    assert_eq!(passed.collect::<Vec<_>>(), [(id, Some(Seq(10)))]);
    assert_eq!(look_for_ordered(&frontiers).starts.passed, starts.passed);
    frontiers.reset();
    let anew = choose().starts.clone();
    assert_eq!((anew.lanes[0].from, anew.passed.len()), (None, 0));
}

#[test]
fn a_message_with_a_key_below_its_frontier_sends_the_lanes_back_when_it_is_still_there_at_the_next_look_back()
 {
    let frontiers = Frontiers::default();
    // The writer holds the floor.
    let writer = Writer::new(1, 1);
    let ids = HashMap::from([(writer, TransactionId(7))]);
    for next in [10, 100, 100] {
        look_at(&frontiers, Seq(next), ids.clone());
        let look = look_for_ordered(&frontiers);
        frontiers.found_ordered(look, &WaitingLanes::default());
    }
    assert_eq!(frontiers.below_ordered(), Some((None, Seq(100))));
    let generation = || frontiers.all().lanes.generation();
    let before = generation();
    // One that was committed just now is gone by then, or has another before it.
    for found in [Some(Seq(20)), None, Some(Seq(20)), Some(Seq(15))] {
        assert!(!frontiers.found_below_ordered(found), "{found:?}");
        assert_eq!(generation(), before);
    }
    assert!(frontiers.found_below_ordered(Some(Seq(15))));
    assert_ne!(generation(), before);
    assert_eq!(frontiers.below_ordered(), Some((None, Seq(15))));
    // From there on it is another.
    assert!(!frontiers.found_below_ordered(Some(Seq(15))));
}
