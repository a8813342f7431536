//! Lanes begin above what an open transaction has written, and claims see by themselves when it has ended.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;
mod watched;

use std::collections::{HashMap, HashSet};

use fresh::keyed::insert_keys;
use fresh::settling::settle_whole;
use fresh::{LIMITS, Outbox, client, done, outbox, outbox_at};
use postrider_core::{Floor, Lane, Lanes, OrderedPlan, Passable, Seq, TransactionId, Writer};
use postrider_postgres::{ClaimLimits, LookFor, OutboxLook, OutboxWatch, WaitingLanes};
use postrider_testbed::{PostgresOptions, PostgresServer, StopMode};

/// As much as there is of each lane.
const ALL: ClaimLimits = ClaimLimits {
    rows: 256 * 1000,
    ..LIMITS
};

/// A relay that claims from every lane.
struct Relay {
    outbox: Outbox,
    watch: OutboxWatch,
    floor: Floor<Seq>,
    ids: HashMap<Writer, TransactionId>,
    lanes: Lanes,
}

impl Relay {
    async fn new(outbox: Outbox) -> Self {
        Self {
            watch: outbox.database.watch_outbox().await.unwrap(),
            outbox,
            floor: Floor::new(),
            ids: HashMap::new(),
            lanes: Lanes::default(),
        }
    }

    async fn look(&mut self) -> OutboxLook {
        let look = self.watch.look().await.unwrap();
        let writers = look.writers.iter().copied();
        assert!(!self.floor.looked(look.next, writers, true).fell);
        self.ids = look.ids.clone();
        look
    }

    /// Claims what is there and delivers it: the places, in the order of the claim.
    async fn claim(&mut self) -> Vec<i64> {
        let known = Passable::new(&self.floor, &self.ids);
        let generation = self.lanes.generation();
        let starts = self.lanes.starts(None);
        let claim = self.outbox.database.claim_lanes(ALL, &starts, &[], None);
        let claim = claim.await.unwrap();
        assert_eq!(claim.locked, 256);
        let sent = OrderedPlan::new(claim.rows, &HashSet::new()).send;
        let sent: Vec<Seq> = sent.into_iter().map(|message| message.seq).collect();
        if sent.is_empty() {
            claim.claim.release().await.unwrap();
        } else {
            settle_whole(claim.claim, &done(&sent)).await;
        }
        let sent = sent.into_iter().map(|seq| seq.0).collect();
        for lane in claim.lanes {
            self.lanes.seen(lane.lane, lane.until, &known, generation);
        }
        sent
    }

    /// Messages come and go in every lane, with looks in between.
    async fn while_messages_come_and_go(&mut self) {
        for _ in 0..4 {
            let insert = "INSERT INTO outbox.messages (exchange, routing_key, payload_json, ordering_key) \
                          SELECT 'e', 'k', '1', 'key-' || n FROM generate_series(1, 1000) AS n";
            self.outbox.client.batch_execute(insert).await.unwrap();
            self.look().await;
            assert_eq!(self.claim().await.len(), 1000);
            assert!(self.claim().await.is_empty());
        }
    }

    /// Where the lanes begin, the lowest, and the ids of the writers that were passed.
    fn begins(&self) -> (Option<Seq>, Vec<TransactionId>) {
        let starts = self.lanes.starts(None);
        let lowest = starts.lanes.iter().map(|start| start.from).min().unwrap();
        let mut passed: Vec<_> = starts.passed.iter().map(|p| p.transaction).collect();
        passed.dedup();
        (lowest, passed)
    }

    async fn next(&mut self) -> Seq {
        self.watch.look().await.unwrap().next
    }
}

async fn relay() -> Relay {
    Relay::new(outbox().await).await
}

/// Of the top-level transaction.
async fn id(client: &tokio_postgres::Client) -> TransactionId {
    let sql = "SELECT pg_current_xact_id()::text::bigint";
    TransactionId(client.query_one(sql, &[]).await.unwrap().get(0))
}

/// Inserts a message of this key in the transaction of the session; its place.
async fn insert(client: &tokio_postgres::Client, key: &str) -> i64 {
    let sql = "INSERT INTO outbox.messages (exchange, routing_key, payload_json, ordering_key) \
               VALUES ('e', 'k', '1', $1) RETURNING seq";
    client.query_one(sql, &[&key]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_look_shows_the_id_of_each_writer_that_has_one_however_many_savepoints_it_has_made() {
    let mut relay = relay().await;
    let (plain, nested, empty) = (
        client(&relay.outbox.url).await,
        client(&relay.outbox.url).await,
        client(&relay.outbox.url).await,
    );
    plain.batch_execute("BEGIN").await.unwrap();
    insert(&plain, "a").await;
    // The savepoints' ids are higher than the transaction's, and one is left open.
    nested.batch_execute("BEGIN; SAVEPOINT one").await.unwrap();
    insert(&nested, "b").await;
    nested
        .batch_execute("RELEASE one; SAVEPOINT two")
        .await
        .unwrap();
    insert(&nested, "b").await;
    empty
        .batch_execute("BEGIN; LOCK TABLE outbox.messages IN ROW EXCLUSIVE MODE")
        .await
        .unwrap();
    let look = relay.look().await;
    assert_eq!(look.writers.len(), 3);
    let shown: HashSet<TransactionId> = look.ids.values().copied().collect();
    let expected = HashSet::from([id(&plain).await, id(&nested).await]);
    assert_eq!(shown, expected);
}

/// Hazard: every claim walked over all that had been deleted since the oldest open transaction that had written to the outbox: 0.45 of the
/// rate behind 200,000 messages.
#[tokio::test]
async fn lanes_begin_above_what_an_open_transaction_has_written_and_its_messages_are_seen_by_the_claim_that_sees_what_follows_them()
 {
    let mut relay = relay().await;
    relay.look().await;
    let late = client(&relay.outbox.url).await;
    late.batch_execute("BEGIN").await.unwrap();
    let first = insert(&late, "a").await;
    relay.while_messages_come_and_go().await;
    let (from, passed) = relay.begins();
    assert!(from > Some(Seq(first + 2000)), "{from:?}");
    assert_eq!(passed, [id(&late).await]);
    // The application's next transaction on the key waited for this one; no look comes in between.
    late.batch_execute("COMMIT").await.unwrap();
    let second = insert(&late, "a").await;
    assert_eq!(relay.claim().await, [first, second]);
    // Asked for once more, until a look shows that it is gone.
    assert!(relay.claim().await.is_empty());
    relay.look().await;
    assert!(relay.claim().await.is_empty());
    let next = relay.next().await;
    assert_eq!(relay.begins(), (Some(next), Vec::new()));
}

#[tokio::test]
async fn of_several_open_transactions_the_end_of_a_later_one_is_seen_while_an_earlier_one_stays_open()
 {
    let mut relay = relay().await;
    relay.look().await;
    let (early, late) = (
        client(&relay.outbox.url).await,
        client(&relay.outbox.url).await,
    );
    early.batch_execute("BEGIN").await.unwrap();
    let of_early = insert(&early, "early").await;
    relay.while_messages_come_and_go().await;
    late.batch_execute("BEGIN; SAVEPOINT one").await.unwrap();
    insert(&late, "gone").await;
    late.batch_execute("ROLLBACK TO one; SAVEPOINT two")
        .await
        .unwrap();
    let of_late = insert(&late, "late").await;
    late.batch_execute("RELEASE two").await.unwrap();
    relay.while_messages_come_and_go().await;
    assert_eq!(relay.begins().1, [id(&early).await, id(&late).await]);
    late.batch_execute("COMMIT").await.unwrap();
    assert_eq!(relay.claim().await, [of_late]);
    relay.while_messages_come_and_go().await;
    let (from, passed) = relay.begins();
    assert!(from > Some(Seq(of_late)), "{from:?}");
    assert_eq!(passed, [id(&early).await]);
    early.batch_execute("COMMIT").await.unwrap();
    assert_eq!(relay.claim().await, [of_early]);
}

#[tokio::test]
async fn a_transaction_that_rolls_back_leaves_nothing_behind_it_and_lanes_go_on() {
    let mut relay = relay().await;
    relay.look().await;
    let gone = client(&relay.outbox.url).await;
    gone.batch_execute("BEGIN").await.unwrap();
    insert(&gone, "a").await;
    relay.while_messages_come_and_go().await;
    gone.batch_execute("ROLLBACK").await.unwrap();
    assert!(relay.claim().await.is_empty());
    relay.while_messages_come_and_go().await;
    assert!(relay.begins().1.is_empty());
}

/// A look at each lane by itself, which is taken where a few lanes have very many messages, goes the same way.
#[tokio::test]
async fn a_look_at_each_lane_sees_what_a_transaction_that_was_passed_has_left() {
    let mut relay = relay().await;
    relay.look().await;
    let late = client(&relay.outbox.url).await;
    late.batch_execute("BEGIN").await.unwrap();
    let of_late = insert(&late, "late").await;
    relay.while_messages_come_and_go().await;
    let found = async || {
        let starts = relay.lanes.starts(None);
        let found = relay
            .outbox
            .database
            .waiting_lanes(None, LookFor::FirstThenEach, &starts);
        found.await.unwrap()
    };
    // Of each lane with its first row.
    let first_rows = |found: &WaitingLanes| {
        let every: Vec<u8> = found.firsts.iter().map(|(lane, _)| lane.0).collect();
        assert_eq!(every, (0..=u8::MAX).collect::<Vec<_>>());
        let with_row = |(lane, first): &(Lane, Option<Seq>)| first.map(|first| (*lane, first));
        let firsts: HashMap<Lane, Seq> = found.firsts.iter().filter_map(with_row).collect();
        let lanes: HashSet<Lane> = found.lanes.iter().copied().collect();
        assert_eq!(lanes, firsts.keys().copied().collect());
        firsts
    };
    insert_keys(&relay.outbox.client, &["hot"; 1100]).await;
    let hot = first_rows(&found().await);
    assert_eq!(hot.len(), 1);
    late.batch_execute("COMMIT").await.unwrap();
    let mut both = first_rows(&found().await);
    both.retain(|lane, first| hot.get(lane) != Some(first));
    assert_eq!(both.into_values().collect::<Vec<_>>(), [Seq(of_late)]);
}

#[tokio::test]
async fn a_prepared_transaction_is_passed_like_any_other_and_after_a_restart_of_the_server_too() {
    let server = PostgresServer::start(PostgresOptions {
        config: vec!["max_prepared_transactions = 2".to_owned()],
        ..PostgresOptions::default()
    })
    .await
    .unwrap();
    let test = server.create_database().await.unwrap();
    let mut relay = Relay::new(outbox_at(&test.url, &test.name).await).await;
    relay.look().await;
    let prepares = client(&test.url).await;
    let begin = "BEGIN; SET LOCAL postrider.notify = 'off'";
    prepares.batch_execute(begin).await.unwrap();
    let first = insert(&prepares, "a").await;
    let id = id(&prepares).await;
    relay.while_messages_come_and_go().await;
    let prepare = "PREPARE TRANSACTION 'late'";
    prepares.batch_execute(prepare).await.unwrap();
    relay.while_messages_come_and_go().await;
    let (from, passed) = relay.begins();
    assert!(from > Some(Seq(first + 5000)), "{from:?}");
    assert_eq!(passed, [id]);

    server.restart(StopMode::Immediate).await.unwrap();
    relay.watch.look().await.unwrap_err();
    relay = Relay::new(outbox_at(&test.url, &test.name).await).await;
    relay.while_messages_come_and_go().await;
    let (from, passed) = relay.begins();
    assert!(from > Some(Seq(first + 5000)), "{from:?}");
    assert_eq!(passed, [id]);
    let commits = client(&test.url).await;
    let commit = "COMMIT PREPARED 'late'";
    commits.batch_execute(commit).await.unwrap();
    let second = insert(&commits, "a").await;
    assert_eq!(relay.claim().await, [first, second]);
}

/// An id in the locks has 32 bits; from four thousand million transactions on, those of a snapshot have more.
#[tokio::test]
async fn where_ids_were_given_more_than_once_each_is_that_of_its_epoch() {
    let server = PostgresServer::start(PostgresOptions::default())
        .await
        .unwrap();
    server.restart_in_epoch(3).await.unwrap();
    let test = server.create_database().await.unwrap();
    let mut relay = Relay::new(outbox_at(&test.url, &test.name).await).await;
    relay.look().await;
    let late = client(&test.url).await;
    late.batch_execute("BEGIN").await.unwrap();
    let first = insert(&late, "a").await;
    let id = id(&late).await;
    assert!(id.0 > 3 << 32, "{id:?}");
    assert_eq!(
        relay.look().await.ids.into_values().collect::<Vec<_>>(),
        [id]
    );
    relay.while_messages_come_and_go().await;
    assert_eq!(relay.begins().1, [id]);
    late.batch_execute("COMMIT").await.unwrap();
    let second = insert(&late, "a").await;
    assert_eq!(relay.claim().await, [first, second]);
}
