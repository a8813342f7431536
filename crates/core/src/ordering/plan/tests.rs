use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::{Headers, Ordered, Origin, Properties};

fn message(seq: i64, key: &str, supersede: bool) -> Message {
    Message {
        seq: Seq(seq),
        id: Uuid::nil(),
        exchange: "shop".to_owned(),
        routing_key: "order".to_owned(),
        payload: Payload::Fetched(Vec::new()),
        headers: Headers::default(),
        properties: Properties::default(),
        created_at_unix: 0,
        age_at_claim: Duration::ZERO,
        attempts: 0,
        origin: Origin::Messages,
        ordered: Some(Ordered {
            key: key.to_owned(),
            supersede,
        }),
    }
}

fn free(seq: i64, key: &str) -> OrderedRow {
    OrderedRow::Free(message(seq, key, false))
}

fn superseding(seq: i64, key: &str) -> OrderedRow {
    OrderedRow::Free(message(seq, key, true))
}

fn held(key: &str) -> OrderedRow {
    OrderedRow::Held {
        key: key.to_owned(),
    }
}

fn blocked(seq: i64, key: &str) -> OrderedRow {
    of_bytes(seq, key, 1)
}

fn of_bytes(seq: i64, key: &str, bytes: u64) -> OrderedRow {
    OrderedRow::Blocked {
        seq: Seq(seq),
        key: key.to_owned(),
        bytes,
    }
}

fn plan(rows: Vec<OrderedRow>) -> OrderedPlan {
    OrderedPlan::new(rows, &HashSet::new())
}

fn sent(plan: &OrderedPlan) -> Vec<i64> {
    plan.send.iter().map(|message| message.seq.0).collect()
}

/// Hazard: a thousand large payloads were parked by one statement, which took longer than it may, and were claimed again.
#[test]
fn no_more_is_parked_than_one_transaction_moves_and_the_first_however_large_it_is() {
    let half = MOST_MOVED_BYTES / 2;
    let rows = vec![
        of_bytes(1, "a", half),
        of_bytes(2, "b", half),
        of_bytes(3, "a", 1),
        free(4, "c"),
        of_bytes(5, "b", 0),
    ];
    let planned = plan(rows);
    assert_eq!(planned.park, [Seq(1), Seq(2)]);
    assert_eq!(sent(&planned), [4]);
    assert!(planned.held);
    let planned = plan(vec![of_bytes(1, "a", u64::MAX), of_bytes(2, "a", 1)]);
    assert_eq!(planned.park, [Seq(1)]);
}

#[test]
fn what_follows_a_held_row_of_its_key_is_neither_sent_nor_parked() {
    let rows = vec![
        free(1, "a"),
        held("a"),
        free(3, "a"),
        free(4, "b"),
        held("c"),
        blocked(6, "c"),
    ];
    let plan = plan(rows);
    assert_eq!(sent(&plan), [1, 4]);
    assert!(plan.park.is_empty());
    assert!(plan.held);
}

#[test]
fn rows_of_a_blocked_key_are_parked_in_order() {
    let plan = plan(vec![blocked(1, "a"), free(2, "b"), blocked(3, "a")]);
    assert_eq!(plan.park, [Seq(1), Seq(3)]);
    assert_eq!(sent(&plan), [2]);
    assert!(!plan.held);
}

#[test]
fn of_superseding_messages_next_to_each_other_only_the_newest_is_sent() {
    let plan = plan(vec![
        superseding(1, "a"),
        superseding(2, "b"),
        superseding(3, "a"),
        superseding(4, "a"),
    ]);
    assert_eq!(sent(&plan), [4, 2]);
    assert_eq!(plan.superseded.get(&Seq(4)), Some(&vec![Seq(1), Seq(3)]));
    assert_eq!(plan.superseded.len(), 1);
}

#[test]
fn nothing_is_superseded_across_a_message_that_is_not_marked_so() {
    let plan = plan(vec![
        superseding(1, "a"),
        free(2, "a"),
        superseding(3, "a"),
        superseding(4, "a"),
    ]);
    assert_eq!(sent(&plan), [1, 2, 4]);
    assert_eq!(plan.superseded.get(&Seq(4)), Some(&vec![Seq(3)]));
}

#[test]
fn nothing_is_superseded_by_a_message_to_another_route() {
    let mut other = message(2, "a", true);
    other.routing_key = "invoice".to_owned();
    let plan = plan(vec![
        superseding(1, "a"),
        OrderedRow::Free(other),
        superseding(3, "a"),
    ]);
    assert_eq!(sent(&plan), [1, 2, 3]);
}

#[test]
fn what_may_have_been_sent_already_neither_supersedes_nor_is_superseded() {
    let rows = vec![
        superseding(1, "a"),
        superseding(2, "a"),
        superseding(3, "a"),
    ];
    let plan = OrderedPlan::new(rows, &HashSet::from([Seq(1)]));
    assert_eq!(sent(&plan), [1, 3]);
    let mut tried = message(1, "a", true);
    tried.attempts = 1;
    let plan = super::OrderedPlan::new(
        vec![OrderedRow::Free(tried), superseding(2, "a")],
        &HashSet::new(),
    );
    assert_eq!(sent(&plan), [1, 2]);
}

#[test]
fn a_payload_that_cannot_be_sent_supersedes_nothing() {
    let mut large = message(2, "a", true);
    large.payload = Payload::TooLarge { bytes: 1 << 30 };
    let plan = plan(vec![superseding(1, "a"), OrderedRow::Free(large)]);
    assert_eq!(sent(&plan), [1, 2]);
}
