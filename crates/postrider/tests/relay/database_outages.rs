//! Faults of the database while producers run: nothing is lost, no message is charged an attempt, and
//! delivery goes on by itself.

use postrider_testbed::consumer::bind;
use postrider_testbed::daemon::Daemon;
use postrider_testbed::{
    Client, PostgresOptions, PostgresServer, StopMode, TestDatabase, wait_until,
};

use crate::lifecycle::wait_until_readyz;
use crate::stage::{DEADLINE, EXCHANGE, QUEUE, Stage, insert, wait_for_rows};

const WORKERS: u64 = 2;
const BATCH_ROWS: u64 = 50;
/// So much that every worker is in the midst of it when the fault comes.
const BACKLOG: i32 = 20_000;

async fn own_database(config: &[&str]) -> (PostgresServer, Stage) {
    let config = config.iter().map(|line| (*line).to_owned()).collect();
    let server = PostgresServer::start(PostgresOptions {
        config,
        ..PostgresOptions::default()
    })
    .await
    .unwrap();
    let stage = Stage::on_postgres(&server).await;
    (server, stage)
}

async fn small_batches(stage: &Stage) -> Daemon {
    let options = stage
        .options()
        .env("POSTRIDER_RELAY_WORKERS", WORKERS.to_string())
        .env("POSTRIDER_RELAY_BATCH_ROWS", BATCH_ROWS.to_string());
    Daemon::start(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_the_database_ends_while_the_relay_drains_repeat_at_most_what_was_in_flight()
{
    const ROUNDS: u64 = 10;
    let (server, stage) = own_database(&[]).await;
    let _consumer = stage.consumer();
    // More than ten rounds can drain: the relay is in the middle of it each time.
    stage.place_backlog(BACKLOG, 100).await;
    let daemon = small_batches(&stage).await;
    for _ in 0..ROUNDS {
        stage.wait_for_more(300).await;
        // What arrives may have been confirmed before the last time, and the relay be about to connect.
        wait_until(DEADLINE, "sessions to end", async || {
            server.terminate_backends("postrider%").await.unwrap() > 0
        })
        .await
        .unwrap();
    }
    stage.wait_for_more(300).await;
    server.restart(StopMode::Immediate).await.unwrap();
    stage.assert_healed(&daemon).await;
    wait_until_readyz(&daemon, None).await;
    for event in ["database_lost", "database_connected", "listener_back"] {
        daemon.wait_for_log(event, DEADLINE).await.unwrap();
    }
    let report = stage.audit.report();
    let in_flight = (ROUNDS + 1) * WORKERS * BATCH_ROWS;
    assert!(report.duplicates <= in_flight, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_comes_back_as_a_standby_is_waited_for_until_it_is_promoted() {
    let (server, stage) = own_database(&[]).await;
    let _consumer = stage.consumer();
    let daemon = small_batches(&stage).await;
    let producer = stage.shop(300.0).await;
    stage.place_backlog(BACKLOG, 100).await;
    stage.wait_for_more(300).await;
    server.restart_as_standby().await.unwrap();
    daemon
        .wait_for_log("does not accept writes", DEADLINE)
        .await
        .unwrap();
    wait_until_readyz(&daemon, Some("[\"database_away\"]")).await;
    assert_eq!(daemon.http("/livez").await.unwrap().0, 200);
    server.promote().await.unwrap();
    stage.wait_for_more(300).await;
    wait_until_readyz(&daemon, None).await;
    producer.stop().await.unwrap();
    stage.assert_healed(&daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_log_has_no_room_on_its_disk_loses_nothing_and_costs_no_attempt() {
    let (server, stage) = own_database(&[]).await;
    let _consumer = stage.consumer();
    let daemon = small_batches(&stage).await;
    let producer = stage.shop(300.0).await;
    stage.place_backlog(BACKLOG, 100).await;
    stage.wait_for_more(300).await;
    let disk = server.fill_log_disk().await.unwrap();
    // It panics at the next commit, and again when it recovers.
    wait_until(DEADLINE, "the server is down", async || {
        let log = server.log();
        log.matches("No space left on device").count() >= 3
    })
    .await
    .unwrap();
    wait_until_readyz(&daemon, Some("[\"database_away\"]")).await;
    assert_eq!(daemon.http("/livez").await.unwrap().0, 200);
    disk.free().unwrap();
    wait_until(DEADLINE, "the server is back", async || {
        // It tries to recover again and again, or gives up, by version.
        if !server.is_running() {
            server.start_again().await.unwrap();
        }
        stage.database.client().await.is_ok()
    })
    .await
    .unwrap();
    stage.wait_for_more(300).await;
    wait_until_readyz(&daemon, None).await;
    producer.stop().await.unwrap();
    stage.assert_healed(&daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_messages_that_find_no_room_on_the_disk_stay_uncharged_and_hold_no_other_up() {
    const STUCK: i64 = 30;
    let (server, stage) = own_database(&[]).await;
    let _consumer = stage.consumer();
    let file: String = stage
        .sql()
        .await
        .query_one("SELECT pg_relation_filepath('outbox.deferred')", &[])
        .await
        .unwrap()
        .get(0);
    server.stop(StopMode::Fast).await.unwrap();
    let disk = server.fill_disk_of_table(&file).unwrap();
    server.start_again().await.unwrap();
    let client = stage.sql().await;
    // They share their batch with others.
    stage.place_backlog(10, 100).await;
    let mut stuck = Vec::new();
    for _ in 0..STUCK {
        stuck.push(insert(&client, EXCHANGE, "nobody", b"stuck").await);
    }
    stage.place_backlog(10, 100).await;
    let daemon = small_batches(&stage).await;
    let producer = stage.shop(300.0).await;
    let line = daemon.wait_for_log("not_moved", DEADLINE).await.unwrap();
    assert!(line.contains("No space left on device"), "{line}");
    // Twice: also after they were tried again.
    for _ in 0..2 {
        let skip = daemon.log_lines().len();
        daemon
            .wait_for_log_after(skip, "not_moved", DEADLINE)
            .await
            .unwrap();
        stage.wait_for_more(300).await;
    }
    producer.stop().await.unwrap();
    stage.assert_clean().await;
    wait_for_rows(&client, "messages", STUCK).await;
    assert_eq!(stage.audit.report().duplicates, 0);

    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    bind(&channel, QUEUE, EXCHANGE, "nobody").await.unwrap();
    disk.free().unwrap();
    // Its sessions have the file of the full disk open.
    server.terminate_backends("postrider%").await.unwrap();
    stage.audit.committed(stuck);
    stage.assert_healed(&daemon).await;
}

/// A role for the relay that, unlike a superuser, limits bind.
async fn relay_role(client: &Client, database: &TestDatabase) -> String {
    let role = format!("relay_of_{}", database.name);
    client
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN;
             GRANT USAGE ON SCHEMA outbox TO {role};
             GRANT ALL ON ALL TABLES IN SCHEMA outbox TO {role};
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA outbox TO {role}"
        ))
        .await
        .unwrap();
    role
}

/// How many connections a role may have, from now on; those it has are ended.
async fn limit(client: &Client, role: &str, connections: i32) {
    client
        .batch_execute(&format!(
            "ALTER ROLE {role} CONNECTION LIMIT {connections};
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
        ))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_role_may_open_no_connection_says_so_and_goes_on_when_it_may() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let client = stage.sql().await;
    let role = relay_role(&client, &stage.database).await;
    limit(&client, &role, 0).await;
    let url = stage.database.url_for(&role, stage.database.port);
    let options = stage.options().env("POSTRIDER_DATABASE_URL", url);
    let daemon = Daemon::start(options).await.unwrap();
    let producer = stage.shop(300.0).await;
    let said = format!("too many connections for role \"{role}\" (SQLSTATE 53300)");
    let line = daemon
        .wait_for_log("database_lost", DEADLINE)
        .await
        .unwrap();
    assert!(line.contains(&said), "{line}");
    wait_until_readyz(&daemon, Some("[\"database_away\"]")).await;
    limit(&client, &role, -1).await;
    stage.wait_for_more(300).await;
    wait_until_readyz(&daemon, None).await;

    stage.place_backlog(BACKLOG, 100).await;
    stage.wait_for_more(300).await;
    let skip = daemon.log_lines().len();
    limit(&client, &role, 0).await;
    daemon
        .wait_for_log_after(skip, &said, DEADLINE)
        .await
        .unwrap();
    wait_until_readyz(&daemon, Some("[\"database_away\"]")).await;
    limit(&client, &role, -1).await;
    stage.wait_for_more(300).await;
    producer.stop().await.unwrap();
    stage.assert_healed(&daemon).await;
    wait_until_readyz(&daemon, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_with_fewer_connections_than_it_has_use_for_goes_on_and_floods_no_log() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let client = stage.sql().await;
    let role = relay_role(&client, &stage.database).await;
    // Two workers, what measures, what watches, and what listens.
    limit(&client, &role, 2).await;
    let url = stage.database.url_for(&role, stage.database.port);
    let options = stage
        .options()
        .env("POSTRIDER_DATABASE_URL", url)
        .env("POSTRIDER_RELAY_BATCH_ROWS", BATCH_ROWS.to_string());
    stage.place_backlog(BACKLOG, 100).await;
    let daemon = Daemon::start(options).await.unwrap();
    stage.assert_clean().await;
    let said = daemon.log_lines();
    let said = said.iter().filter(|line| line.contains("53300")).count();
    assert!((1..=10).contains(&said), "said {said} times");
    limit(&client, &role, -1).await;
    stage.assert_healed(&daemon).await;
    wait_until_readyz(&daemon, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_a_free_connection_is_waited_for_at_the_start_and_in_the_middle() {
    let (server, stage) = own_database(&["max_connections = 20"]).await;
    let _consumer = stage.consumer();
    let client = stage.sql().await;
    let role = relay_role(&client, &stage.database).await;
    client
        .batch_execute("CREATE ROLE greedy LOGIN")
        .await
        .unwrap();
    let producer = stage.shop(300.0).await;
    producer.wait_for_committed(100, DEADLINE).await.unwrap();
    let greedy = stage.database.url_for("greedy", stage.database.port);
    let mut taken = Vec::new();
    let take_all = async |taken: &mut Vec<Client>| {
        while let Ok(connection) = Client::connect(&greedy).await {
            taken.push(connection);
        }
    };
    take_all(&mut taken).await;
    let url = stage.database.url_for(&role, stage.database.port);
    let options = stage.options().env("POSTRIDER_DATABASE_URL", url);
    let daemon = Daemon::start(options).await.unwrap();
    let line = daemon
        .wait_for_log("database_lost", DEADLINE)
        .await
        .unwrap();
    assert!(line.contains("SQLSTATE 53300"), "{line}");
    wait_until_readyz(&daemon, Some("database_away")).await;
    taken.clear();
    stage.wait_for_more(300).await;
    wait_until_readyz(&daemon, None).await;

    let skip = daemon.log_lines().len();
    // Until the greedy were quicker than the relay each time.
    wait_until(DEADLINE, "the relay has no connection", async || {
        take_all(&mut taken).await;
        server.terminate_backends("postrider%").await.unwrap() == 0
    })
    .await
    .unwrap();
    daemon
        .wait_for_log_after(skip, "SQLSTATE 53300", DEADLINE)
        .await
        .unwrap();
    wait_until_readyz(&daemon, Some("[\"database_away\"]")).await;
    let before = producer.committed();
    producer
        .wait_for_committed(before + 300, DEADLINE)
        .await
        .unwrap();
    taken.clear();
    stage.wait_for_more(300).await;
    wait_until_readyz(&daemon, None).await;
    producer.stop().await.unwrap();
    stage.assert_healed(&daemon).await;
}
