//! The servers, what is declared on them, and the network between them and the relays.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use lapin::{
    Channel,
    options::{ExchangeDeleteOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use postrider_testbed::{
    DaemonOptions, PostgresOptions, PostgresServer, Proxy, QueueKind, RabbitOptions, RabbitServer,
    TestDatabase, TestVhost,
    consumer::{bind, declare_exchange, declare_queue},
};

use tokio::time::timeout;

use super::fault::{Peer, RELAYS, STUCK_QUEUES};

/// The exchange that is always there.
pub(crate) const SHOP: &str = "shop";

/// The exchange that is missing at times, its queue and its routing key.
pub(crate) const FLEETING: &str = "fleeting";

/// The exchange that the relays may not write to at times.
pub(crate) const GUARDED: &str = "guarded";

/// The queue that nobody empties at times, and refuses what it has no room for.
pub(crate) const FULL: &str = "full";

/// The queue whose binding is missing at times.
pub(crate) const UNBOUND: &str = "unbound";

/// The queue of scheduled messages.
pub(crate) const LATER: &str = "later";

/// The queue of messages with a key, which come by every exchange.
pub(crate) const KEYED: &str = "keyed";

/// The queue of messages with a key that may be superseded.
pub(crate) const LATEST: &str = "latest";

/// Queues that nothing is ever done to.
pub(crate) const CALM: [&str; 3] = ["calm-1", "calm-2", CALM_CLASSIC];

/// The one of them that is no quorum queue.
const CALM_CLASSIC: &str = "calm-classic";

/// How long one look at the broker, or change to it, may take.
const ADMIN_DEADLINE: Duration = Duration::from_secs(60);

const FULL_LIMIT: i32 = 100;

/// The relays' user, whose rights can be taken away without the consumers'.
const USER: &str = "relay";
const PASSWORD: &str = "relay";

/// A way from producer to consumer.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) exchange: &'static str,
    /// Also the routing key.
    pub(crate) queue: String,
}

/// All routes, each with a queue of its own.
pub(crate) fn routes() -> Vec<Route> {
    let own = [(FLEETING, FLEETING), (GUARDED, GUARDED)];
    let shop = CALM
        .into_iter()
        .chain([FULL, UNBOUND, LATER, KEYED, LATEST]);
    own.into_iter()
        .chain(shop.map(|queue| (SHOP, queue)))
        .map(|(exchange, queue)| (exchange, queue.to_owned()))
        .chain((1..=STUCK_QUEUES).map(|number| (SHOP, stuck(number))))
        .map(|(exchange, queue)| Route { exchange, queue })
        .collect()
}

/// The ways of the messages of one key, which are to come in order whichever they take: three lead to one queue, the others each to one of
/// its own. All but the first are out of order at times.
pub(crate) fn ways_of_keys() -> Vec<(String, String)> {
    let ways = [
        (SHOP, KEYED.to_owned()),
        (SHOP, KEYED.to_owned()),
        (FLEETING, KEYED.to_owned()),
        (GUARDED, KEYED.to_owned()),
        (SHOP, FULL.to_owned()),
        (SHOP, UNBOUND.to_owned()),
        (SHOP, stuck(1)),
    ];
    ways.map(|(exchange, key)| (exchange.to_owned(), key))
        .into()
}

/// A queue whose process is suspended at times.
pub(crate) fn stuck(number: u64) -> String {
    format!("stuck-{number}")
}

/// Both servers, and a proxy for each way to them.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) postgres: PostgresServer,
    pub(crate) rabbit: RabbitServer,
    pub(crate) database: TestDatabase,
    pub(crate) vhost: TestVhost,
    /// Each relay's to the broker and to the database.
    paths: Vec<(Proxy, Proxy)>,
}

impl Stage {
    /// Starts servers and proxies.
    pub(crate) async fn open() -> Result<Self> {
        let (postgres, rabbit) = tokio::try_join!(
            PostgresServer::start(PostgresOptions::default()),
            RabbitServer::start(RabbitOptions::default())
        )?;
        let database = postgres.create_database().await?;
        let vhost = rabbit.create_vhost().await?;
        rabbit.add_user(USER, PASSWORD).await?;
        let mut paths = Vec::new();
        for _ in 0..RELAYS {
            paths.push((
                Proxy::to_port(rabbit.port()).await?,
                Proxy::to_port(postgres.port()).await?,
            ));
        }
        let stage = Self {
            postgres,
            rabbit,
            database,
            vhost,
            paths,
        };
        stage.allow_all().await?;
        stage.declare().await?;
        Ok(stage)
    }

    /// A relay's way to one of its servers; relays count from 1.
    pub(crate) fn path(&self, relay: u64, peer: Peer) -> Result<&Proxy> {
        let (broker, database) = usize::try_from(relay - 1)
            .ok()
            .and_then(|index| self.paths.get(index))
            .with_context(|| format!("there is no relay {relay}"))?;
        Ok(match peer {
            Peer::Broker => broker,
            Peer::Database => database,
        })
    }

    /// How to run a relay. Its time-outs are shorter than the defaults, so that a fault of some seconds outlasts them:
    /// the broker is given up after 10 s of silence, a message after about 15 s of failures of its own.
    pub(crate) fn relay(&self, number: u64, binary: &Path) -> Result<DaemonOptions> {
        let broker = self.path(number, Peer::Broker)?.port();
        let database = self.path(number, Peer::Database)?.port();
        let name = format!("postrider-{number}");
        // An empty file, so that /etc/postrider/postrider.toml is not read.
        Ok(DaemonOptions::new(binary)
            .config("")
            .env(
                "POSTRIDER_DATABASE_URL",
                self.database.url_for("postgres", database),
            )
            .env(
                "POSTRIDER_BROKER_URL",
                self.vhost.url_for(USER, PASSWORD, broker),
            )
            .env("POSTRIDER_RELAY_NAME", &name)
            .env("POSTRIDER_DATABASE_APPLICATION_NAME", &name)
            .env("POSTRIDER_DATABASE_TCP_USER_TIMEOUT", "5s")
            .env("POSTRIDER_BROKER_HEARTBEAT", "5s")
            .env("POSTRIDER_RELAY_BATCH_ROWS", "200")
            .env("POSTRIDER_RELAY_CONFIRM_TIMEOUT", "12s")
            .env("POSTRIDER_RELAY_SHUTDOWN_GRACE", "10s")
            .env("POSTRIDER_RETRY_MAX_ATTEMPTS", "8")
            .env("POSTRIDER_RETRY_INITIAL_DELAY", "500ms")
            .env("POSTRIDER_RETRY_MAX_DELAY", "5s")
            .env("POSTRIDER_LOG_FORMAT", "json"))
    }

    async fn declare(&self) -> Result<()> {
        self.with_channel(async |channel| {
            for exchange in [SHOP, FLEETING, GUARDED] {
                declare_exchange(channel, exchange).await?;
            }
            for route in routes() {
                match route.queue.as_str() {
                    FULL => declare_refusing_queue(channel, FULL).await?,
                    CALM_CLASSIC => {
                        declare_queue(channel, CALM_CLASSIC, QueueKind::Classic).await?;
                    }
                    queue => declare_queue(channel, queue, QueueKind::Quorum).await?,
                }
                bind(channel, &route.queue, route.exchange, &route.queue).await?;
            }
            for exchange in [FLEETING, GUARDED] {
                bind(channel, KEYED, exchange, KEYED).await?;
            }
            Ok(())
        })
        .await
    }

    /// [`FLEETING`] is gone.
    pub(crate) async fn delete_fleeting(&self) -> Result<()> {
        self.with_channel(async |channel| {
            let always = ExchangeDeleteOptions::default();
            Ok(channel.exchange_delete(FLEETING.into(), always).await?)
        })
        .await
    }

    /// [`FLEETING`] is there again, a moment later with its bindings.
    pub(crate) async fn restore_fleeting(&self) -> Result<()> {
        self.with_channel(async |channel| {
            declare_exchange(channel, FLEETING).await?;
            bind(channel, FLEETING, FLEETING, FLEETING).await?;
            bind(channel, KEYED, FLEETING, KEYED).await
        })
        .await
    }

    /// What goes to [`UNBOUND`] is unroutable.
    pub(crate) async fn unbind(&self) -> Result<()> {
        self.with_channel(async |channel| {
            let (queue, nothing) = (UNBOUND.into(), FieldTable::default());
            Ok(channel
                .queue_unbind(queue, SHOP.into(), UNBOUND.into(), nothing)
                .await?)
        })
        .await
    }

    /// Undoes [`unbind`](Self::unbind).
    pub(crate) async fn bind_again(&self) -> Result<()> {
        self.with_channel(async |channel| bind(channel, UNBOUND, SHOP, UNBOUND).await)
            .await
    }

    /// Does something on a connection of the soak's own, not by a proxy.
    async fn with_channel<T>(&self, work: impl AsyncFnOnce(&Channel) -> Result<T>) -> Result<T> {
        let all = async {
            let connection = self.vhost.connection().await?;
            // It lives as long as the connection: dropped before, it would be closed at the same time.
            let channel = connection.create_channel().await?;
            let done = work(&channel).await?;
            connection.close(0, "done".into()).await?;
            Ok(done)
        };
        timeout(ADMIN_DEADLINE, all)
            .await
            .context("the broker did not answer in time")?
    }

    /// RabbitMQ closes the relays' connections. Not the consumers': what a quorum queue has handed out to a consumer that
    /// is gone while the queue is suspended, it requeues behind others, and nothing can be told of the relays' order any more.
    ///
    /// Not waited for: it takes 15 s to end a channel that waits for a suspended queue, and so long the connection does
    /// not say whose it is.
    pub(crate) async fn close_connections(&self) -> Result<()> {
        self.rabbit
            .eval(&format!(
                "[spawn(fun() -> \
                   case rabbit_networking:connection_info(P, [user]) of \
                     [{{user, <<\"{USER}\">>}}] -> rabbit_networking:close_connection(P, \"soak\"); \
                     _ -> other \
                   end \
                 end) || P <- rabbit_networking:local_connections()]."
            ))
            .await?;
        Ok(())
    }

    /// The relays may write to every exchange.
    pub(crate) async fn allow_all(&self) -> Result<()> {
        self.allow(".*").await
    }

    /// The relays may write to every exchange but [`GUARDED`].
    pub(crate) async fn forbid_guarded(&self) -> Result<()> {
        self.allow(&format!("^(?!{GUARDED}$).*")).await
    }

    async fn allow(&self, write: &str) -> Result<()> {
        self.rabbit
            .set_permissions(USER, &self.vhost.name, "^$", write, "^$")
            .await
    }

    /// Messages in all queues, those that are on their way to a consumer left out.
    pub(crate) async fn queued(&self) -> Result<u32> {
        self.with_channel(async |channel| {
            let mut queued = 0;
            for route in routes() {
                let passive = QueueDeclareOptions {
                    passive: true,
                    ..QueueDeclareOptions::default()
                };
                queued += channel
                    .queue_declare(route.queue.as_str().into(), passive, FieldTable::default())
                    .await
                    .with_context(|| format!("could not look at queue {}", route.queue))?
                    .message_count();
            }
            Ok(queued)
        })
        .await
    }
}

async fn declare_refusing_queue(channel: &Channel, name: &str) -> Result<()> {
    let mut arguments = FieldTable::default();
    for (key, value) in [
        ("x-queue-type", AMQPValue::LongString("quorum".into())),
        ("x-max-length", AMQPValue::LongInt(FULL_LIMIT)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ] {
        arguments.insert(key.into(), value);
    }
    channel
        .queue_declare(name.into(), QueueDeclareOptions::durable(), arguments)
        .await
        .with_context(|| format!("could not declare queue {name}"))?;
    Ok(())
}
