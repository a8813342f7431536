//! Confirms that came after the claim of their messages had ended.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::time::Duration;

use fresh::settling::{places, settle_whole};
use fresh::{DEADLINE, LIMITS, Outbox, client, outbox, until};
use postrider_core::{Origin, Reason, Seq};
use postrider_postgres::{ClaimFrom, ClaimLimits, Dead, Retry, Settlement};
use uuid::Uuid;

async fn ids(outbox: &Outbox) -> Vec<(Seq, Uuid)> {
    let rows = outbox
        .client
        .query("SELECT seq, id FROM outbox.messages ORDER BY seq", &[])
        .await
        .unwrap();
    rows.iter()
        .map(|row| (Seq(row.get(0)), row.get(1)))
        .collect()
}

fn retry(seq: i64) -> Retry {
    Retry {
        seq: Seq(seq),
        after: Duration::from_secs(3600),
        attempts: 0,
        reason: Reason::ConfirmTimeout,
        error: "no confirm".to_owned(),
    }
}

/// Six messages; 3 and 4 are deferred, 5 and 6 given up.
async fn spread() -> (Outbox, Vec<(Seq, Uuid)>) {
    let outbox = outbox().await;
    outbox.insert(6).await;
    let ids = ids(&outbox).await;
    let claim = outbox.claim(Origin::Messages).await;
    let settlement = Settlement {
        retry: vec![retry(3), retry(4)],
        dead: [5, 6]
            .map(|seq| Dead {
                seq: Seq(seq),
                attempts: 5,
                reason: Reason::Unroutable,
                error: "no queue".to_owned(),
            })
            .to_vec(),
        ..Settlement::default()
    };
    settle_whole(claim, &settlement).await;
    assert_eq!(places(&outbox).await, "1,2|3,4|5,6");
    (outbox, ids)
}

#[tokio::test]
async fn a_message_confirmed_late_is_deleted_wherever_it_waits_unless_it_was_given_up() {
    let (outbox, ids) = spread().await;
    assert_eq!(outbox.database.delete_confirmed(&[]).await.unwrap(), 0);
    let confirmed = [ids[4], ids[0], ids[2], (Seq(77), Uuid::nil()), ids[0]];
    let deleted = outbox.database.delete_confirmed(&confirmed).await.unwrap();
    assert_eq!(deleted, 2);
    assert_eq!(places(&outbox).await, "2|4|5,6");
    let again = outbox.database.delete_confirmed(&confirmed).await.unwrap();
    assert_eq!(again, 0);
}

/// After a failover to a standby that lags, or a restored backup, the sequence hands out places again.
#[tokio::test]
async fn another_message_at_the_place_of_a_confirmed_one_is_not_deleted() {
    let (outbox, ids) = spread().await;
    let confirmed: Vec<_> = ids.iter().map(|(seq, _)| (*seq, Uuid::nil())).collect();
    let deleted = outbox.database.delete_confirmed(&confirmed).await.unwrap();
    assert_eq!(deleted, 0);
    // Nor by the id of a neighbour.
    let crossed = [
        (ids[0].0, ids[1].1),
        (ids[1].0, ids[0].1),
        (ids[2].0, ids[3].1),
    ];
    let deleted = outbox.database.delete_confirmed(&crossed).await.unwrap();
    assert_eq!(deleted, 0);
    assert_eq!(places(&outbox).await, "1,2|3,4|5,6");
}

#[tokio::test]
async fn a_late_confirm_waits_for_nobody_and_leaves_what_is_locked() {
    let (outbox, ids) = spread().await;
    outbox
        .client
        .batch_execute("UPDATE outbox.deferred SET due_at = clock_timestamp() WHERE seq = 3")
        .await
        .unwrap();
    let one = ClaimLimits { rows: 1, ..LIMITS };
    let fresh = outbox.claim_within(one, Origin::Messages).await;
    let due = outbox.claim_within(one, Origin::Deferred).await;
    assert_eq!((fresh.len(), due.len()), (1, 1));
    let deleted = outbox.database.delete_confirmed(&ids).await.unwrap();
    assert_eq!(deleted, 2);
    assert_eq!(places(&outbox).await, "1|3|5,6");
    fresh.release().await.unwrap();
    due.release().await.unwrap();
    let deleted = outbox.database.delete_confirmed(&ids).await.unwrap();
    assert_eq!(deleted, 2);
    assert_eq!(places(&outbox).await, "||5,6");
}

/// The trigger holds the deletion up after it has looked at `messages`. The default isolation level of the
/// database would give both looks one snapshot.
#[tokio::test]
async fn a_message_that_is_deferred_while_its_late_confirm_is_noted_is_found_in_its_new_place() {
    let outbox = outbox().await;
    outbox.insert(1).await;
    let ids = ids(&outbox).await;
    outbox
        .client
        .batch_execute(&format!(
            "ALTER DATABASE {} SET default_transaction_isolation = 'repeatable read'; \
             CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 IF current_query() LIKE '%free%' THEN PERFORM pg_advisory_xact_lock(7); END IF; RETURN NULL; \
             END $$; \
             CREATE TRIGGER hold AFTER DELETE ON outbox.messages FOR EACH STATEMENT EXECUTE FUNCTION hold()",
            outbox.name
        ))
        .await
        .unwrap();
    let database =
        postrider_postgres::Database::new(postrider_postgres::Settings::new(&outbox.url)).unwrap();
    let claim = database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    assert_eq!(claim.len(), 1);

    let gate = client(&outbox.url).await;
    gate.batch_execute("SELECT pg_advisory_lock(7)")
        .await
        .unwrap();
    let late = tokio::spawn({
        let database = database.clone();
        async move { database.delete_confirmed(&ids).await }
    });
    until("it has looked at messages", || async {
        let waiting: i64 = outbox
            .client
            .query_one(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted \
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                &[],
            )
            .await
            .unwrap()
            .get(0);
        waiting == 1
    })
    .await;
    let settlement = Settlement {
        retry: vec![retry(1)],
        ..Settlement::default()
    };
    settle_whole(claim, &settlement).await;
    assert_eq!(places(&outbox).await, "|1|");
    gate.batch_execute("SELECT pg_advisory_unlock(7)")
        .await
        .unwrap();
    let deleted = tokio::time::timeout(DEADLINE, late).await.unwrap().unwrap();
    assert_eq!(deleted.unwrap(), 1);
    assert_eq!(places(&outbox).await, "||");
}
