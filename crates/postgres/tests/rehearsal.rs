//! Whether the database lets a claim's rows go is known before anything of them is sent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::time::Duration;

use fresh::keyed::{done, park};
use fresh::outbox;
use fresh::settling::{retry, settle_whole, text};
use postrider_core::Origin;
use postrider_postgres::{Error, ErrorKind, Settlement};

/// A trigger that runs this for the message 2 when it is deleted.
fn trigger(kind: &str, body: &str) -> String {
    format!(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$; \
         CREATE {kind} FOR EACH ROW WHEN (OLD.seq = 2) EXECUTE FUNCTION keep()"
    )
}

#[tokio::test]
async fn what_the_database_would_keep_is_told_beforehand_and_the_claim_stays_as_it_was() {
    let raise = "RAISE EXCEPTION 'not this one';";
    let cases = [
        trigger("TRIGGER t BEFORE DELETE ON outbox.messages", raise),
        trigger("TRIGGER t AFTER DELETE ON outbox.messages", raise),
        trigger(
            "CONSTRAINT TRIGGER t AFTER DELETE ON outbox.messages DEFERRABLE INITIALLY DEFERRED",
            raise,
        ),
        trigger(
            "TRIGGER t BEFORE DELETE ON outbox.messages",
            "RETURN NULL;",
        ),
        "CREATE TABLE public.sent (seq bigint REFERENCES outbox.messages); INSERT INTO public.sent VALUES (2)".to_owned(),
        "CREATE TABLE public.sent (seq bigint REFERENCES outbox.messages DEFERRABLE INITIALLY DEFERRED); \
         INSERT INTO public.sent VALUES (2)"
            .to_owned(),
    ];
    for keeps in &cases {
        let outbox = outbox().await;
        outbox.insert(3).await;
        outbox.client.batch_execute(keeps).await.unwrap();
        let mut claim = outbox.claim(Origin::Messages).await;
        let error = claim.rehearse().await.unwrap_err();
        assert!(error.is_refusal(), "{keeps}: {error}");
        assert_eq!(error.kind(), ErrorKind::Query, "{keeps}: {error}");
        assert_eq!(outbox.count().await, 3, "{keeps}");
        assert!(outbox.claim(Origin::Messages).await.is_empty(), "{keeps}");
        // What is not refused can be settled still.
        settle_whole(claim, &done(&[1, 3])).await;
        let mut claim = outbox.claim(Origin::Messages).await;
        assert_eq!(claim.len(), 1, "{keeps}");
        claim.rehearse().await.unwrap_err();
        claim.release().await.unwrap();
        assert_eq!(outbox.claim(Origin::Messages).await.len(), 1, "{keeps}");
    }
}

#[tokio::test]
async fn a_silent_refusal_says_how_many_rows_would_stay() {
    let outbox = outbox().await;
    outbox.insert(3).await;
    let keeps = trigger("TRIGGER t BEFORE DELETE ON outbox.messages", "RETURN NULL;");
    outbox.client.batch_execute(&keeps).await.unwrap();
    let mut claim = outbox.claim(Origin::Messages).await;
    let error = claim.rehearse().await.unwrap_err();
    let (named, deleted) = (3, 2);
    assert!(
        matches!(error, Error::Kept { named: n, deleted: d } if (n, d) == (named, deleted)),
        "{error}"
    );
    assert!(error.to_string().contains("were not sent"), "{error}");
}

#[tokio::test]
async fn a_rehearsal_that_goes_well_changes_nothing_wherever_the_rows_are() {
    let outbox = outbox().await;
    // a: its head is due, and the second is parked; b: free.
    outbox.insert_keys(&["a", "a", "b"]).await;
    let claim = outbox.claim_lanes().await;
    let deferred = Settlement {
        retry: vec![retry(1, Duration::ZERO)],
        ..Settlement::default()
    };
    settle_whole(claim.claim, &deferred).await;
    let claim = outbox.claim_lanes().await;
    settle_whole(claim.claim, &park(&[2])).await;
    let before = (outbox.where_all_are().await, outbox.blocked().await);
    assert_eq!(before, ("3|2|1|".to_owned(), "a:1:1".to_owned()));

    let mut messages = outbox.claim_lanes().await.claim;
    let mut head = outbox.claim(Origin::Deferred).await;
    for claim in [&mut messages, &mut head] {
        claim.rehearse().await.unwrap();
        claim.rehearse().await.unwrap();
    }
    // What blocks the key is free: another one may lock it.
    let blocked = "SELECT ordering_key FROM outbox.blocked_keys FOR UPDATE NOWAIT";
    assert_eq!(text(&outbox, blocked).await, "a");
    assert_eq!(
        (outbox.where_all_are().await, outbox.blocked().await),
        before
    );
    settle_whole(messages, &done(&[3])).await;
    settle_whole(head, &done(&[1])).await;

    let mut parked = outbox.claim_parked().await.claim;
    assert_eq!(parked.len(), 1);
    parked.rehearse().await.unwrap();
    assert_eq!(outbox.where_all_are().await, "|2||");
    settle_whole(parked, &done(&[2])).await;
    assert_eq!(outbox.where_all_are().await, "|||");
}

#[tokio::test]
async fn an_empty_claim_has_nothing_to_rehearse() {
    let outbox = outbox().await;
    let mut claim = outbox.claim(Origin::Messages).await;
    claim.rehearse().await.unwrap();
}
