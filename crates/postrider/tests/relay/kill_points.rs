//! The daemon killed at named points of its settle.
//!
//! PostgreSQL is the debugger: a trigger waits for a lock that the test holds, so that the daemon is exactly
//! there, and `pg_locks` tells. The daemon has no hook for it. Its sessions outlive it, since a session
//! that waits for a lock does not look at its socket; so each point ends in two ways: the lock is given up and
//! the session does what it was told before it notices, or the server ends it and rolls back.

use postrider_testbed::consumer::bind;
use postrider_testbed::daemon::Daemon;
use postrider_testbed::{Client, wait_until};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::stage::{DEADLINE, EXCHANGE, QUEUE, Stage, insert, wait_for_rows};

const WORKERS: i64 = 2;
const BATCH_ROWS: u64 = 50;

/// How the sessions end that the daemon left behind.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    /// They go on with what they were sent.
    GoOn,
    /// The server ends them.
    Terminated,
}

struct Breakpoint {
    /// Holds the lock.
    holder: Client,
}

impl Breakpoint {
    /// `trigger` is what comes before EXECUTE. It holds nobody before it is armed.
    async fn set(stage: &Stage, trigger: &str) -> Self {
        let holder = stage.sql().await;
        holder
            .batch_execute(&format!(
                "CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN
                     PERFORM pg_catalog.pg_advisory_xact_lock_shared(4711);
                     RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
                 END $$;
                 CREATE {trigger} EXECUTE FUNCTION public.hold()"
            ))
            .await
            .unwrap();
        Self { holder }
    }

    async fn arm(&self) {
        self.holder
            .batch_execute("SELECT pg_advisory_lock(4711)")
            .await
            .unwrap();
    }

    async fn wait_until_reached(&self, sessions: i64) {
        let what = format!("{sessions} sessions at the trigger");
        wait_until(DEADLINE, &what, async || {
            let waiting: i64 = self
                .holder
                .query_one(
                    "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) \
                     WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted \
                         AND datname = current_database() AND application_name LIKE 'postrider%'",
                    &[],
                )
                .await
                .unwrap()
                .get(0);
            waiting >= sessions
        })
        .await
        .unwrap();
    }

    /// The killed daemon's sessions come to their end, and nobody is held any more.
    async fn lift(&self, ending: Ending) {
        let sessions = "FROM pg_stat_activity WHERE datname = current_database() \
                            AND application_name LIKE 'postrider%'";
        if ending == Ending::Terminated {
            self.holder
                .batch_execute(&format!("SELECT pg_terminate_backend(pid) {sessions}"))
                .await
                .unwrap();
        } else {
            self.holder
                .batch_execute("SELECT pg_advisory_unlock(4711)")
                .await
                .unwrap();
        }
        wait_until(DEADLINE, "the killed daemon's sessions end", async || {
            let left: i64 = self
                .holder
                .query_one(&format!("SELECT count(*) {sessions}"), &[])
                .await
                .unwrap()
                .get(0);
            left == 0
        })
        .await
        .unwrap();
        self.holder
            .batch_execute("SELECT pg_advisory_unlock_all()")
            .await
            .unwrap();
    }
}

/// All three tables in one statement, and so at one moment.
const PLACES: &str = "SELECT id FROM outbox.messages UNION ALL SELECT id FROM outbox.deferred \
                      UNION ALL SELECT id FROM outbox.dead_letters";

/// Looks all the time whether every one of these messages is in exactly one table.
struct Watch {
    stop: CancellationToken,
    task: JoinHandle<u64>,
}

impl Watch {
    async fn over(stage: &Stage, messages: i64) -> Self {
        let client = stage.sql().await;
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let stop = stop.clone();
            async move {
                let mut looks = 0;
                while !stop.is_cancelled() {
                    let row = client
                        .query_one(
                            &format!("SELECT count(*), count(DISTINCT id) FROM ({PLACES}) AS p"),
                            &[],
                        )
                        .await
                        .unwrap();
                    let seen: (i64, i64) = (row.get(0), row.get(1));
                    assert_eq!(seen, (messages, messages), "rows and messages");
                    looks += 1;
                }
                looks
            }
        });
        Self { stop, task }
    }

    /// Panics if it ever was otherwise.
    async fn end(self) {
        self.stop.cancel();
        assert!(self.task.await.unwrap() > 0);
    }
}

/// A daemon for messages that nobody takes, which tries again soon.
async fn daemon(stage: &Stage, max_attempts: i32) -> Daemon {
    let options = stage
        .options()
        .env("POSTRIDER_RELAY_WORKERS", WORKERS.to_string())
        .env("POSTRIDER_RELAY_BATCH_ROWS", BATCH_ROWS.to_string())
        .env("POSTRIDER_RETRY_MAX_ATTEMPTS", max_attempts.to_string())
        .env("POSTRIDER_RETRY_INITIAL_DELAY", "50ms")
        .env("POSTRIDER_RETRY_MAX_DELAY", "500ms");
    Daemon::start(options).await.unwrap()
}

/// What has not arrived is still in the outbox.
async fn assert_nothing_is_gone(stage: &Stage, client: &Client) {
    // In this order: what is delivered in between is missing in neither.
    let outstanding = stage.audit.report().lost;
    let rows = client.query(PLACES, &[]).await.unwrap();
    let kept: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    for id in outstanding {
        let delivered = || !stage.audit.report().lost.contains(&id);
        assert!(kept.contains(&id) || delivered(), "{id} is nowhere");
    }
}

/// How many rows others have locked: what they have in flight.
async fn locked(client: &Client) -> u64 {
    let rows: i64 = client
        .query_one(
            "SELECT (SELECT count(*) FROM outbox.messages) - (SELECT count(*) FROM \
                 (SELECT seq FROM outbox.messages FOR UPDATE SKIP LOCKED) AS free)",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    rows.unsigned_abs()
}

/// Kills the daemon with a batch of each worker at the trigger: how many messages were in flight then, and how
/// many of all were repeated.
async fn kill_at(stage: &Stage, point: &Breakpoint, ending: Ending) -> (u64, u64) {
    let client = stage.sql().await;
    let repeats = stage.audit.report().duplicates;
    let held = daemon(stage, 20).await;
    // The connection has proved itself when the batches come that are held.
    stage.produce(100).await;
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
    let before = stage.audit.delivery_count();
    point.arm().await;
    stage.place_backlog(400, 100).await;
    point.wait_until_reached(WORKERS).await;
    let in_flight = locked(&client).await;
    assert!(in_flight > BATCH_ROWS, "{in_flight}");
    assert!(in_flight <= WORKERS.unsigned_abs() * BATCH_ROWS);
    stage
        .audit
        .wait_for_deliveries(before + in_flight, DEADLINE)
        .await
        .unwrap();
    held.kill().await.unwrap();
    assert_nothing_is_gone(stage, &client).await;
    point.lift(ending).await;
    assert_nothing_is_gone(stage, &client).await;
    let next = daemon(stage, 20).await;
    stage.assert_healed(&next).await;
    (in_flight, stage.audit.report().duplicates - repeats)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_publish_and_before_settle_the_relay_repeats_at_most_what_was_in_flight() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let trigger = "TRIGGER hold BEFORE DELETE ON outbox.messages FOR EACH STATEMENT";
    let point = Breakpoint::set(&stage, trigger).await;
    let (in_flight, repeats) = kill_at(&stage, &point, Ending::Terminated).await;
    assert_eq!(repeats, in_flight);
    // What it had sent already may well be a COMMIT, too.
    let (in_flight, repeats) = kill_at(&stage, &point, Ending::GoOn).await;
    assert!(repeats <= in_flight, "{repeats}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_settle_and_before_commit_the_relay_repeats_at_most_what_was_in_flight() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let trigger = "CONSTRAINT TRIGGER hold AFTER DELETE ON outbox.messages \
                   DEFERRABLE INITIALLY DEFERRED FOR EACH ROW";
    let point = Breakpoint::set(&stage, trigger).await;
    let (in_flight, repeats) = kill_at(&stage, &point, Ending::Terminated).await;
    assert_eq!(repeats, in_flight);
    // The server was told to commit, and does.
    let (_, repeats) = kill_at(&stage, &point, Ending::GoOn).await;
    assert_eq!(repeats, 0);
}

/// The key of the message that the trigger holds, in the midst of others that nobody takes.
const HELD: &str = "nobody.held";

async fn no_row_is_lost_or_doubled_by_a_kill_at(event: &str, max_attempts: i32, ending: Ending) {
    const MESSAGES: i32 = 40;
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let mut ids = Vec::new();
    for number in 0..MESSAGES {
        let key = if number == MESSAGES / 2 {
            HELD
        } else {
            "nobody"
        };
        ids.push(insert(&client, EXCHANGE, key, b"moving").await);
    }
    let row = if event.contains("DELETE") {
        "OLD"
    } else {
        "NEW"
    };
    let trigger = format!("TRIGGER hold {event} FOR EACH ROW WHEN ({row}.routing_key = '{HELD}')");
    let point = Breakpoint::set(&stage, &trigger).await;
    point.arm().await;
    let watch = Watch::over(&stage, MESSAGES.into()).await;
    let held = daemon(&stage, max_attempts).await;
    point.wait_until_reached(1).await;
    held.kill().await.unwrap();
    point.lift(ending).await;
    let next = daemon(&stage, max_attempts).await;
    if max_attempts < 100 {
        wait_for_rows(&client, "dead_letters", MESSAGES.into()).await;
        // Those are dead letters by as many attempts as they have, no more and no less.
        let others: i64 = client
            .query_one(
                "SELECT count(*) FROM outbox.dead_letters WHERE attempts <> $1",
                &[&max_attempts],
            )
            .await
            .unwrap()
            .get(0);
        assert_eq!(others, 0);
        watch.end().await;
    } else {
        wait_for_rows(&client, "deferred", MESSAGES.into()).await;
        watch.end().await;
    }

    let _consumer = stage.consumer();
    stage.audit.committed(ids);
    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    for key in ["nobody", HELD] {
        bind(&channel, QUEUE, EXCHANGE, key).await.unwrap();
    }
    let retried = stage.run(&["dead-letters", "retry", "--all"]);
    assert!(retried.status.success(), "{retried:?}");
    stage.assert_clean().await;
    wait_until(DEADLINE, "no table holds a row", async || {
        client.query(PLACES, &[]).await.unwrap().is_empty()
    })
    .await
    .unwrap();
    assert!(next.is_running());
    // They were returned until then, and are confirmed once.
    assert_eq!(stage.audit.report().duplicates, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_rows_move_the_relay_leaves_each_in_exactly_one_table() {
    for ending in [Ending::Terminated, Ending::GoOn] {
        for (event, max_attempts) in [
            ("BEFORE INSERT ON outbox.deferred", 1_000),
            ("BEFORE UPDATE ON outbox.deferred", 1_000),
            ("BEFORE INSERT ON outbox.dead_letters", 1),
            ("BEFORE DELETE ON outbox.deferred", 2),
            ("BEFORE INSERT ON outbox.dead_letters", 2),
        ] {
            no_row_is_lost_or_doubled_by_a_kill_at(event, max_attempts, ending).await;
        }
    }
}
