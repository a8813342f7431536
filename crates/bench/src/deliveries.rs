//! What a queue holds after a measurement: each message at least once, and those of a key in their order.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use lapin::{
    BasicProperties,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::time::timeout;
use uuid::Uuid;

use crate::stage::Stage;

/// How long the next message of a queue that holds it may take to be delivered.
const DEADLINE: Duration = Duration::from_secs(60);

/// So many messages are acknowledged together when they are counted.
const ACKNOWLEDGED: u16 = 1_000;

/// The headers of a message with a key.
const KEY_HEADER: &str = "x-ordering-key";
const SEQ_HEADER: &str = "x-ordering-seq";

/// What was delivered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deliveries {
    seen: HashSet<Uuid>,
    /// Of each key, the `seq` of the last message that was delivered for the first time.
    last: HashMap<String, i64>,
    /// First deliveries of messages with a key.
    pub(crate) keyed: u32,
    /// Messages that had been delivered before.
    pub(crate) repeats: u32,
}

impl Deliveries {
    /// Reads so many messages of the queue, in its order.
    ///
    /// # Errors
    /// There are fewer, one says nothing of who it is, or one came for the first time after a later one of its key.
    pub(crate) async fn of(stage: &Stage, queue: &str, messages: u32) -> Result<Self> {
        let connection = stage.vhost.connection().await?;
        let channel = connection.create_channel().await?;
        channel
            .basic_qos(2 * ACKNOWLEDGED, BasicQosOptions::default())
            .await?;
        let mut deliveries = channel
            .basic_consume(
                queue.into(),
                "bench".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .context("could not consume")?;
        let mut books = Self::default();
        for number in 1..=messages {
            let delivery = timeout(DEADLINE, deliveries.next())
                .await
                .with_context(|| format!("only {} of {messages} messages came", number - 1))?
                .context("the broker cancelled the consumer")??;
            let id = delivery
                .properties
                .message_id()
                .as_ref()
                .and_then(|id| Uuid::parse_str(id.as_str()).ok())
                .context("a message has no UUID as its message-id")?;
            books.note(id, place(&delivery.properties)?)?;
            if number.is_multiple_of(u32::from(ACKNOWLEDGED)) || number == messages {
                delivery.ack(BasicAckOptions { multiple: true }).await?;
            }
        }
        connection
            .close(200, "done".into())
            .await
            .context("could not close the consumer's connection")?;
        Ok(books)
    }

    /// `place`: the key and the `seq` of a message that has a key.
    fn note(&mut self, id: Uuid, place: Option<(String, i64)>) -> Result<()> {
        if !self.seen.insert(id) {
            self.repeats += 1;
            return Ok(());
        }
        let Some((key, seq)) = place else {
            return Ok(());
        };
        self.keyed += 1;
        match self.last.get_mut(&key) {
            Some(last) => {
                ensure!(
                    *last < seq,
                    "of the key {key:?}, message {seq} came after message {last}"
                );
                *last = seq;
            }
            None => {
                self.last.insert(key, seq);
            }
        }
        Ok(())
    }

    /// Messages, each counted once.
    pub(crate) fn distinct(&self) -> usize {
        self.seen.len()
    }
}

fn place(properties: &BasicProperties) -> Result<Option<(String, i64)>> {
    let header = |name| properties.headers().as_ref()?.inner().get(name);
    match (header(KEY_HEADER), header(SEQ_HEADER)) {
        (None, None) => Ok(None),
        (Some(AMQPValue::LongString(key)), Some(AMQPValue::LongLongInt(seq))) => Ok(Some((
            String::from_utf8_lossy(key.as_bytes()).into_owned(),
            *seq,
        ))),
        other => anyhow::bail!("the headers of a message with a key are {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::Deliveries;

    fn all(deliveries: &[(u128, Option<(&str, i64)>)]) -> anyhow::Result<Deliveries> {
        let mut books = Deliveries::default();
        for (id, place) in deliveries {
            let place = place.map(|(key, seq)| (key.to_owned(), seq));
            books.note(Uuid::from_u128(*id), place)?;
        }
        Ok(books)
    }

    #[test]
    fn a_first_delivery_after_a_later_one_of_its_key_is_found() {
        let error = all(&[
            (1, Some(("a", 1))),
            (3, Some(("a", 3))),
            (2, Some(("a", 2))),
        ]);
        let error = error.unwrap_err().to_string();
        assert_eq!(error, "of the key \"a\", message 2 came after message 3");
    }

    #[test]
    fn repeats_other_keys_and_messages_without_one_are_in_nobodys_way() {
        let books = all(&[
            (2, Some(("a", 2))),
            (1, Some(("b", 1))),
            (5, Some(("a", 5))),
            (2, Some(("a", 2))),
            (4, None),
            (3, Some(("b", 3))),
        ])
        .unwrap();
        assert_eq!((books.repeats, books.keyed, books.distinct()), (1, 4, 5));
    }
}
