//! The servers and what the demo makes on them.
//!
//! On servers of somebody's own everything has a name of this run alone, the outbox's schema too: an outbox that
//! is there already is neither migrated nor drained, and the demo's messages meet no other relay.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, anyhow};
use lapin::{Connection, ConnectionProperties};
use postrider_testbed::{
    DaemonOptions, PostgresOptions, PostgresServer, QueueKind, RabbitOptions, RabbitServer,
    consumer::{bind, declare_exchange, declare_queue},
};
use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::NoTls;
use uuid::Uuid;

use super::settings::Servers;

const CONNECT_DEADLINE: Duration = Duration::from_secs(15);
const CLOSE_DEADLINE: Duration = Duration::from_secs(30);

/// What an order's message is sent with.
pub(crate) const ROUTING_KEY: &str = "order.placed";

/// Where the demo plays.
pub(crate) struct Stage {
    /// Holds a password when the server is somebody's own.
    pub(crate) database_url: String,
    /// Holds a password when the server is somebody's own.
    pub(crate) broker_url: String,
    /// Schema of the outbox.
    pub(crate) outbox: String,
    /// Schema of the shop.
    pub(crate) shop: String,
    pub(crate) exchange: String,
    pub(crate) queue: String,
    /// Which database that is, for people.
    pub(crate) database: String,
    /// Which broker that is, for people.
    pub(crate) broker: String,
    private: Option<(PostgresServer, RabbitServer)>,
}

impl Stage {
    /// Starts private servers, or reaches the given ones. Makes nothing on them yet.
    pub(crate) async fn open(servers: &Servers) -> Result<Self> {
        match servers {
            Servers::Private => Self::private().await,
            Servers::Given { database, broker } => Self::given(database, broker).await,
        }
    }

    async fn private() -> Result<Self> {
        let (postgres, rabbit) = tokio::try_join!(
            PostgresServer::start(PostgresOptions::default()),
            RabbitServer::start(RabbitOptions::default())
        )?;
        let database = postgres.create_database().await?;
        let version = rabbit
            .eval("rabbit_misc:version().")
            .await
            .unwrap_or_default();
        Ok(Self {
            database: format!(
                "{}, private, on port {}",
                postgres_version(&database.url).await?,
                postgres.port()
            ),
            broker: format!(
                "RabbitMQ {}, private, on port {}",
                version.trim_matches('"'),
                rabbit.port()
            ),
            database_url: database.url,
            broker_url: rabbit.create_vhost().await?.url,
            outbox: "outbox".into(),
            shop: "shop".into(),
            exchange: "shop".into(),
            queue: "orders".into(),
            private: Some((postgres, rabbit)),
        })
    }

    async fn given(database_url: &str, broker_url: &str) -> Result<Self> {
        let name = format!("postrider_demo_{}", Uuid::new_v4().simple());
        // 47 bytes: the outbox's schema may have 48.
        let stage = Self {
            database: format!(
                "{}, yours, in schemas of this demo's own",
                postgres_version(database_url).await?
            ),
            broker: "RabbitMQ, yours, with an exchange and a queue of this demo's own".into(),
            database_url: database_url.to_owned(),
            broker_url: default_vhost(broker_url).to_owned(),
            outbox: name.clone(),
            shop: format!("{name}_shop"),
            exchange: name.clone(),
            queue: name,
            private: None,
        };
        drop(stage.broker_connection().await?);
        Ok(stage)
    }

    /// How to run a daemon here, whatever is configured on this machine.
    pub(crate) fn daemon_options(&self, binary: &Path) -> DaemonOptions {
        // An empty file, so that /etc/postrider/postrider.toml is not read.
        DaemonOptions::new(binary)
            .config("")
            .env("POSTRIDER_DATABASE_URL", &self.database_url)
            .env("POSTRIDER_DATABASE_SCHEMA", &self.outbox)
            .env("POSTRIDER_BROKER_URL", &self.broker_url)
            // As the demo's own connections: somebody else's servers may be on another machine.
            .env("POSTRIDER_DATABASE_TLS_MODE", "disable")
            .env("POSTRIDER_BROKER_TLS_MODE", "disable")
            .env("POSTRIDER_RELAY_NAME", "demo")
            .env("POSTRIDER_RELAY_OUTBOX", &self.outbox)
    }

    /// A durable topic exchange, and a durable quorum queue that gets all orders.
    pub(crate) async fn declare(&self) -> Result<()> {
        let declare = async {
            let connection = self.broker_connection().await?;
            let channel = connection.create_channel().await?;
            declare_exchange(&channel, &self.exchange).await?;
            declare_queue(&channel, &self.queue, QueueKind::Quorum).await?;
            bind(&channel, &self.queue, &self.exchange, ROUTING_KEY).await?;
            connection.close(0, "done".into()).await?;
            anyhow::Ok(())
        };
        timeout(CONNECT_DEADLINE, declare)
            .await
            .context("the broker did not declare exchange and queue in time")?
    }

    /// Messages that wait in the queue, those on their way to the consumer left out.
    pub(crate) async fn queued(&self) -> Result<u32> {
        let look = async {
            let connection = self.broker_connection().await?;
            let channel = connection.create_channel().await?;
            let queue = channel
                .queue_declare(
                    self.queue.as_str().into(),
                    lapin::options::QueueDeclareOptions {
                        passive: true,
                        ..Default::default()
                    },
                    lapin::types::FieldTable::default(),
                )
                .await?;
            connection.close(0, "done".into()).await?;
            anyhow::Ok(queue.message_count())
        };
        timeout(CONNECT_DEADLINE, look)
            .await
            .context("the broker did not answer in time")?
            .context("could not look at the queue")
    }

    /// Orders in the shop, and rows left in the outbox, by the database's word.
    pub(crate) async fn rows(&self) -> Result<(u64, u64)> {
        let database = Database::connect(&self.database_url).await?;
        let row = database
            .client
            .query_one(
                &format!(
                    "SELECT (SELECT count(*) FROM {}.orders), (SELECT count(*) FROM {}.messages)",
                    self.shop, self.outbox
                ),
                &[],
            )
            .await
            .context("could not count orders")?;
        Ok((
            u64::try_from(row.get::<_, i64>(0))?,
            u64::try_from(row.get::<_, i64>(1))?,
        ))
    }

    /// Removes everything; what was done, for people.
    pub(crate) async fn close(self) -> Result<&'static str> {
        if self.private.is_some() {
            // Dropping them kills them and removes their directories.
            return Ok("the servers are stopped and their files removed");
        }
        let (database, broker) = tokio::join!(
            timeout(CLOSE_DEADLINE, self.drop_schemas()),
            timeout(CLOSE_DEADLINE, self.delete_queue())
        );
        let database = database
            .context("the database did not answer in time")
            .flatten();
        let broker = broker
            .context("the broker did not answer in time")
            .flatten();
        database.with_context(|| {
            format!(
                "could not clean up the database: drop the schemas {} and {} yourself",
                self.outbox, self.shop
            )
        })?;
        broker.with_context(|| {
            format!(
                "could not clean up the broker: delete the exchange and the queue {} yourself",
                self.queue
            )
        })?;
        Ok("the demo's schemas, exchange and queue are removed")
    }

    async fn drop_schemas(&self) -> Result<()> {
        let database = Database::connect(&self.database_url).await?;
        database
            .client
            .batch_execute(&format!(
                "DROP SCHEMA IF EXISTS {} CASCADE; DROP SCHEMA IF EXISTS {} CASCADE",
                self.shop, self.outbox
            ))
            .await?;
        Ok(())
    }

    async fn delete_queue(&self) -> Result<()> {
        let connection = self.broker_connection().await?;
        let channel = connection.create_channel().await?;
        // Neither is an error when it is not there.
        channel
            .queue_delete(self.queue.as_str().into(), Default::default())
            .await?;
        channel
            .exchange_delete(self.exchange.as_str().into(), Default::default())
            .await?;
        connection.close(0, "done".into()).await?;
        Ok(())
    }

    async fn broker_connection(&self) -> Result<Connection> {
        let properties =
            ConnectionProperties::default().with_connection_name("postrider-demo".into());
        timeout(
            CONNECT_DEADLINE,
            Connection::connect(&self.broker_url, properties),
        )
        .await
        .context("could not connect to the broker in time")?
        .context("could not connect to the broker")
    }
}

/// A session whose errors never hold the URL, and so no password.
struct Database {
    client: tokio_postgres::Client,
    connection: JoinHandle<()>,
}

impl Database {
    async fn connect(url: &str) -> Result<Self> {
        // The error of an URL that does not parse may quote it.
        let config: tokio_postgres::Config = url.parse().map_err(|_| {
            anyhow!("the database's URL is not usable: write postgres://USER:PASSWORD@HOST:PORT/DATABASE")
        })?;
        let (client, connection) = timeout(CONNECT_DEADLINE, config.connect(NoTls))
            .await
            .context("could not connect to the database in time")?
            .context("could not connect to the database")?;
        let connection = tokio::spawn(async move {
            // What breaks the connection is the error of the next query as well.
            let _ = connection.await;
        });
        Ok(Self { client, connection })
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

async fn postgres_version(url: &str) -> Result<String> {
    let row = Database::connect(url)
        .await?
        .client
        .query_one(
            "SELECT split_part(current_setting('server_version'), ' ', 1)",
            &[],
        )
        .await
        .context("could not ask the database for its version")?;
    Ok(format!("PostgreSQL {}", row.get::<_, &str>(0)))
}

/// The AMQP library takes `amqp://host/` for the virtual host with the empty name, the daemon for the default one.
fn default_vhost(url: &str) -> &str {
    let authority = url.strip_prefix("amqp://").unwrap_or(url);
    match authority.strip_suffix('/') {
        Some(rest) if !rest.contains('/') => url.trim_end_matches('/'),
        _ => url,
    }
}

#[cfg(test)]
mod tests {
    use super::default_vhost;

    #[test]
    fn a_broker_url_that_ends_in_a_bare_slash_means_the_default_virtual_host() {
        assert_eq!(default_vhost("amqp://a:b@mq:5672/"), "amqp://a:b@mq:5672");
        assert_eq!(default_vhost("amqp://mq"), "amqp://mq");
        assert_eq!(default_vhost("amqp://mq/shop"), "amqp://mq/shop");
        assert_eq!(default_vhost("amqp://mq/%2f"), "amqp://mq/%2f");
    }
}
