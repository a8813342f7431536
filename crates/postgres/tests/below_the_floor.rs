//! Rows that are not written as rows are: with a place of their own choice, by a sequence that was set back, into a
//! table that was made anew.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;
mod watched;

use std::time::Duration;

use fresh::LIMITS;
use postrider_core::{Seq, Sweep};
use postrider_postgres::{ClaimLimits, Database, Error, Settings};
use watched::{Watched, insert, insert_at, watched};

/// Goes through everything below the floor once, as the relay does; what was found.
async fn sweep(watched: &mut Watched) -> Vec<Seq> {
    let mut sweep = Sweep::new(1, 100);
    let mut found = Vec::new();
    loop {
        let Some(Seq(floor)) = watched.floor() else {
            return found;
        };
        let piece = sweep.piece(floor);
        let from = piece.from.map(Seq);
        if let Some(row) = watched.watch.oldest(from, Seq(piece.to)).await.unwrap() {
            watched.frontier.found_below(row);
            found.push(row);
        }
        let _ = sweep.swept(piece, Duration::ZERO);
        if piece.to >= floor {
            return found;
        }
    }
}

#[tokio::test]
async fn a_row_written_below_the_floor_by_its_own_place_is_found_by_the_sweep_alone() {
    let mut watched = watched().await;
    watched.while_thousands_come_and_go().await;
    watched.look().await;
    assert!(sweep(&mut watched).await.is_empty());
    for seq in [-7, 0, 1, 1234] {
        watched.look().await;
        assert!(watched.floor() > Some(Seq(seq)));
        watched.execute(&insert_at(seq, "below")).await;
        for _ in 0..3 {
            watched.look().await;
            assert!(watched.drain().await.is_empty());
            assert_eq!(watched.look_back().await, None);
        }
        assert_eq!(sweep(&mut watched).await, [Seq(seq)]);
        watched.look().await;
        assert_eq!(watched.drain().await, ["below"]);
    }
    watched.floor_moves_on().await;
}

#[tokio::test]
async fn a_sequence_that_was_set_back_sends_the_claims_to_the_beginning_at_the_next_look() {
    let mut watched = watched().await;
    for (set_back, seq) in [
        ("SELECT setval('outbox.messages_seq_seq', 5, false)", 5),
        ("SELECT setval('outbox.messages_seq_seq', 5)", 6),
        ("ALTER TABLE outbox.messages ALTER COLUMN seq RESTART", 1),
        (
            "ALTER TABLE outbox.messages ALTER COLUMN seq RESTART WITH 7",
            7,
        ),
        ("TRUNCATE outbox.messages RESTART IDENTITY", 1),
    ] {
        watched.while_thousands_come_and_go().await;
        watched.look().await;
        assert!(watched.floor() > Some(Seq(1000)));
        watched.execute(set_back).await;
        watched.execute(&insert("low")).await;
        let look = watched.look().await;
        assert!(look.fell, "{set_back}");
        assert_eq!(watched.frontier.scan().from(), watched.floor());
        assert!(watched.floor() <= Some(Seq(seq)), "{set_back}");
        assert_eq!(watched.drain().await, ["low"], "{set_back}");
        assert_eq!(watched.next().await, Seq(seq + 1), "{set_back}");
    }
    watched.floor_moves_on().await;
}

/// The look cannot see it.
#[tokio::test]
async fn a_row_of_a_sequence_that_was_set_back_and_forth_between_two_looks_is_found_by_the_sweep() {
    let mut watched = watched().await;
    watched.while_thousands_come_and_go().await;
    watched.look().await;
    watched
        .execute(&format!(
            "SELECT setval('outbox.messages_seq_seq', 5); {}; SELECT setval('outbox.messages_seq_seq', 4000)",
            insert("between")
        ))
        .await;
    assert!(!watched.look().await.fell);
    assert!(watched.drain().await.is_empty());
    assert_eq!(sweep(&mut watched).await, [Seq(6)]);
    assert_eq!(watched.drain().await, ["between"]);
}

/// As a restore of the schema does.
#[tokio::test]
async fn a_watch_of_a_table_that_was_made_anew_is_over_and_the_next_begins_at_the_beginning() {
    let mut watched = watched().await;
    watched.while_thousands_come_and_go().await;
    watched.look().await;
    watched.execute("DROP SCHEMA outbox CASCADE").await;
    let database = Database::new(Settings::new(&watched.outbox.url)).unwrap();
    database.migrate(fresh::DEADLINE).await.unwrap();
    watched.execute(&insert("restored")).await;
    let error = watched.watch.look().await.unwrap_err();
    assert!(matches!(error, Error::Replaced { .. }), "{error}");
    watched.watch_again().await;
    watched.look().await;
    assert_eq!(watched.drain().await, ["restored"]);
    watched.floor_moves_on().await;
}

#[tokio::test]
async fn a_place_far_above_the_sequence_does_not_carry_the_frontier_with_it() {
    let mut watched = watched().await;
    watched.while_thousands_come_and_go().await;
    for limits in [LIMITS, ClaimLimits { rows: 1, ..LIMITS }] {
        let far = 1_000_000_000;
        watched.execute(&insert_at(far, "far")).await;
        watched.look().await;
        assert_eq!(watched.drain_within(limits).await, ["far"]);
        // Those in between, without a look, and with one.
        watched.execute(&insert("near")).await;
        assert_eq!(watched.drain_within(limits).await, ["near"]);
        watched.execute(&insert_at(far, "far")).await;
        assert_eq!(watched.drain_within(limits).await, ["far"]);
        watched.execute(&insert("near")).await;
        watched.look().await;
        assert_eq!(watched.drain_within(limits).await, ["near"]);
    }
    watched.floor_moves_on().await;
}
