//! An outbox of its own for one test, in a real database that watches over it.
//!
//! Deferred constraint triggers look at every row that is written or deleted, in the transaction that does
//! it, just before its commit: the message must be in exactly one of the four tables, or be gone from all
//! and in the ledger of what the broker has taken. So this holds at every moment, not only when somebody looks.
//! What does not is noted, with the commit.

use std::time::{Duration, Instant};

use postrider_postgres::{Database, Settings};
use postrider_testbed::shared;
use uuid::Uuid;

/// How long a condition may take to come true on a slow machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The `application_name` of the relay's sessions.
const RELAY: &str = "the relay";

/// The advisory lock at which a settle can be made to stand still.
const SETTLE: &str = "4711, 1";

const AUDIT: &str = "
    CREATE SCHEMA audit;
    CREATE TABLE audit.taken (place bigint GENERATED ALWAYS AS IDENTITY, id uuid NOT NULL);
    CREATE TABLE audit.discarded (id uuid NOT NULL, reason text NOT NULL, attempts integer NOT NULL);
    CREATE INDEX ON audit.taken (id);
    CREATE TABLE audit.violations (id uuid NOT NULL, what text NOT NULL);
    CREATE FUNCTION audit.watch() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        message uuid := CASE WHEN TG_OP = 'DELETE' THEN OLD.id ELSE NEW.id END;
        places bigint := (SELECT count(*) FROM outbox.messages AS m WHERE m.id = message)
            + (SELECT count(*) FROM outbox.parked AS m WHERE m.id = message)
            + (SELECT count(*) FROM outbox.deferred AS m WHERE m.id = message)
            + (SELECT count(*) FROM outbox.dead_letters AS m WHERE m.id = message);
    BEGIN
        IF places > 1 THEN
            INSERT INTO audit.violations VALUES (message, 'in ' || places || ' places');
        ELSIF places = 0 AND NOT EXISTS (SELECT FROM audit.taken AS t WHERE t.id = message)
            AND NOT EXISTS (SELECT FROM audit.discarded AS d WHERE d.id = message) THEN
            INSERT INTO audit.violations VALUES (message, 'gone, and nobody has taken it');
        END IF;
        RETURN NULL;
    END
    $$;
    CREATE CONSTRAINT TRIGGER watch AFTER INSERT OR UPDATE OR DELETE ON outbox.messages
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit.watch();
    CREATE CONSTRAINT TRIGGER watch AFTER INSERT OR UPDATE OR DELETE ON outbox.parked
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit.watch();
    CREATE CONSTRAINT TRIGGER watch AFTER INSERT OR UPDATE OR DELETE ON outbox.deferred
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit.watch();
    CREATE CONSTRAINT TRIGGER watch AFTER INSERT OR UPDATE OR DELETE ON outbox.dead_letters
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit.watch();
";

pub(crate) struct Outbox {
    url: String,
    /// As an application and an operator have it.
    pub(crate) client: tokio_postgres::Client,
}

/// What became of a message that is a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeadLetter {
    pub(crate) id: Uuid,
    pub(crate) reason: String,
    pub(crate) attempts: i32,
}

impl Outbox {
    pub(crate) async fn fresh() -> Self {
        let url = shared::database().await.url;
        let database = Database::new(Settings::new(&url)).unwrap();
        database.migrate(DEADLINE).await.unwrap();
        let client = client(&url).await;
        client.batch_execute(AUDIT).await.unwrap();
        Self { url, client }
    }

    /// Another session.
    pub(crate) async fn session(&self) -> tokio_postgres::Client {
        client(&self.url).await
    }

    /// The database as the relay has it.
    pub(crate) fn database(&self, workers: usize) -> Database {
        let settings = Settings {
            application_name: RELAY.to_owned(),
            connections: workers + 5,
            ..Settings::new(&self.url)
        };
        Database::new(settings).unwrap()
    }

    /// Inserts a message in a transaction of its own.
    pub(crate) async fn insert(&self, exchange: &str, routing_key: &str) -> Uuid {
        self.insert_many(exchange, routing_key, 1).await[0]
    }

    /// Inserts messages in one transaction; their ids in the order of their places.
    pub(crate) async fn insert_many(
        &self,
        exchange: &str,
        key: &str,
        messages: usize,
    ) -> Vec<Uuid> {
        let ids: Vec<Uuid> = (0..messages).map(|_| Uuid::new_v4()).collect();
        let rows: Vec<_> = ids.iter().map(|id| (*id, exchange, key)).collect();
        self.insert_rows(&rows, true).await;
        ids
    }

    /// Inserts messages by ids of the caller's choice, and commits or rolls back.
    pub(crate) async fn insert_rows(&self, rows: &[(Uuid, &str, &str)], commit: bool) {
        let rows: Vec<_> = rows
            .iter()
            .map(|(id, exchange, key)| (*id, *exchange, *key, None))
            .collect();
        self.insert_in_order(&rows, commit).await;
    }

    /// The same, of messages that may have an ordering key.
    pub(crate) async fn insert_in_order(
        &self,
        rows: &[(Uuid, &str, &str, Option<&str>)],
        commit: bool,
    ) {
        self.client.batch_execute("BEGIN").await.unwrap();
        for (id, exchange, routing_key, key) in rows {
            let insert = "INSERT INTO outbox.messages (id, exchange, routing_key, ordering_key, payload_json) \
                          VALUES ($1, $2, $3, $4, '{}')";
            self.client
                .execute(insert, &[id, exchange, routing_key, key])
                .await
                .unwrap();
        }
        let end = if commit { "COMMIT" } else { "ROLLBACK" };
        self.client.batch_execute(end).await.unwrap();
    }

    /// Discards the dead letters that block a key, as an operator would.
    pub(crate) async fn discard_what_blocks(&self) {
        let sql = "WITH gone AS (DELETE FROM outbox.dead_letters WHERE blocks RETURNING id, reason, attempts) \
                   INSERT INTO audit.discarded SELECT id, reason, attempts FROM gone";
        self.client.execute(sql, &[]).await.unwrap();
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// The table the message is in; none when it is gone.
    pub(crate) async fn place(&self, id: Uuid) -> Option<String> {
        let sql = "SELECT 'messages' FROM outbox.messages WHERE id = $1 \
                   UNION ALL SELECT 'parked' FROM outbox.parked WHERE id = $1 \
                   UNION ALL SELECT 'deferred' FROM outbox.deferred WHERE id = $1 \
                   UNION ALL SELECT 'dead_letters' FROM outbox.dead_letters WHERE id = $1";
        let row = self.client.query_opt(sql, &[&id]).await.unwrap();
        row.map(|row| row.get(0))
    }

    pub(crate) async fn attempts(&self, id: Uuid) -> i32 {
        let sql = "SELECT attempts FROM outbox.deferred WHERE id = $1 \
                   UNION ALL SELECT attempts FROM outbox.dead_letters WHERE id = $1";
        self.client.query_one(sql, &[&id]).await.unwrap().get(0)
    }

    /// How often the broker has taken the message.
    pub(crate) async fn taken(&self, id: Uuid) -> i64 {
        let sql = "SELECT count(*) FROM audit.taken WHERE id = $1";
        self.client.query_one(sql, &[&id]).await.unwrap().get(0)
    }

    pub(crate) async fn ids(&self, sql: &str) -> Vec<Uuid> {
        let rows = self.client.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Those that were discarded among them.
    pub(crate) async fn dead_letters(&self) -> Vec<DeadLetter> {
        let sql = "SELECT id, reason, attempts FROM outbox.dead_letters UNION ALL SELECT id, reason, attempts FROM audit.discarded";
        let rows = self.client.query(sql, &[]).await.unwrap();
        let letter = |row: &tokio_postgres::Row| DeadLetter {
            id: row.get(0),
            reason: row.get(1),
            attempts: row.get(2),
        };
        rows.iter().map(letter).collect()
    }

    /// What was at some moment neither in exactly one table nor taken.
    pub(crate) async fn violations(&self) -> Vec<(Uuid, String)> {
        let sql = "SELECT DISTINCT id, what FROM audit.violations";
        let rows = self.client.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// How many messages wait to be delivered.
    pub(crate) async fn waiting(&self) -> i64 {
        self.number(
            "SELECT (SELECT count(*) FROM outbox.messages) + (SELECT count(*) FROM outbox.parked) \
                  + (SELECT count(*) FROM outbox.deferred)",
        )
        .await
    }

    /// The transactions of the relay that are open and idle, by session and beginning.
    pub(crate) async fn open_transactions(&self) -> Vec<(i32, i64)> {
        let sql = "SELECT pid, (extract(epoch FROM xact_start) * 1000000)::bigint FROM pg_stat_activity \
                   WHERE datname = current_database() AND application_name = $1 \
                         AND state LIKE 'idle in transaction%'";
        let rows = self.client.query(sql, &[&RELAY]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// Ends the sessions of the relay, or those in which a transaction is open.
    pub(crate) async fn end_sessions(&self, only_open: bool) -> i64 {
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE datname = current_database() AND application_name LIKE $1 || '%' \
                         AND (NOT $2 OR state LIKE 'idle in transaction%')";
        let row = self
            .client
            .query_one(sql, &[&RELAY, &only_open])
            .await
            .unwrap();
        row.get(0)
    }

    /// Has the transaction that defers the message stand still, until [`Self::let_settle`].
    pub(crate) async fn hold_settle(&self, id: Uuid) {
        let sql = format!(
            "SELECT pg_advisory_lock({SETTLE});
             CREATE FUNCTION audit.stand_still() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_advisory_xact_lock({SETTLE}); RETURN NEW; END $$;
             CREATE TRIGGER stand_still BEFORE INSERT ON outbox.deferred FOR EACH ROW
                 WHEN (NEW.id = '{id}') EXECUTE FUNCTION audit.stand_still()"
        );
        self.client.batch_execute(&sql).await.unwrap();
    }

    /// Waits until a transaction stands still.
    pub(crate) async fn settle_held(&self) {
        let sql = format!(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND (classid, objid) = ({SETTLE}) AND NOT granted \
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        );
        until("a settle stands still", async || {
            self.number(&sql).await == 1
        })
        .await;
    }

    /// No transaction stands still any more.
    pub(crate) async fn let_settle(&self) {
        let sql = format!("SELECT pg_advisory_unlock({SETTLE})");
        self.client.batch_execute(&sql).await.unwrap();
    }

    /// Whether somebody has locked a message.
    pub(crate) async fn any_locked(&self) -> bool {
        self.number(
            "SELECT (SELECT count(*) FROM outbox.messages) + (SELECT count(*) FROM outbox.deferred) \
                  - (SELECT count(*) FROM (SELECT FROM outbox.messages FOR UPDATE SKIP LOCKED) AS m) \
                  - (SELECT count(*) FROM (SELECT FROM outbox.deferred FOR UPDATE SKIP LOCKED) AS d)",
        )
        .await
            != 0
    }

    /// Does what no relay does: the watching triggers do not see it.
    pub(crate) async fn unwatched(&self, sql: &str) {
        let sql = format!("BEGIN; SET LOCAL session_replication_role = replica; {sql}; COMMIT");
        self.client.batch_execute(&sql).await.unwrap();
    }
}

async fn client(url: &str) -> tokio_postgres::Client {
    let connected = tokio_postgres::connect(url, tokio_postgres::NoTls).await;
    let (client, connection) = connected.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    client
}

/// Waits until the condition holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
