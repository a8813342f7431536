//! The pool of connections, and what every session of the relay is set to.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{
    Connect, Manager, ManagerConfig, Object, Pool, PoolError, QueueMode, RecyclingMethod, Runtime,
    TimeoutType,
};
use postrider_core::Origin;
use postrider_tls::Tls;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_postgres::{Client, Config};

use crate::claim::{Share, due_sql, fresh_sql};
use crate::due::DueSql;
use crate::encrypt::Encryption;
use crate::error::Error;
use crate::late::{delete_confirmed_sql, lock_confirmed_keys_sql};
use crate::ordered::OrderedSql;
use crate::schema_name::Schema;
use crate::session::{parse, session_setup};
use crate::settings::Settings;
use crate::settle::SettleSql;
use crate::target::TargetSql;
use crate::watch::WatchSql;

/// How much longer than the server's statement timeout the client waits: the server answers first,
/// unless it is stopped or out of reach.
const CLIENT_WAITS_LONGER: Duration = Duration::from_secs(5);

/// A database with an outbox. Connects when first used; clones share one pool.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Pool,
    config: Config,
    tls: Option<Tls>,
    session: String,
    schema: Schema,
    application_name: String,
    connect_timeout: Duration,
    answer_timeout: Duration,
    sql: Sql,
}

/// The statements of the hot path, with the schema's name in place.
pub(crate) struct Sql {
    pub(crate) messages: FreshSql,
    pub(crate) deferred: DeferredSql,
    pub(crate) ordered: OrderedSql,
    pub(crate) due: DueSql,
    pub(crate) watch: WatchSql,
    pub(crate) exchange: TargetSql,
    pub(crate) route: TargetSql,
    pub(crate) lock_confirmed_keys: String,
}

/// Those of `messages`.
pub(crate) struct FreshSql {
    in_order: ClaimSql,
    equal: ClaimSql,
    pub(crate) settle: SettleSql,
    pub(crate) delete_confirmed: String,
}

/// Those of `deferred`.
pub(crate) struct DeferredSql {
    pub(crate) claim: ClaimSql,
    pub(crate) settle: SettleSql,
    pub(crate) delete_confirmed: String,
}

/// A claim of all rows, and one that leaves some out.
pub(crate) struct ClaimSql {
    pub(crate) all: String,
    pub(crate) except: String,
}

impl ClaimSql {
    fn new(sql: impl Fn(bool) -> String) -> Self {
        Self {
            all: sql(false),
            except: sql(true),
        }
    }
}

impl FreshSql {
    fn new(schema: &Schema) -> Self {
        let claim = |share| ClaimSql::new(|except| fresh_sql(schema, except, share));
        Self {
            in_order: claim(Share::InOrder),
            equal: claim(Share::Equal),
            settle: SettleSql::new(schema, Origin::Messages),
            delete_confirmed: delete_confirmed_sql(schema, Origin::Messages),
        }
    }

    pub(crate) fn claim(&self, share: Share) -> &ClaimSql {
        match share {
            Share::InOrder => &self.in_order,
            Share::Equal => &self.equal,
        }
    }
}

impl DeferredSql {
    fn new(schema: &Schema) -> Self {
        Self {
            claim: ClaimSql::new(|except| due_sql(schema, except)),
            settle: SettleSql::new(schema, Origin::Deferred),
            delete_confirmed: delete_confirmed_sql(schema, Origin::Deferred),
        }
    }
}

impl Sql {
    fn new(schema: &Schema) -> Self {
        Self {
            messages: FreshSql::new(schema),
            deferred: DeferredSql::new(schema),
            ordered: OrderedSql::new(schema),
            due: DueSql::new(schema),
            watch: WatchSql::new(schema),
            exchange: TargetSql::new(schema, false),
            route: TargetSql::new(schema, true),
            lock_confirmed_keys: lock_confirmed_keys_sql(schema),
        }
    }

    pub(crate) fn settle(&self, origin: Origin) -> &SettleSql {
        match origin {
            Origin::Messages => &self.messages.settle,
            Origin::Deferred => &self.deferred.settle,
            Origin::Parked => &self.ordered.settle,
        }
    }

    pub(crate) fn delete_confirmed(&self, origin: Origin) -> &str {
        match origin {
            Origin::Messages => &self.messages.delete_confirmed,
            Origin::Deferred => &self.deferred.delete_confirmed,
            Origin::Parked => &self.ordered.delete_confirmed,
        }
    }
}

/// What is known of the server once it has been looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// As the server names it, such as `15.18 (Debian 15.18-1.pgdg120+1)`.
    pub version: String,
    /// As a number, such as 150018.
    pub version_num: i32,
    /// The database connected to.
    pub database: String,
    /// The role connected as.
    pub role: String,
}

impl Database {
    /// Takes the settings apart and prepares a pool; connects to nothing yet.
    ///
    /// # Errors
    /// [`Error::Settings`] when the URL cannot be used; the text never quotes it.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let config = parse(&settings)?;
        let session = session_setup(&settings);
        let connector = Connector {
            session: session.clone(),
            tls: settings.tls.clone(),
        };
        let manager = Manager::from_connect(
            config.clone(),
            connector,
            ManagerConfig {
                recycling_method: RecyclingMethod::Fast,
            },
        );
        let hosts = config.get_hosts().len().max(config.get_hostaddrs().len());
        let pool = Pool::builder(manager)
            .max_size(settings.connections.max(1))
            .runtime(Runtime::Tokio1)
            // Few messages are claimed by one session again and again, whose caches and pages are warm: p50 from commit to consumer is a
            // sixteenth shorter than when all sessions take turns (docs/benchmarks.md).
            .queue_mode(QueueMode::Lifo)
            .wait_timeout(Some(settings.connect_timeout))
            // Each host may use up the whole of its own connect timeout.
            .create_timeout(Some(
                settings.connect_timeout * u32::try_from(hosts.max(1)).unwrap_or(1)
                    + CLIENT_WAITS_LONGER,
            ))
            .recycle_timeout(Some(settings.connect_timeout))
            .build()
            .map_err(|_| Error::Settings("the connection pool cannot be set up"))?;
        let sql = Sql::new(&settings.schema);
        Ok(Self {
            inner: Arc::new(Inner {
                pool,
                config,
                tls: settings.tls,
                session,
                schema: settings.schema,
                application_name: settings.application_name,
                connect_timeout: settings.connect_timeout,
                answer_timeout: settings.statement_timeout + CLIENT_WAITS_LONGER,
                sql,
            }),
        })
    }

    /// The schema that holds the outbox.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        &self.inner.schema
    }

    /// Connects, and sees whether this server can hold an outbox.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] for a standby, [`Error::UnsupportedServer`] before PostgreSQL 14,
    /// [`Error::Encoding`] for a database that is not in UTF-8, and what connecting can fail with.
    pub async fn check_server(&self) -> Result<ServerInfo, Error> {
        let lease = self.lease().await?;
        let row = self
            .answer("look at the server", async {
                lease
                    .client()?
                    .query_one(
                        "SELECT current_setting('server_version'), current_setting('server_version_num')::int, \
                                current_database()::text, current_user::text, \
                                current_setting('server_encoding'), \
                                pg_is_in_recovery() OR current_setting('transaction_read_only')::bool",
                        &[],
                    )
                    .await
                    .map_err(|error| Error::query("look at the server", error))
            })
            .await?;
        lease.give_back();
        let read = |error| Error::query("look at the server", error);
        let info = ServerInfo {
            version: row.try_get(0).map_err(read)?,
            version_num: row.try_get(1).map_err(read)?,
            database: row.try_get(2).map_err(read)?,
            role: row.try_get(3).map_err(read)?,
        };
        if info.version_num < 140_000 {
            return Err(Error::UnsupportedServer(info.version));
        }
        let encoding: String = row.try_get(4).map_err(read)?;
        if encoding != "UTF8" {
            return Err(Error::Encoding(encoding));
        }
        if row.try_get(5).map_err(read)? {
            return Err(Error::ReadOnly);
        }
        Ok(info)
    }

    /// A connection of the pool that is closed, not returned, unless it is given back in good order.
    pub(crate) async fn lease(&self) -> Result<Lease, Error> {
        match self.inner.pool.get().await {
            Ok(object) => Ok(Lease {
                object: Some(object),
            }),
            Err(PoolError::Backend(error)) => Err(Error::connect(error, self.tls())),
            Err(PoolError::Timeout(TimeoutType::Wait)) => Err(Error::NoConnection(
                self.inner.connect_timeout,
                "all connections of the pool are in use",
            )),
            Err(PoolError::Timeout(_)) => Err(Error::NoConnection(
                self.inner.connect_timeout,
                "the server does not answer",
            )),
            Err(
                PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_),
            ) => Err(Error::Settings("the connection pool is closed")),
        }
    }

    /// Bounds a wait for the server's answer: its own timeouts do not help when it is stopped, or
    /// the network swallows the answer.
    pub(crate) async fn answer<T>(
        &self,
        doing: &'static str,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let waited = self.inner.answer_timeout;
        tokio::time::timeout(waited, answer)
            .await
            .unwrap_or(Err(Error::NoAnswer { doing, waited }))
    }

    pub(crate) fn sql(&self) -> &Sql {
        &self.inner.sql
    }

    pub(crate) fn config(&self) -> &Config {
        &self.inner.config
    }

    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.inner.tls.as_ref()
    }

    pub(crate) fn session(&self) -> &str {
        &self.inner.session
    }

    pub(crate) fn application_name(&self) -> &str {
        &self.inner.application_name
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        self.inner.connect_timeout
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("schema", &self.inner.schema)
            .field("pool", &self.inner.pool.status())
            .finish_non_exhaustive()
    }
}

/// A pooled connection on loan.
///
/// Dropped, it is taken out of the pool and its socket closed, so that the server rolls back whatever
/// was open and frees its locks. Only [`Lease::give_back`] returns it, and is called where no
/// transaction can be open.
pub(crate) struct Lease {
    object: Option<Object>,
}

impl Lease {
    pub(crate) fn client(&self) -> Result<&Object, Error> {
        self.object
            .as_ref()
            .ok_or(Error::Settings("the connection was given back already"))
    }

    pub(crate) fn give_back(mut self) {
        drop(self.object.take());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(Object::take(object));
        }
    }
}

/// Connects a pooled session and sets it up.
struct Connector {
    session: String,
    tls: Option<Tls>,
}

impl Connect for Connector {
    fn connect(
        &self,
        config: &Config,
    ) -> Pin<
        Box<
            dyn Future<Output = Result<(Client, JoinHandle<()>), tokio_postgres::Error>>
                + Send
                + '_,
        >,
    > {
        let config = config.clone();
        Box::pin(async move {
            let encryption = Encryption::of(self.tls.as_ref()).await;
            let (client, connection) = config.connect(encryption).await?;
            // Owned by the pool's wrapper of the client, which aborts it when it is dropped.
            let driver = tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(
                        error = crate::error::describe(&error),
                        "database connection ended"
                    );
                }
            });
            let guard = AbortOnDrop(Some(driver.abort_handle()));
            client.batch_execute(&self.session).await?;
            guard.disarm();
            Ok((client, driver))
        })
    }
}

/// Ends the driver of a connect that is given up on half-way.
struct AbortOnDrop(Option<AbortHandle>);

impl AbortOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
