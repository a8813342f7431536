//! A small shop: orders and their outbox rows in one transaction, some rolled back, on several connections.

mod keyed;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use rand::RngExt;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::keyed::{KeyedSql, Sale};
use crate::{audit::Audit, postgres::Client};

pub use self::keyed::Keys;

/// How long a worker may take to finish its transaction when it is asked to stop; after that its ids stay unknown.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// The header of a scheduled message that says when it is due, in microseconds since 1970.
pub const DUE_HEADER: &str = "due-us";

/// How the shop behaves.
#[derive(Clone, Debug)]
pub struct ProducerOptions {
    /// The database.
    pub url: String,
    /// The schema of the outbox, which must be there.
    pub outbox: String,
    /// The schema of the shop's own table, created if it is not there.
    pub shop: String,
    /// Where the messages go.
    pub exchange: String,
    /// Their routing key.
    pub routing_key: String,
    /// How many connections insert at once.
    pub connections: usize,
    /// Transactions a second, over all connections; as fast as possible when not given.
    pub rate: Option<f64>,
    /// The share of transactions that roll back, 0 to 1.
    pub rollback_share: f64,
    /// Messages in one transaction.
    pub messages_per_transaction: usize,
    /// Bytes of one payload.
    pub payload_bytes: usize,
    /// End after this many transactions (rolled back and failed ones count).
    pub transactions: Option<usize>,
    /// The longest pause between the inserts and the COMMIT (or ROLLBACK); each transaction's is random, evenly
    /// spread.
    pub longest_pause: Duration,
    /// Schedule each message (`deliver_at`) up to this far ahead, at random, evenly spread; its time is in the header
    /// [`DUE_HEADER`].
    pub scheduled_ahead: Option<Duration>,
    /// Have messages belong to aggregates, whose key they carry; they are not scheduled then, and their number and ways are said there.
    pub keys: Option<Keys>,
}

impl ProducerOptions {
    /// Four connections, one message of 256 bytes a transaction, a tenth rolled back, as fast as possible, without
    /// end.
    pub fn new(
        url: impl Into<String>,
        exchange: impl Into<String>,
        routing_key: impl Into<String>,
    ) -> Self {
        Self {
            url: url.into(),
            outbox: "outbox".into(),
            shop: "shop".into(),
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            connections: 4,
            rate: None,
            rollback_share: 0.1,
            messages_per_transaction: 1,
            payload_bytes: 256,
            transactions: None,
            longest_pause: Duration::ZERO,
            scheduled_ahead: None,
            keys: None,
        }
    }
}

/// The shop at work, in the background. It survives restarts of the database.
///
/// Each id is noted as maybe committed before its COMMIT is sent, so that no crash of anything makes it lost or
/// phantom without ground; [`Producer::stop`] resolves what was not answered.
#[derive(Debug)]
pub struct Producer {
    options: ProducerOptions,
    audit: Audit,
    stop: CancellationToken,
    workers: JoinSet<()>,
    committed: watch::Receiver<u64>,
    /// Why a transaction failed last: a fault of the test rather than of a server would show for ever.
    last_error: Arc<Mutex<Option<String>>>,
}

impl Producer {
    /// Creates the shop's tables (`orders` and `aggregates` in [`ProducerOptions::shop`]) if they are not there, and starts.
    ///
    /// # Errors
    /// The database is not there.
    pub async fn start(options: ProducerOptions, audit: &Audit) -> Result<Self> {
        create_shop(&Client::connect(&options.url).await?, &options.shop).await?;
        let stop = CancellationToken::new();
        let (count, committed) = watch::channel(0);
        let last_error = Arc::new(Mutex::new(None));
        let budget = options
            .transactions
            .map(|count| Arc::new(Semaphore::new(count)));
        let mut workers = JoinSet::new();
        for _ in 0..options.connections.max(1) {
            workers.spawn(work(
                options.clone(),
                audit.clone(),
                stop.clone(),
                count.clone(),
                budget.clone(),
                Arc::clone(&last_error),
            ));
        }
        Ok(Self {
            options,
            audit: audit.clone(),
            stop,
            workers,
            committed,
            last_error,
        })
    }

    /// Messages committed so far.
    pub fn committed(&self) -> u64 {
        *self.committed.borrow()
    }

    /// Waits until so many messages are committed.
    ///
    /// # Errors
    /// They were not within `deadline`.
    pub async fn wait_for_committed(&self, count: u64, deadline: Duration) -> Result<()> {
        let mut committed = self.committed.clone();
        match timeout(deadline, committed.wait_for(|have| *have >= count)).await {
            Ok(Ok(_)) => Ok(()),
            _ => bail!(
                "{} of {count} messages were committed within {deadline:?}; the last error: {:?}",
                self.committed(),
                self.last_error.lock().unwrap()
            ),
        }
    }

    /// Waits until all transactions of [`ProducerOptions::transactions`] are done, then resolves what is unknown.
    ///
    /// # Errors
    /// They were not within `deadline`, or the database is not there.
    pub async fn finish(mut self, deadline: Duration) -> Result<()> {
        let done = timeout(deadline, async {
            while self.workers.join_next().await.is_some() {}
        });
        if done.await.is_err() {
            bail!(
                "the shop was not done within {deadline:?}; the last error: {:?}",
                self.last_error.lock().unwrap()
            );
        }
        resolve(&self.options, &self.audit).await
    }

    /// Stops, and asks the database (which must be there) about what is unknown.
    ///
    /// # Errors
    /// The database is not there.
    pub async fn stop(mut self) -> Result<()> {
        self.halt().await;
        resolve(&self.options, &self.audit).await
    }

    /// [`stop`](Self::stop) for several that share an audit and a shop: what is unknown is asked for once, when none of
    /// them can add to it any more.
    ///
    /// # Errors
    /// The database is not there.
    pub async fn stop_all(mut producers: Vec<Self>) -> Result<()> {
        for producer in &producers {
            producer.stop.cancel();
        }
        for producer in &mut producers {
            producer.halt().await;
        }
        match producers.first() {
            Some(producer) => resolve(&producer.options, &producer.audit).await,
            None => Ok(()),
        }
    }

    async fn halt(&mut self) {
        self.stop.cancel();
        let _ = timeout(STOP_DEADLINE, async {
            while self.workers.join_next().await.is_some() {}
        })
        .await;
        self.workers.shutdown().await;
    }
}

async fn create_shop(client: &Client, schema: &str) -> Result<()> {
    let schema = quoted(schema);
    client
        .batch_execute(&format!(
            "CREATE SCHEMA IF NOT EXISTS {schema};
             CREATE TABLE IF NOT EXISTS {schema}.orders (
                 message_id uuid PRIMARY KEY,
                 customer text NOT NULL,
                 amount_cents bigint NOT NULL,
                 placed_at timestamptz NOT NULL DEFAULT clock_timestamp()
             );
             CREATE TABLE IF NOT EXISTS {schema}.aggregates (
                 key text PRIMARY KEY,
                 messages bigint NOT NULL
             )"
        ))
        .await
        .with_context(|| format!("could not create the tables of {schema}"))
}

/// Resolves the audit's unknown ids by the orders: one is there if and only if its message was committed.
async fn resolve(options: &ProducerOptions, audit: &Audit) -> Result<()> {
    let unknown = audit.unknown();
    if unknown.is_empty() {
        return Ok(());
    }
    let mut client = Client::connect(&options.url).await?;
    let schema = quoted(&options.shop);
    // A session whose client is gone may still be committing: the lock waits for its end.
    let transaction = client.transaction().await?;
    transaction
        .batch_execute(&format!("LOCK TABLE {schema}.orders IN EXCLUSIVE MODE"))
        .await
        .context("could not wait for open orders")?;
    let rows = transaction
        .query(
            &format!("SELECT message_id FROM {schema}.orders WHERE message_id = ANY($1)"),
            &[&unknown],
        )
        .await
        .context("could not ask for unknown orders")?;
    transaction.commit().await?;
    audit.resolve(&rows.iter().map(|row| row.get(0)).collect::<HashSet<Uuid>>());
    Ok(())
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

async fn work(
    options: ProducerOptions,
    audit: Audit,
    stop: CancellationToken,
    committed: watch::Sender<u64>,
    budget: Option<Arc<Semaphore>>,
    last_error: Arc<Mutex<Option<String>>>,
) {
    let mut ticks = options.rate.map(|rate| {
        interval(Duration::from_secs_f64(
            options.connections.max(1) as f64 / rate,
        ))
    });
    if let Some(ticks) = &mut ticks {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    }
    let mut shop = None;
    loop {
        if let Some(ticks) = &mut ticks {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
        }
        if stop.is_cancelled() {
            return;
        }
        let session = match shop.take() {
            Some(session) => session,
            None => match timeout(Duration::from_secs(5), Session::open(&options)).await {
                Ok(Ok(session)) => session,
                failed => {
                    if let Ok(Err(error)) = failed {
                        *last_error.lock().unwrap() = Some(format!("{error:#}"));
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        if let Some(budget) = &budget {
            match budget.try_acquire() {
                Ok(permit) => permit.forget(),
                Err(_) => return,
            }
        }
        match session.sell(&options, &audit).await {
            Ok(count) => {
                committed.send_modify(|committed| *committed += count);
                shop = Some(session);
            }
            // The session is thrown away and a new one opened: the database may be restarting.
            Err(error) => *last_error.lock().unwrap() = Some(format!("{error:#}")),
        }
    }
}

struct Session {
    client: Client,
    order: tokio_postgres::Statement,
    message: tokio_postgres::Statement,
    keyed: Option<KeyedSql>,
}

impl Session {
    async fn open(options: &ProducerOptions) -> Result<Self> {
        let client = Client::connect(&options.url).await?;
        client
            .batch_execute("SET application_name = 'shop'")
            .await?;
        let order = client
            .prepare(&format!(
                "INSERT INTO {}.orders (message_id, customer, amount_cents) VALUES ($1, $2, $3)",
                quoted(&options.shop)
            ))
            .await?;
        let outbox = quoted(&options.outbox);
        let message = match options.scheduled_ahead {
            None => format!(
                "INSERT INTO {outbox}.messages (id, exchange, routing_key, payload, content_type) \
                 VALUES ($1, $2, $3, $4, 'application/octet-stream')"
            ),
            Some(_) => format!(
                "SELECT {outbox}.publish($2, $3, $4::bytea, id => $1, content_type => 'application/octet-stream', \
                 deliver_at => $5, headers => jsonb_build_object('{DUE_HEADER}', $6::bigint))"
            ),
        };
        let message = client.prepare(&message).await?;
        let keyed = match options.keys {
            Some(_) => Some(KeyedSql::prepare(&client, options).await?),
            None => None,
        };
        Ok(Self {
            client,
            order,
            message,
            keyed,
        })
    }

    /// One transaction; how many messages it committed.
    async fn sell(&self, options: &ProducerOptions, audit: &Audit) -> Result<u64> {
        let sale = options.keys.as_ref().map(|keys| Sale::draw(keys, options));
        let ids: Vec<Uuid> = match &sale {
            Some(sale) => sale.ids(),
            None => (0..options.messages_per_transaction.max(1))
                .map(|_| Uuid::now_v7())
                .collect(),
        };
        let (customer, amount, roll_back, payload, pause, due) = {
            let mut random = rand::rng();
            let mut payload = vec![0_u8; options.payload_bytes];
            random.fill(payload.as_mut_slice());
            (
                format!("customer-{}", random.random_range(0..1000)),
                random.random_range(1..100_000_i64),
                random.random_bool(options.rollback_share.clamp(0.0, 1.0)),
                payload,
                options.longest_pause.mul_f64(random.random::<f64>()),
                options.scheduled_ahead.map(|longest| {
                    let due = SystemTime::now() + longest.mul_f64(random.random::<f64>());
                    let since = due.duration_since(UNIX_EPOCH).unwrap_or_default();
                    (due, i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
                }),
            )
        };
        let insert = async {
            self.client.batch_execute("BEGIN").await?;
            for id in &ids {
                self.client
                    .execute(&self.order, &[id, &customer, &amount])
                    .await?;
                if sale.is_some() {
                    continue;
                }
                let mut values: Vec<&(dyn ToSql + Sync)> =
                    vec![id, &options.exchange, &options.routing_key, &payload];
                if let Some((due, header)) = &due {
                    values.push(due);
                    values.push(header);
                }
                self.client.execute(&self.message, &values).await?;
            }
            if let (Some(sale), Some(sql)) = (&sale, &self.keyed) {
                sale.insert(&self.client, sql, &payload, audit).await?;
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            anyhow::Ok(())
        };
        if let Err(error) = insert.await {
            // Its COMMIT was never sent.
            audit.rolled_back(ids);
            return Err(error);
        }
        if roll_back {
            audit.rolled_back(ids);
            self.client.batch_execute("ROLLBACK").await?;
            return Ok(0);
        }
        audit.maybe_committed(ids.iter().copied());
        self.client.batch_execute("COMMIT").await?;
        let count = ids.len() as u64;
        audit.committed(ids);
        Ok(count)
    }
}
