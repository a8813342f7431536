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
use postrider_core::{Origin, Seq};
use postrider_postgres::{Claim, Error, ErrorKind, Refusal, Settlement};

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
        let refusal = refusal(&mut claim).await;
        assert_eq!(refusal.kept, [Seq(2)], "{keeps}");
        assert!(refusal.others_go, "{keeps}");
        let error = refusal.error;
        assert_eq!(error.kind(), ErrorKind::Query, "{keeps}: {error}");
        assert!(outbox.claim(Origin::Messages).await.is_empty(), "{keeps}");
        // What is not refused can be settled still.
        settle_whole(claim, &done(&[1, 3])).await;
        let mut claim = outbox.claim(Origin::Messages).await;
        assert_eq!(claim.len(), 1, "{keeps}");
        assert!(!self::refusal(&mut claim).await.others_go, "{keeps}");
        claim.release().await.unwrap();
        assert_eq!(outbox.claim(Origin::Messages).await.len(), 1, "{keeps}");
    }
}

async fn refusal(claim: &mut Claim) -> Refusal {
    claim.rehearse().await.unwrap().unwrap()
}

async fn goes(claim: &mut Claim) -> bool {
    claim.rehearse().await.unwrap().is_none()
}

#[tokio::test]
async fn a_silent_refusal_is_told_as_well() {
    let outbox = outbox().await;
    outbox.insert(3).await;
    let keeps = trigger("TRIGGER t BEFORE DELETE ON outbox.messages", "RETURN NULL;");
    outbox.client.batch_execute(&keeps).await.unwrap();
    let mut claim = outbox.claim(Origin::Messages).await;
    let error = refusal(&mut claim).await.error;
    let (named, deleted) = (1, 0);
    assert!(
        matches!(error, Error::Kept { named: n, deleted: d } if (n, d) == (named, deleted)),
        "{error}"
    );
    assert!(error.to_string().contains("were not sent"), "{error}");
}

#[tokio::test]
async fn rows_that_are_kept_are_told_from_those_that_go_whatever_is_said() {
    let outbox = outbox().await;
    outbox.insert(300).await;
    let keeps = "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN RAISE EXCEPTION 'kept' USING ERRCODE = 'insufficient_privilege'; END $$; \
                 CREATE TRIGGER t BEFORE DELETE ON outbox.messages FOR EACH ROW WHEN (OLD.seq IN (1, 2, 150, 300)) \
                 EXECUTE FUNCTION keep()";
    outbox.client.batch_execute(keeps).await.unwrap();
    let mut claim = outbox.claim(Origin::Messages).await;
    let refusal = refusal(&mut claim).await;
    assert_eq!(refusal.kept, [1, 2, 150, 300].map(Seq));
    assert!(refusal.others_go);
    assert_eq!(refusal.error.kind(), ErrorKind::Privilege);
}

/// A transaction's rows lie side by side, and the first are tried first.
#[tokio::test]
async fn many_rows_that_are_kept_in_front_of_others_are_not_taken_for_all() {
    let outbox = outbox().await;
    outbox.insert(300).await;
    let keeps = "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; \
                 CREATE TRIGGER t BEFORE DELETE ON outbox.messages FOR EACH ROW WHEN (OLD.seq <= 100) EXECUTE FUNCTION keep()";
    outbox.client.batch_execute(keeps).await.unwrap();
    let mut claim = outbox.claim(Origin::Messages).await;
    let refusal = refusal(&mut claim).await;
    assert!(refusal.others_go);
    assert!(!refusal.kept.is_empty());
    assert!(refusal.kept.iter().all(|seq| seq.0 <= 100), "{refusal:?}");
}

/// Each that is refused is an error in the server's log.
#[tokio::test]
async fn where_all_rows_are_kept_few_deletions_are_tried() {
    let outbox = outbox().await;
    outbox.insert(300).await;
    // What a sequence gave is not taken back.
    let keeps = "CREATE SEQUENCE public.tries; \
                 CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN PERFORM nextval('public.tries'); RAISE EXCEPTION 'kept'; END $$; \
                 CREATE TRIGGER t BEFORE DELETE ON outbox.messages FOR EACH STATEMENT EXECUTE FUNCTION keep()";
    outbox.client.batch_execute(keeps).await.unwrap();
    let mut claim = outbox.claim(Origin::Messages).await;
    assert!(!refusal(&mut claim).await.others_go);
    let tries = text(&outbox, "SELECT last_value FROM public.tries").await;
    assert_eq!(tries, "24");
    claim.release().await.unwrap();
    assert_eq!(outbox.claim(Origin::Messages).await.len(), 300);
}

/// A rule keeps rows without a word.
#[tokio::test]
async fn what_a_rule_keeps_is_told_as_well() {
    let outbox = outbox().await;
    outbox.insert(3).await;
    let keeps = "CREATE RULE keep AS ON DELETE TO outbox.messages DO INSTEAD NOTHING";
    outbox.client.batch_execute(keeps).await.unwrap();
    let mut claim = outbox.claim(Origin::Messages).await;
    let refusal = refusal(&mut claim).await;
    assert_eq!(refusal.kept, [1, 2, 3].map(Seq));
    assert!(!refusal.others_go);
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
        // The second time all is there again.
        assert!(goes(claim).await);
        assert!(goes(claim).await);
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
    assert!(goes(&mut parked).await);
    assert!(goes(&mut parked).await);
    assert_eq!(outbox.where_all_are().await, "|2||");
    settle_whole(parked, &done(&[2])).await;
    assert_eq!(outbox.where_all_are().await, "|||");
}

#[tokio::test]
async fn an_empty_claim_has_nothing_to_rehearse() {
    let outbox = outbox().await;
    let mut claim = outbox.claim(Origin::Messages).await;
    assert!(goes(&mut claim).await);
}
