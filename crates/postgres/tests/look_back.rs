//! Rows that somebody else had locked when the claims passed them, and let go.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;
mod watched;

use fresh::{LIMITS, client};
use postrider_postgres::{Database, Settings};
use watched::{claim_from, insert, settle, watched};

#[tokio::test]
async fn a_row_that_an_operator_has_locked_is_found_by_the_look_back_once_it_is_free() {
    let mut watched = watched().await;
    watched.while_thousands_come_and_go().await;
    for (lock, end) in [
        ("SELECT FROM outbox.messages FOR UPDATE", "ROLLBACK"),
        ("UPDATE outbox.messages SET app_id = 'x'", "ROLLBACK"),
        ("UPDATE outbox.messages SET app_id = 'x'", "COMMIT"),
    ] {
        watched.execute(&insert("locked")).await;
        // So that the operator, a writer too, is known to have come after the row.
        watched.look().await;
        let operator = client(&watched.outbox.url).await;
        operator
            .batch_execute(&format!("BEGIN; {lock}"))
            .await
            .unwrap();
        watched.while_thousands_come_and_go().await;
        let floor = watched.floor();
        let passed = watched.frontier.at();
        assert!(floor < passed);
        assert_eq!(watched.look_back().await, None, "still locked");
        assert!(watched.drain().await.is_empty());
        operator.batch_execute(end).await.unwrap();
        watched.look().await;
        assert_eq!(watched.look_back().await, floor);
        assert_eq!(watched.drain().await, ["locked"]);
    }
    watched.floor_moves_on().await;
}

#[tokio::test]
async fn rows_that_another_relay_claimed_and_gave_back_are_found_by_the_look_back() {
    let mut watched = watched().await;
    watched.while_thousands_come_and_go().await;
    watched.outbox.insert(3).await;
    let other = Database::new(Settings::new(&watched.outbox.url)).unwrap();
    let claim = claim_from(&other, LIMITS, watched.frontier.scan()).await;
    assert_eq!(claim.len(), 3);
    watched.while_thousands_come_and_go().await;
    let floor = watched.floor();
    assert_eq!(watched.look_back().await, None);
    claim.release().await.unwrap();
    assert_eq!(watched.look_back().await, floor);
    assert_eq!(watched.drain().await.len(), 3);
    // What it settles is not looked for.
    watched.outbox.insert(3).await;
    let claim = claim_from(&other, LIMITS, watched.frontier.scan()).await;
    watched.while_thousands_come_and_go().await;
    settle(claim).await;
    assert_eq!(watched.look_back().await, None);
    watched.floor_moves_on().await;
}

/// As long as its server takes to notice, a relay that is gone holds its rows.
#[tokio::test]
async fn rows_of_a_claim_whose_connection_is_gone_are_found_by_the_look_back() {
    let mut watched = watched().await;
    watched.while_thousands_come_and_go().await;
    watched.outbox.insert(3).await;
    let other = Database::new(Settings::new(&watched.outbox.url)).unwrap();
    let claim = claim_from(&other, LIMITS, watched.frontier.scan()).await;
    watched.while_thousands_come_and_go().await;
    drop(claim);
    let end = std::time::Instant::now() + fresh::DEADLINE;
    while watched.look_back().await.is_none() {
        assert!(std::time::Instant::now() < end);
        tokio::task::yield_now().await;
    }
    assert_eq!(watched.drain().await.len(), 3);
}

/// Found, it would send every claim of messages without a key back over all that wait for their lanes.
#[tokio::test]
async fn a_message_with_a_key_that_waits_for_its_lane_brings_no_claim_from_the_frontier_back() {
    let mut watched = watched().await;
    watched
        .execute("INSERT INTO outbox.messages (exchange, routing_key, payload_json, ordering_key) VALUES ('e', 'k', '1', 'a')")
        .await;
    watched.while_thousands_come_and_go().await;
    watched.look().await;
    assert!(watched.drain().await.is_empty());
    assert!(
        watched.frontier.below().is_some(),
        "the one that waits holds the floor, and the frontier is above it"
    );
    assert_eq!(watched.look_back().await, None);
}
