//! What the daemon does while a server is away, and when it comes back.

use postrider_testbed::daemon::Daemon;
use postrider_testbed::proxy::{Direction, Proxy};
use postrider_testbed::{
    PostgresOptions, PostgresServer, RabbitOptions, RabbitServer, StopMode, shared,
};

use crate::lifecycle::wait_until_readyz;
use crate::stage::{DEADLINE, EXCHANGE, KEY, Stage, insert, rows};

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_may_be_started_before_its_servers() {
    let postgres = PostgresServer::start(PostgresOptions::default())
        .await
        .unwrap();
    let stage = Stage::on_postgres(&postgres).await;
    let proxy = Proxy::to_port(stage.vhost.port).await.unwrap();
    proxy.cut();
    postgres.stop(StopMode::Fast).await.unwrap();
    let url = stage.vhost.url_for("guest", "guest", proxy.port());
    let daemon = Daemon::start(stage.options().env("POSTRIDER_BROKER_URL", url))
        .await
        .unwrap();
    // Each peer is told of by itself, whichever comes first.
    wait_until_readyz(&daemon, Some("[\"database_away\",\"broker_away\"]")).await;
    proxy.pass();
    wait_until_readyz(&daemon, Some("[\"database_away\"]")).await;
    proxy.cut();
    wait_until_readyz(&daemon, Some("[\"database_away\",\"broker_away\"]")).await;
    postgres.start_again().await.unwrap();
    wait_until_readyz(&daemon, Some("[\"broker_away\"]")).await;
    // Also a database that is lost while the workers wait for the broker.
    postgres.stop(StopMode::Fast).await.unwrap();
    wait_until_readyz(&daemon, Some("[\"database_away\",\"broker_away\"]")).await;
    postgres.start_again().await.unwrap();
    proxy.pass();
    wait_until_readyz(&daemon, None).await;
    let connections = shared::rabbit()
        .await
        .ctl(&["list_connections", "client_properties"])
        .await
        .unwrap();
    assert!(connections.contains("postrider "), "{connections}");
    for event in ["listening session is lost", "listening session is back"] {
        daemon.wait_for_log(event, DEADLINE).await.unwrap();
    }
    let _consumer = stage.consumer();
    stage.produce(100).await;
    stage.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_broker_urls_are_tried_in_turn() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let proxies = [
        Proxy::to_port(stage.vhost.port).await.unwrap(),
        Proxy::to_port(stage.vhost.port).await.unwrap(),
    ];
    let urls = proxies
        .each_ref()
        .map(|proxy| stage.vhost.url_for("guest", "guest", proxy.port()));
    proxies[0].cut();
    let options = stage
        .options()
        .env("POSTRIDER_BROKER_URL", "")
        .env("POSTRIDER_BROKER_URLS", urls.join(","));
    let daemon = Daemon::start(options).await.unwrap();
    stage.produce(50).await;
    stage.assert_clean().await;
    proxies[0].pass();
    proxies[1].cut();
    stage.produce(50).await;
    stage.assert_clean().await;
    assert!(daemon.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_broker_is_away_nothing_is_claimed_and_no_transaction_is_open() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let proxy = Proxy::to_port(stage.vhost.port).await.unwrap();
    let url = stage.vhost.url_for("guest", "guest", proxy.port());
    let daemon = Daemon::start(stage.options().env("POSTRIDER_BROKER_URL", url))
        .await
        .unwrap();
    wait_until_readyz(&daemon, None).await;
    proxy.cut();
    wait_until_readyz(&daemon, Some("broker_away")).await;
    stage.produce(200).await;
    let client = stage.sql().await;
    // Every row can be locked by others.
    let free: i64 = client
        .query_one(
            "SELECT count(*) FROM (SELECT seq FROM outbox.messages FOR UPDATE SKIP LOCKED) AS free",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(free, rows(&client).await);
    assert_eq!(daemon.http("/livez").await.unwrap().0, 200);
    proxy.pass();
    stage.assert_clean().await;
    wait_until_readyz(&daemon, None).await;
    for event in ["broker is away", "broker connected"] {
        daemon.wait_for_log(event, DEADLINE).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_alarm_stops_claims_shows_in_readiness_and_sigterm_exits_with_0_under_it() {
    let broker = RabbitServer::start(RabbitOptions::default()).await.unwrap();
    let stage = Stage::on_rabbit(&broker).await;
    let daemon = stage.daemon().await;
    wait_until_readyz(&daemon, None).await;
    broker.set_memory_alarm(true).await.unwrap();
    let client = stage.sql().await;
    let id = insert(&client, EXCHANGE, KEY, b"under alarm").await;
    stage.audit.committed([id]);
    wait_until_readyz(&daemon, Some("broker_blocked")).await;
    assert_eq!(
        daemon.metric("postrider_broker_blocked", &[]).await,
        Some(1.0)
    );
    assert_eq!(daemon.http("/livez").await.unwrap().0, 200);
    daemon.sigterm().unwrap();
    let status = daemon.wait_exit(DEADLINE).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    assert_eq!(rows(&client).await, 1);

    let daemon = stage.daemon().await;
    wait_until_readyz(&daemon, Some("broker_blocked")).await;
    broker.set_memory_alarm(false).await.unwrap();
    wait_until_readyz(&daemon, None).await;
    let _consumer = stage.consumer();
    stage.produce(200).await;
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
    daemon
        .wait_for_log("takes messages again", DEADLINE)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn network_paths_that_stall_in_one_direction_or_are_cut_heal_by_themselves() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let broker = Proxy::to_port(stage.vhost.port).await.unwrap();
    let database = Proxy::to_port(stage.database.port).await.unwrap();
    let options = stage
        .options()
        .env(
            "POSTRIDER_BROKER_URL",
            stage.vhost.url_for("guest", "guest", broker.port()),
        )
        .env(
            "POSTRIDER_DATABASE_URL",
            stage.database.url_for("postgres", database.port()),
        )
        .env("POSTRIDER_BROKER_HEARTBEAT", "1s")
        .env("POSTRIDER_RELAY_CONFIRM_TIMEOUT", "2s")
        .env("POSTRIDER_DATABASE_TCP_USER_TIMEOUT", "2s");
    let daemon = Daemon::start(options).await.unwrap();
    let producer = stage.busy_shop().await;
    let flowing = async || {
        stage.wait_for_more(200).await;
    };
    flowing().await;
    for (proxy, reason) in [(&broker, "broker_away"), (&database, "database_away")] {
        for direction in [Direction::ToClient, Direction::ToServer] {
            proxy.stall(direction);
            wait_until_readyz(&daemon, Some(reason)).await;
            proxy.reset_connections();
            proxy.pass();
            flowing().await;
        }
        proxy.cut();
        wait_until_readyz(&daemon, Some(reason)).await;
        proxy.pass();
        flowing().await;
    }
    producer.stop().await.unwrap();
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_database_turns_read_only_waits_and_goes_on_when_it_takes_writes() {
    let postgres = PostgresServer::start(PostgresOptions::default())
        .await
        .unwrap();
    let stage = Stage::on_postgres(&postgres).await;
    let _consumer = stage.consumer();
    let daemon = stage.daemon().await;
    wait_until_readyz(&daemon, None).await;
    let client = stage.sql().await;
    let read_only = async |on: &str| {
        client
            .batch_execute(&format!(
                "SET default_transaction_read_only = off; ALTER DATABASE \"{}\" SET default_transaction_read_only = {on}",
                stage.database.name
            ))
            .await
            .unwrap();
        postgres.terminate_backends("postrider%").await.unwrap();
    };
    read_only("on").await;
    wait_until_readyz(&daemon, Some("database_away")).await;
    let id = insert(&client, EXCHANGE, KEY, b"meanwhile").await;
    stage.audit.committed([id]);
    read_only("off").await;
    stage.assert_clean().await;
    wait_until_readyz(&daemon, None).await;
}
