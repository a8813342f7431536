//! Putting one message into the outbox, for the command line.

use postgres_types::ToSql;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::database::Database;
use crate::error::Error;

/// A message to be put into the outbox; `None` leaves a property to its default.
#[derive(Clone)]
pub struct NewMessage {
    /// The exchange, `""` for RabbitMQ's default exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// The body.
    pub payload: NewPayload,
    /// The headers.
    pub headers: Map<String, Value>,
    /// The id; drawn by the database otherwise.
    pub id: Option<Uuid>,
    /// `application/json` for text and `application/octet-stream` for bytes otherwise.
    pub content_type: Option<String>,
    /// The encoding of the body.
    pub content_encoding: Option<String>,
    /// The application's name for the kind of message.
    pub kind: Option<String>,
    /// What this message answers.
    pub correlation_id: Option<String>,
    /// The queue an answer goes to.
    pub reply_to: Option<String>,
    /// The application.
    pub app_id: Option<String>,
    /// 0 to 255.
    pub priority: Option<i32>,
    /// Time to live in the queue, in milliseconds.
    pub expiration_ms: Option<i64>,
    /// Messages of one key are first delivered in order.
    pub ordering_key: Option<String>,
    /// Whether the next message of the key may stand for this one, if it goes to the same exchange and routing key.
    pub supersede: bool,
}

/// The body of a new message. Left out of `Debug` output: it may be secret.
#[derive(Clone, PartialEq, Eq)]
pub enum NewPayload {
    /// Checked by the database to be JSON if the content type says so.
    Text(String),
    /// Sent as they are.
    Bytes(Vec<u8>),
}

impl NewMessage {
    /// A message with this body, and everything else left to its default.
    #[must_use]
    pub fn new(
        exchange: impl Into<String>,
        routing_key: impl Into<String>,
        payload: NewPayload,
    ) -> Self {
        Self {
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            payload,
            headers: Map::new(),
            id: None,
            content_type: None,
            content_encoding: None,
            kind: None,
            correlation_id: None,
            reply_to: None,
            app_id: None,
            priority: None,
            expiration_ms: None,
            ordering_key: None,
            supersede: false,
        }
    }
}

impl std::fmt::Debug for NewMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewMessage")
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Database {
    /// Puts one message into the outbox, in a transaction of its own, and returns its id.
    ///
    /// # Errors
    /// What the schema refuses (the error names the constraint), and what connecting and querying can
    /// fail with. After a broken connection it is unknown whether the message is in the outbox.
    pub async fn publish(&self, message: &NewMessage) -> Result<Uuid, Error> {
        const DOING: &str = "publish the message";
        let failed = |error| Error::query(DOING, error);
        let (kind_of_payload, payload): (&str, &(dyn ToSql + Sync)) = match &message.payload {
            NewPayload::Text(text) => ("text", text),
            NewPayload::Bytes(bytes) => ("bytea", bytes),
        };
        let sql = format!(
            "SELECT {}.publish(exchange => $1, routing_key => $2, payload => $3::{kind_of_payload}, \
                    headers => $4::jsonb, id => $5, content_type => $6, content_encoding => $7, type => $8, \
                    correlation_id => $9, reply_to => $10, app_id => $11, priority => $12, expiration => $13, \
                    ordering_key => $14, supersede => $15)",
            self.schema()
        );
        let headers = Value::Object(message.headers.clone());
        let lease = self.lease().await?;
        let row = self
            .answer(DOING, async {
                let client = lease.client()?;
                let statement = client.prepare_cached(&sql).await.map_err(failed)?;
                client
                    .query_one(
                        &statement,
                        &[
                            &message.exchange,
                            &message.routing_key,
                            payload,
                            &headers,
                            &message.id,
                            &message.content_type,
                            &message.content_encoding,
                            &message.kind,
                            &message.correlation_id,
                            &message.reply_to,
                            &message.app_id,
                            &message.priority,
                            &message.expiration_ms,
                            &message.ordering_key,
                            &message.supersede,
                        ],
                    )
                    .await
                    .map_err(failed)
            })
            .await?;
        lease.give_back();
        row.try_get(0).map_err(failed)
    }
}
