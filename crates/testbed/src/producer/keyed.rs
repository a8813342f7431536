//! Transactions on aggregates: messages with an ordering key.
//!
//! Two transactions on one aggregate exclude one another, as those of an application must: each locks the aggregate's row before it
//! inserts anything, and counts there which message of the key comes next. What rolls back takes its numbers back.

use anyhow::Result;
use rand::RngExt;
use tokio_postgres::{Statement, types::ToSql};
use uuid::Uuid;

use super::{ProducerOptions, quoted};
use crate::{audit::Audit, order::Place, postgres::Client};

/// The aggregates of a shop.
#[derive(Clone, Debug)]
pub struct Keys {
    /// How many there are.
    pub count: usize,
    /// What their names begin with.
    pub prefix: String,
    /// The share of transactions without a key, 0 to 1.
    pub unkeyed_share: f64,
    /// The share of messages that may be superseded, 0 to 1.
    pub supersede_share: f64,
    /// The most messages of one transaction.
    pub most_messages: usize,
    /// The exchange and routing key of each message, at random; those of the options if there are none.
    pub routes: Vec<(String, String)>,
}

impl Keys {
    /// So many, all of whose messages go one way; up to four in a transaction, a tenth of the transactions without a key.
    pub fn new(count: usize) -> Self {
        Self {
            count,
            prefix: "aggregate".into(),
            unkeyed_share: 0.1,
            supersede_share: 0.0,
            most_messages: 4,
            routes: Vec::new(),
        }
    }
}

/// A message to be inserted.
struct Draft {
    id: Uuid,
    exchange: String,
    routing_key: String,
    supersede: bool,
}

/// The statements of one session.
pub(super) struct KeyedSql {
    number: Statement,
    message: Statement,
}

impl KeyedSql {
    pub(super) async fn prepare(client: &Client, options: &ProducerOptions) -> Result<Self> {
        let (shop, outbox) = (quoted(&options.shop), quoted(&options.outbox));
        Ok(Self {
            number: client
                .prepare(&format!(
                    "INSERT INTO {shop}.aggregates AS a (key, messages) VALUES ($1, $2) \
                     ON CONFLICT (key) DO UPDATE SET messages = a.messages + $2 RETURNING messages - $2"
                ))
                .await?,
            message: client
                .prepare(&format!(
                    "INSERT INTO {outbox}.messages (id, exchange, routing_key, payload, content_type, ordering_key, supersede) \
                     VALUES ($1, $2, $3, $4, 'application/octet-stream', $5, $6)"
                ))
                .await?,
        })
    }
}

/// What one transaction inserts.
pub(super) struct Sale {
    key: Option<String>,
    drafts: Vec<Draft>,
}

impl Sale {
    pub(super) fn draw(keys: &Keys, options: &ProducerOptions) -> Self {
        let mut random = rand::rng();
        let is_keyed = !random.random_bool(keys.unkeyed_share.clamp(0.0, 1.0));
        let key = is_keyed.then(|| {
            format!(
                "{}-{}",
                keys.prefix,
                random.random_range(0..keys.count.max(1))
            )
        });
        let drafts = (0..random.random_range(1..=keys.most_messages.max(1))).map(|_| {
            let (exchange, routing_key) = if keys.routes.is_empty() {
                (options.exchange.clone(), options.routing_key.clone())
            } else {
                keys.routes[random.random_range(0..keys.routes.len())].clone()
            };
            Draft {
                id: Uuid::now_v7(),
                exchange,
                routing_key,
                supersede: is_keyed && random.random_bool(keys.supersede_share.clamp(0.0, 1.0)),
            }
        });
        let drafts = drafts.collect();
        Self { key, drafts }
    }

    pub(super) fn ids(&self) -> Vec<Uuid> {
        self.drafts.iter().map(|draft| draft.id).collect()
    }

    /// Locks the aggregate, then inserts all; the audit knows their places before anybody can see them.
    pub(super) async fn insert(
        &self,
        client: &Client,
        sql: &KeyedSql,
        payload: &Vec<u8>,
        audit: &Audit,
    ) -> Result<()> {
        if let Some(key) = &self.key {
            let count = i64::try_from(self.drafts.len())?;
            let row = client.query_one(&sql.number, &[key, &count]).await?;
            let first: i64 = row.get(0);
            for (draft, number) in self.drafts.iter().zip(first..) {
                let way = format!("{}/{}", draft.exchange, draft.routing_key);
                let place = Place {
                    key: key.clone(),
                    number,
                    supersede: draft.supersede.then_some(way),
                };
                audit.placed(draft.id, place);
            }
        }
        for draft in &self.drafts {
            let values: [&(dyn ToSql + Sync); 6] = [
                &draft.id,
                &draft.exchange,
                &draft.routing_key,
                payload,
                &self.key,
                &draft.supersede,
            ];
            client.execute(&sql.message, &values).await?;
        }
        Ok(())
    }
}
