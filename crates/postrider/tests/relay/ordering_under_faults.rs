//! Order by key, whatever fails.

use std::time::Duration;

use lapin::Channel;
use lapin::options::ExchangeDeleteOptions;
use lapin::types::FieldTable;
use postrider_testbed::consumer::{bind, declare_exchange};
use postrider_testbed::daemon::{Daemon, DaemonOptions};
use postrider_testbed::producer::{Keys, Producer, ProducerOptions};
use postrider_testbed::{
    Client, PostgresOptions, PostgresServer, Proxy, RabbitOptions, RabbitServer, StopMode,
    wait_until,
};

use crate::lifecycle::wait_until_readyz;
use crate::line::assert_all_in_order;
use crate::stage::{DEADLINE, EXCHANGE, KEY, QUEUE, Stage, rows_of};

const KEYS: usize = 500;
/// A way whose binding is missing for a while.
const LOOSE: &str = "order.loose";
/// An exchange that is missing for a while.
const FLEETING: &str = "fleeting";
/// An exchange that the relays may not write to for a while.
const GUARDED: &str = "guarded";
const USER: &str = "relay";

/// How many messages arrive between one fault and the next.
const BETWEEN: u64 = 400;

struct Faults<'a> {
    stage: &'a Stage,
    rabbit: &'a RabbitServer,
    client: Client,
}

impl Faults<'_> {
    async fn on_channel(&self, work: impl AsyncFnOnce(&Channel)) {
        let connection = self.stage.vhost.connection().await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        work(&channel).await;
        connection.close(0, "done".into()).await.unwrap();
    }

    async fn allow(&self, write: &str) {
        let vhost = &self.stage.vhost.name;
        let set = self.rabbit.set_permissions(USER, vhost, "^$", write, "^$");
        set.await.unwrap();
    }

    /// Waits until keys are blocked and messages parked behind them, and others arrive all the same.
    async fn wait_until_keys_wait(&self, what: &str) {
        wait_until(DEADLINE, what, async || {
            rows_of(&self.client, "blocked_keys").await >= 20
                && rows_of(&self.client, "parked").await >= 20
        })
        .await
        .unwrap();
        self.stage.wait_for_more(BETWEEN / 2).await;
    }

    /// Waits until so few keys are blocked that it is certain that they are let go.
    async fn wait_until_keys_go(&self, what: &str) {
        wait_until(DEADLINE, what, async || {
            rows_of(&self.client, "blocked_keys").await <= 3
        })
        .await
        .unwrap();
    }
}

fn relay(stage: &Stage, name: &str, broker: u16, database: &Proxy) -> DaemonOptions {
    stage
        .options()
        .env(
            "POSTRIDER_DATABASE_URL",
            stage.database.url_for("postgres", database.port()),
        )
        .env(
            "POSTRIDER_BROKER_URL",
            stage.vhost.url_for(USER, USER, broker),
        )
        .env("POSTRIDER_RELAY_NAME", name)
        .env("POSTRIDER_DATABASE_APPLICATION_NAME", name)
        .env("POSTRIDER_RELAY_BATCH_ROWS", "100")
        .env("POSTRIDER_RELAY_CONFIRM_TIMEOUT", "2s")
        .env("POSTRIDER_RETRY_MAX_ATTEMPTS", "1000")
        .env("POSTRIDER_RETRY_INITIAL_DELAY", "100ms")
        .env("POSTRIDER_RETRY_MAX_DELAY", "500ms")
}

/// How many sessions of the relay have a transaction open.
async fn open_claims(client: &Client, name: &str) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND state LIKE 'idle in transaction%'";
    client.query_one(sql, &[&name]).await.unwrap().get(0)
}

/// Pauses the relay while it has a claim open.
async fn pause_in_a_claim(daemon: &Daemon, name: &str, client: &Client) {
    wait_until(DEADLINE, "the relay to be paused in a claim", async || {
        daemon.pause().unwrap();
        if open_claims(client, name).await > 0 {
            return true;
        }
        daemon.resume().unwrap();
        false
    })
    .await
    .unwrap();
}

async fn producers(stage: &Stage) -> Vec<Producer> {
    let ways = [
        (EXCHANGE, KEY),
        (EXCHANGE, LOOSE),
        (FLEETING, KEY),
        (GUARDED, KEY),
    ];
    // Most go the way that always works: the others are to hold them back.
    let routes = (0..6).map(|_| ways[0]).chain(ways);
    let keys = Keys {
        routes: routes
            .map(|(exchange, key)| (exchange.to_owned(), key.to_owned()))
            .collect(),
        ..Keys::new(KEYS)
    };
    let quick = ProducerOptions {
        connections: 6,
        rate: Some(120.0),
        keys: Some(keys),
        ..stage.producer()
    };
    let slow = ProducerOptions {
        connections: 2,
        rate: Some(4.0),
        longest_pause: Duration::from_secs(1),
        rollback_share: 0.3,
        ..quick.clone()
    };
    let mut producers = Vec::new();
    for options in [quick, slow] {
        producers.push(Producer::start(options, &stage.audit).await.unwrap());
    }
    producers
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_messages_of_one_key_are_first_delivered_in_order_by_three_relays() {
    let (postgres, rabbit) = tokio::join!(
        PostgresServer::start(PostgresOptions::default()),
        RabbitServer::start(RabbitOptions::default())
    );
    let (postgres, rabbit) = (postgres.unwrap(), rabbit.unwrap());
    let stage = Stage::on_servers(&postgres, &rabbit).await;
    rabbit.add_user(USER, USER).await.unwrap();
    let faults = Faults {
        client: stage.sql().await,
        stage: &stage,
        rabbit: &rabbit,
    };
    faults.allow(".*").await;
    faults
        .on_channel(async |channel| {
            bind(channel, QUEUE, EXCHANGE, LOOSE).await.unwrap();
            for exchange in [FLEETING, GUARDED] {
                declare_exchange(channel, exchange).await.unwrap();
                bind(channel, QUEUE, exchange, KEY).await.unwrap();
            }
        })
        .await;
    let _consumer = stage.consumer();
    let to_broker = Proxy::to_port(rabbit.port()).await.unwrap();
    let to_database = Proxy::to_port(postgres.port()).await.unwrap();
    let direct = Proxy::to_port(postgres.port()).await.unwrap();
    let mut killed = Daemon::start(relay(&stage, "killed", rabbit.port(), &direct))
        .await
        .unwrap();
    let paused = Daemon::start(relay(&stage, "paused", rabbit.port(), &direct))
        .await
        .unwrap();
    let cut = Daemon::start(relay(&stage, "cut", to_broker.port(), &to_database))
        .await
        .unwrap();
    let producers = producers(&stage).await;
    stage.wait_for_more(BETWEEN).await;

    // It stays paused until the server has ended its transactions.
    pause_in_a_claim(&paused, "paused", &faults.client).await;
    for _ in 0..3 {
        killed.kill().await.unwrap();
        killed = Daemon::start(relay(&stage, "killed", rabbit.port(), &direct))
            .await
            .unwrap();
        wait_until_readyz(&killed, None).await;
        stage.wait_for_more(BETWEEN).await;
    }
    for _ in 0..3 {
        to_broker.reset_connections();
        stage.wait_for_more(BETWEEN / 2).await;
        to_database.reset_connections();
        stage.wait_for_more(BETWEEN / 2).await;
    }
    wait_until_readyz(&cut, None).await;
    wait_until(DEADLINE, "the server to end its claims", async || {
        open_claims(&faults.client, "paused").await == 0
    })
    .await
    .unwrap();
    stage.wait_for_more(BETWEEN).await;
    paused.resume().unwrap();
    wait_until_readyz(&paused, None).await;

    // Heads that are refused: as unroutable, for want of an exchange, and for want of a right.
    faults
        .on_channel(async |channel| {
            let (queue, nothing) = (QUEUE.into(), FieldTable::default());
            let unbound = channel.queue_unbind(queue, EXCHANGE.into(), LOOSE.into(), nothing);
            unbound.await.unwrap();
        })
        .await;
    faults
        .wait_until_keys_wait("keys to wait for a binding")
        .await;
    faults
        .on_channel(async |channel| bind(channel, QUEUE, EXCHANGE, LOOSE).await.unwrap())
        .await;
    faults
        .wait_until_keys_go("keys to go on when it is bound")
        .await;
    faults
        .on_channel(async |channel| {
            let always = ExchangeDeleteOptions::default();
            channel
                .exchange_delete(FLEETING.into(), always)
                .await
                .unwrap();
        })
        .await;
    faults
        .wait_until_keys_wait("keys to wait for an exchange")
        .await;
    killed.kill().await.unwrap();
    killed = Daemon::start(relay(&stage, "killed", rabbit.port(), &direct))
        .await
        .unwrap();
    faults
        .on_channel(async |channel| {
            declare_exchange(channel, FLEETING).await.unwrap();
            bind(channel, QUEUE, FLEETING, KEY).await.unwrap();
        })
        .await;
    faults
        .wait_until_keys_go("keys to go on when it is declared")
        .await;
    faults.allow(&format!("^(?!{GUARDED}$).*")).await;
    // A channel keeps the permissions it has asked for.
    rabbit
        .close_connections("permissions changed")
        .await
        .unwrap();
    faults
        .wait_until_keys_wait("keys to wait for a right")
        .await;
    pause_in_a_claim(&paused, "paused", &faults.client).await;
    assert!(postgres.terminate_backends("paused%").await.unwrap() > 0);
    stage.wait_for_more(BETWEEN).await;
    paused.resume().unwrap();
    faults.allow(".*").await;
    faults
        .wait_until_keys_go("keys to go on when it is given back")
        .await;

    rabbit.restart().await.unwrap();
    stage.wait_for_more(BETWEEN).await;
    postgres.restart(StopMode::Immediate).await.unwrap();
    stage.wait_for_more(BETWEEN).await;

    Producer::stop_all(producers).await.unwrap();
    assert_all_in_order(&stage).await;
    for daemon in [&killed, &paused, &cut] {
        wait_until_readyz(daemon, None).await;
    }
    let order = stage.audit.order();
    assert!(order.keys > KEYS as u64 / 2, "{order}");
}
