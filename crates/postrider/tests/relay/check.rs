//! What `postrider check` says of systems that are well, and of others.

use std::process::{Command, Output};

use postrider_testbed::consumer::declare_exchange;
use postrider_testbed::{Client, PostgresOptions, PostgresServer, shared};
use serde_json::Value;
use uuid::Uuid;

use crate::stage::{EXCHANGE, KEY, QUEUE, Stage, insert, rows};

/// One finding, by what it is of.
struct Findings {
    code: Option<i32>,
    all: Vec<Value>,
}

impl Findings {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            all: serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|error| panic!("{error}: {output:?}")),
        }
    }

    /// Those that are neither ok nor skipped, as `check status`.
    fn bad(&self) -> Vec<String> {
        let bad = self.all.iter().filter(|finding| {
            let status = &finding["status"];
            status == "warning" || status == "failure"
        });
        bad.map(|finding| {
            assert!(finding["action"].is_string(), "{finding}");
            format!(
                "{} {}",
                finding["check"].as_str().unwrap(),
                finding["status"].as_str().unwrap()
            )
        })
        .collect()
    }

    fn message(&self, check: &str) -> &str {
        let found = self.all.iter().find(|finding| finding["check"] == check);
        found.unwrap()["message"].as_str().unwrap()
    }

    fn status(&self, check: &str) -> &str {
        let found = self.all.iter().find(|finding| finding["check"] == check);
        found.unwrap()["status"].as_str().unwrap()
    }

    /// Just these are bad, and the exit code says so.
    #[track_caller]
    fn assert_bad(&self, bad: &[&str]) {
        assert_eq!(self.bad(), bad, "{:#?}", self.all);
        let code = match bad {
            [] => 0,
            some if some.iter().any(|bad| bad.ends_with("failure")) => 1,
            _ => 3,
        };
        assert_eq!(self.code, Some(code));
    }
}

/// The program, without what the build of the tests leaves in the environment: it would be told of.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    command
        .args(arguments)
        .env_remove("POSTRIDER_BUILD_REVISION");
    command
}

impl Stage {
    fn check(&self, variables: &[(&str, &str)]) -> Findings {
        self.check_with(&[], variables)
    }

    fn check_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Findings {
        let arguments = [&["check", "--json"], arguments].concat();
        let urls = [
            ("POSTRIDER_DATABASE_URL", self.database.url.as_str()),
            ("POSTRIDER_BROKER_URL", &self.vhost.url),
        ];
        let mut command = program(&arguments);
        command.envs(urls).envs(variables.iter().copied());
        Findings::of(&command.output().unwrap())
    }

    async fn execute(&self, sql: &str) {
        self.sql().await.batch_execute(sql).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_is_well_nothing_is_complained_of_with_the_least_privilege_and_nothing_is_changed()
 {
    let stage = Stage::new().await;
    let relay = stage.member_of(&["relay"]).await;
    let user = format!("relay-{}", Uuid::now_v7().simple());
    let rabbit = shared::rabbit().await;
    rabbit.add_user(&user, "secret").await.unwrap();
    let write = format!("^({EXCHANGE}|amq\\.default)$");
    rabbit
        .set_permissions(&user, &stage.vhost.name, "^$", &write, "^$")
        .await
        .unwrap();
    let client = stage.sql().await;
    insert(&client, EXCHANGE, KEY, b"x").await;
    insert(&client, "", QUEUE, b"x").await;
    let broker = stage.vhost.url_for(&user, "secret", stage.vhost.port);
    let found = stage.check(&[
        ("POSTRIDER_DATABASE_URL", &relay),
        ("POSTRIDER_BROKER_URL", &broker),
    ]);
    found.assert_bad(&[]);
    assert!(
        found.all.iter().all(|finding| finding["status"] == "ok"),
        "{:#?}",
        found.all
    );
    assert!(found.message("exchanges").contains("all 2"));
    assert!(found.message("exchange_permissions").contains("(2)"));
    assert!(found.message("broker_version").starts_with("RabbitMQ "));
    assert_eq!(rows(&client).await, 2);
    assert_eq!(stage.depth(QUEUE).await, 0);
    let text = program(&["check"])
        .env("POSTRIDER_DATABASE_URL", &stage.database.url)
        .env("POSTRIDER_BROKER_URL", &stage.vhost.url)
        .output()
        .unwrap();
    assert_eq!(text.status.code(), Some(0), "{text:?}");
    let lines = String::from_utf8(text.stdout).unwrap();
    assert_eq!(lines.lines().count(), found.all.len() + 1, "{lines}");
    assert!(
        lines.lines().skip(1).all(|line| line.starts_with("ok  ")),
        "{lines}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_missing_or_older_is_a_failure_and_what_needs_it_is_skipped() {
    let stage = Stage::new().await;
    stage
        .execute(
            "DELETE FROM outbox.postrider_migrations WHERE version = \
             (SELECT max(version) FROM outbox.postrider_migrations)",
        )
        .await;
    let older = stage.check(&[]);
    older.assert_bad(&["schema failure"]);
    assert!(older.message("schema").contains("this program needs"));
    stage.execute("DROP SCHEMA outbox CASCADE").await;
    let missing = stage.check(&[]);
    missing.assert_bad(&["schema failure"]);
    for skipped in ["privileges", "relays", "unroutable"] {
        assert_eq!(missing.status(skipped), "skipped", "{skipped}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_a_role_lacks_are_a_failure_that_names_them() {
    let stage = Stage::new().await;
    let relay = stage.member_of(&["relay"]).await;
    let check = || stage.check(&[("POSTRIDER_DATABASE_URL", &relay)]);
    let role = format!("relay {}", stage.database.name);
    let revoke = format!("REVOKE DELETE ON outbox.messages FROM \"{role}\"");
    stage.execute(&revoke).await;
    let lacking = check();
    lacking.assert_bad(&["privileges failure"]);
    assert!(lacking.message("privileges").contains("DELETE on messages"));
    let revoke = format!("REVOKE USAGE ON SCHEMA outbox FROM \"{role}\"");
    stage.execute(&revoke).await;
    let blind = check();
    blind.assert_bad(&["privileges failure"]);
    assert_eq!(blind.status("schema"), "skipped");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_is_missing_or_forbidden_is_a_failure_where_messages_wait_for_it() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    declare_exchange(&channel, "sealed").await.unwrap();
    let user = format!("relay-{}", Uuid::now_v7().simple());
    let rabbit = shared::rabbit().await;
    rabbit.add_user(&user, "secret").await.unwrap();
    rabbit
        .set_permissions(&user, &stage.vhost.name, "^$", "^(?!sealed)", "^$")
        .await
        .unwrap();
    for exchange in [EXCHANGE, "lost", "sealed"] {
        insert(&client, exchange, KEY, b"x").await;
    }
    stage
        .execute(
            "SELECT outbox.publish('in the future', 'k', '{}', deliver_at => now() + interval '1 day'); \
             INSERT INTO outbox.dead_letters (seq, id, exchange, routing_key, payload_json, headers, supersede, \
                 created_at, attempts, reason, error) \
             SELECT 1000 + n, gen_random_uuid(), 'long gone', 'k', '{}', '{}', false, now(), 1, 'unroutable', '' \
             FROM generate_series(1, 3) AS n",
        )
        .await;
    let broker = stage.vhost.url_for(&user, "secret", stage.vhost.port);
    let found = stage.check(&[
        ("POSTRIDER_BROKER_URL", &broker),
        ("POSTRIDER_RELAY_MAX_MESSAGE_BYTES", "200MiB"),
    ]);
    found.assert_bad(&[
        "exchanges failure",
        "exchanges warning",
        "exchanges failure",
        "exchange_permissions failure",
        "unroutable warning",
        "message_size warning",
    ]);
    let messages: Vec<&str> = found
        .all
        .iter()
        .filter(|finding| finding["check"] == "exchanges")
        .map(|finding| finding["message"].as_str().unwrap())
        .collect();
    for (message, name) in messages.iter().zip(["in the future", "long gone", "lost"]) {
        assert!(message.contains(&format!("'{name}'")), "{message}");
    }
    assert!(found.message("exchange_permissions").contains("'sealed'"));
    assert!(found.message("unroutable").contains("3 messages"));
}

/// A transaction that holds a snapshot until it is dropped.
async fn snapshot(stage: &Stage) -> (Client, i32) {
    let client = stage.sql().await;
    client
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class LIMIT 1")
        .await
        .unwrap();
    let row = client.query_one("SELECT pg_backend_pid()", &[]).await;
    (client, row.unwrap().get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_snapshot_and_a_table_that_is_not_vacuumed_are_warnings() {
    let stage = Stage::new().await;
    let (_reader, pid) = snapshot(&stage).await;
    let arguments = ["--max-transaction-age", "1ms"];
    let old = stage.check_with(&arguments, &[]);
    old.assert_bad(&["open_transactions warning"]);
    let named = format!("session {pid} (postgres");
    assert!(old.message("open_transactions").contains(&named));
    // The relay's role does not see since when it is open.
    let relay = stage.member_of(&["relay"]).await;
    let unseen = stage.check_with(&arguments, &[("POSTRIDER_DATABASE_URL", &relay)]);
    unseen.assert_bad(&[]);
    let message = unseen.message("open_transactions");
    assert!(message.contains("pg_read_all_stats"), "{message}");
    for (table, option) in [
        ("deferred", "toast.autovacuum_enabled"),
        ("parked", "autovacuum_enabled"),
        ("blocked_keys", "autovacuum_enabled"),
    ] {
        stage
            .execute(&format!("ALTER TABLE outbox.{table} SET ({option} = off)"))
            .await;
        let off = stage.check(&[]);
        off.assert_bad(&["autovacuum warning"]);
        assert!(off.message("autovacuum").contains(table));
        stage
            .execute(&format!("ALTER TABLE outbox.{table} RESET ({option})"))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_forgets_or_is_full_and_a_forgotten_transaction_are_told() {
    let server = PostgresServer::start(PostgresOptions {
        config: vec![
            "max_prepared_transactions = 2".to_owned(),
            "autovacuum = off".to_owned(),
        ],
        access: vec!["host all guarded 127.0.0.1/32 scram-sha-256".to_owned()],
        ..PostgresOptions::default()
    })
    .await
    .unwrap();
    let stage = Stage::on_postgres(&server).await;
    stage
        .execute(
            "CREATE ROLE guarded LOGIN SUPERUSER PASSWORD 'right'; CREATE ROLE cramped LOGIN CONNECTION LIMIT 3; \
             ALTER ROLE cramped SET default_transaction_read_only = off",
        )
        .await;
    stage
        .execute(
            "BEGIN; SET LOCAL postrider.notify = 'off'; SELECT outbox.publish('shop', 'k', '{}'); \
             PREPARE TRANSACTION 'order 1042'",
        )
        .await;
    let forgotten = stage.check_with(&["--max-transaction-age", "0s"], &[]);
    forgotten.assert_bad(&["prepared_transactions warning", "autovacuum warning"]);
    assert!(
        forgotten
            .message("prepared_transactions")
            .contains("'order 1042' of postgres")
    );
    let cramped = stage.database.url_for("cramped", stage.database.port);
    let found = stage.check(&[("POSTRIDER_DATABASE_URL", &cramped)]);
    found.assert_bad(&[
        "privileges failure",
        "database_connections failure",
        "autovacuum warning",
    ]);
    let url = stage
        .database
        .url_for("guarded:canary", stage.database.port);
    let refused = stage.check(&[("POSTRIDER_DATABASE_URL", &url)]);
    refused.assert_bad(&["database_connection failure"]);
    let message = refused.message("database_connection");
    assert!(
        message.contains("password authentication failed"),
        "{message}"
    );
    assert!(!format!("{:?}", refused.all).contains("canary"));
    for skipped in ["schema", "privileges", "durability", "relays", "unroutable"] {
        assert_eq!(refused.status(skipped), "skipped", "{skipped}");
    }
    let read_only = format!(
        "ALTER DATABASE {} SET default_transaction_read_only = on",
        stage.database.name
    );
    stage.execute(&read_only).await;
    let standby = stage.check(&[]);
    standby.assert_bad(&["database_connection failure"]);
    assert!(standby.message("database_connection").contains("writes"));
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_are_away_refuse_or_do_not_answer_are_failures_and_the_check_ends() {
    let stage = Stage::new().await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let database = format!("postgres://relay:canary@127.0.0.1:{port}/shop");
    let broker = format!("amqp://relay:canary@127.0.0.1:{port}/");
    let neither = stage.check(&[
        ("POSTRIDER_DATABASE_URL", &database),
        ("POSTRIDER_BROKER_URL", &broker),
    ]);
    neither.assert_bad(&["database_connection failure", "broker_connection failure"]);
    assert!(!format!("{:?}", neither.all).contains("canary"));
    drop(silent);
    let away = stage.check(&[("POSTRIDER_BROKER_URL", &broker)]);
    away.assert_bad(&["broker_connection failure"]);
    assert_eq!(away.status("exchanges"), "skipped");
    let wrong = stage.vhost.url_for("nobody", "canary", stage.vhost.port);
    let refused = stage.check(&[("POSTRIDER_BROKER_URL", &wrong)]);
    refused.assert_bad(&["broker_connection failure"]);
    let message = refused.message("broker_connection");
    assert!(message.contains("refused the login"), "{message}");
    // One node of two is enough to go on.
    let both = format!("{broker},{}", stage.vhost.url);
    let output = program(&["check", "--json"])
        .env("POSTRIDER_DATABASE_URL", &stage.database.url)
        .env("POSTRIDER_BROKER_URLS", both)
        .output();
    Findings::of(&output.unwrap()).assert_bad(&["broker_connection warning"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_configuration_ends_with_78_in_either_form() {
    let stage = Stage::new().await;
    let invalid = stage.check(&[("POSTRIDER_RELAY_WORKERS", "none")]);
    assert_eq!(invalid.code, Some(78));
    assert_eq!(invalid.bad(), ["configuration failure"]);
    assert!(
        invalid
            .message("configuration")
            .contains("POSTRIDER_RELAY_WORKERS")
    );
    let output = program(&["check"])
        .env("POSTRIDER_DATABASE_URL", &stage.database.url)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("POSTRIDER_BROKER_URL"), "{error}");
}
