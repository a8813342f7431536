//! Slow, stalled and lossy network paths between the relay and its peers, while producers run.

use postrider_testbed::daemon::{Daemon, DaemonOptions};
use postrider_testbed::proxy::{Direction, Proxy};

use crate::lifecycle::wait_until_readyz;
use crate::stage::{DEADLINE, Stage, wait_for_rows};

struct Paths {
    broker: Proxy,
    database: Proxy,
}

impl Paths {
    async fn of(stage: &Stage) -> (Self, DaemonOptions) {
        let paths = Self {
            broker: Proxy::to_port(stage.vhost.port).await.unwrap(),
            database: Proxy::to_port(stage.database.port).await.unwrap(),
        };
        let options = stage
            .options()
            .env(
                "POSTRIDER_BROKER_URL",
                stage.vhost.url_for("guest", "guest", paths.broker.port()),
            )
            .env(
                "POSTRIDER_DATABASE_URL",
                stage.database.url_for("postgres", paths.database.port()),
            )
            .env("POSTRIDER_BROKER_HEARTBEAT", "1s");
        (paths, options)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_network_paths_carry_what_they_can_and_cost_no_message_an_attempt() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let (paths, options) = Paths::of(&stage).await;
    let daemon = Daemon::start(options).await.unwrap();
    let producer = stage.shop(50.0).await;
    stage.wait_for_more(100).await;
    for path in [&paths.broker, &paths.database] {
        // Of the messages alone, fifty a second are more than this.
        path.slow(10_000);
        stage.wait_for_more(300).await;
        path.pass();
        stage.wait_for_more(100).await;
    }
    producer.stop().await.unwrap();
    stage.assert_healed(&daemon).await;
    wait_until_readyz(&daemon, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_gets_through_a_path_on_which_a_batch_takes_longer_than_the_confirm_timeout() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let (paths, options) = Paths::of(&stage).await;
    stage.place_backlog(1_000, 1_000).await;
    // A batch of all would take ten seconds.
    paths.broker.slow(120_000);
    let options = options.env("POSTRIDER_RELAY_CONFIRM_TIMEOUT", "3s");
    let daemon = Daemon::start(options).await.unwrap();
    stage.assert_healed(&daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_gets_through_a_path_on_which_a_batch_takes_longer_than_the_database_may_answer()
{
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let (paths, options) = Paths::of(&stage).await;
    stage.place_backlog(1_050, 4_000).await;
    // A full batch takes forty seconds to be read, and a claim is given up after thirty-five.
    paths.database.slow(100_000);
    let options = options.env("POSTRIDER_RELAY_WORKERS", "1");
    let daemon = Daemon::start(options).await.unwrap();
    // The first claim is given up after thirty-five seconds, and the whole takes forty on such a path.
    let long = DEADLINE * 2;
    stage.audit.wait_until_all_delivered(long).await.unwrap();
    stage.assert_healed(&daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stalls_that_end_by_themselves_lose_nothing_and_cost_no_message_an_attempt() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let (paths, options) = Paths::of(&stage).await;
    let daemon = Daemon::start(options).await.unwrap();
    let producer = stage.shop(300.0).await;
    stage.wait_for_more(200).await;
    for path in [&paths.broker, &paths.database] {
        for direction in [Direction::ToServer, Direction::ToClient, Direction::Both] {
            path.stall(direction);
            // What is held back arrives late, on connections that may have been given up meanwhile.
            let before = producer.committed();
            producer
                .wait_for_committed(before + 900, DEADLINE)
                .await
                .unwrap();
            path.pass();
            stage.wait_for_more(1_000).await;
        }
    }
    producer.stop().await.unwrap();
    stage.assert_healed(&daemon).await;
    wait_until_readyz(&daemon, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_the_network_swallows_lose_nothing_and_cost_no_message_an_attempt() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let (paths, options) = Paths::of(&stage).await;
    let daemon = Daemon::start(options).await.unwrap();
    let producer = stage.shop(200.0).await;
    stage.wait_for_more(200).await;
    for (path, direction, reason) in [
        (&paths.broker, Direction::ToServer, "[\"broker_away\"]"),
        (&paths.broker, Direction::ToClient, "[\"broker_away\"]"),
        // A COMMIT may have been obeyed whose answer never comes.
        (&paths.database, Direction::ToClient, "database_away"),
    ] {
        path.drop_bytes(direction);
        wait_until_readyz(&daemon, Some(reason)).await;
        path.pass();
        // What is left of it are connections on which something is missing.
        stage.wait_for_more(200).await;
        wait_until_readyz(&daemon, None).await;
    }
    producer.stop().await.unwrap();
    stage.assert_healed(&daemon).await;
    wait_for_rows(&stage.sql().await, "messages", 0).await;
}
