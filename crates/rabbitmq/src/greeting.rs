//! What a broker says of itself before anybody logs in. The AMQP library keeps it for itself.

use std::io;

use async_compat::Compat;
use lapin::AsyncTcpStream;
use lapin::types::parsing::parse_field_table;
use lapin::types::{AMQPValue, FieldTable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::Settings;
use crate::secure::{Stream, secure};
use crate::socket;

/// The first method of a connection: `connection.start` (AMQP 0-9-1, 1.4.2.1).
const START: [u8; 4] = [0, 10, 0, 10];
/// Larger than any broker's: more is none.
const LARGEST: u32 = 1 << 20;

/// What is known of a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// What it is: `RabbitMQ`.
    pub product: String,
    /// Its version, such as `3.13.7`.
    pub version: String,
}

/// Asks the broker with this `host:port` among those of the settings, on a connection of its own that ends before
/// anybody logs in; RabbitMQ logs that. Takes no longer than `connect_timeout`.
///
/// `None` when there is no such broker, it cannot be reached, or it says something else.
pub async fn greeting(settings: &Settings, peer: &str) -> Option<Greeting> {
    let broker = settings
        .brokers
        .iter()
        .find(|broker| broker.peer() == peer)?;
    let asked = async {
        let (stream, _socket) = socket::connect(&broker.host, broker.port).await?;
        let stream = match &settings.tls {
            None => AsyncTcpStream::Plain(Compat::new(stream)),
            Some(tls) => secure(tls, &broker.host, stream).await?,
        };
        read(stream).await
    };
    match timeout(settings.connect_timeout, asked).await {
        Ok(Ok(greeting)) => greeting,
        Ok(Err(error)) => {
            tracing::debug!(%error, "the broker did not say what it is");
            None
        }
        Err(_) => None,
    }
}

async fn read(stream: Stream) -> io::Result<Option<Greeting>> {
    let mut stream = Compat::new(stream);
    stream.write_all(b"AMQP\0\0\x09\x01").await?;
    stream.flush().await?;
    // Type, channel, size of the payload.
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let [1, _, _, size @ ..] = head else {
        return Ok(None);
    };
    let size = u32::from_be_bytes(size);
    if size > LARGEST {
        return Ok(None);
    }
    let mut payload = vec![0; usize::try_from(size).unwrap_or(0)];
    stream.read_exact(&mut payload).await?;
    Ok(parsed(&payload))
}

/// Class and method, two bytes of version, and then the table.
fn parsed(payload: &[u8]) -> Option<Greeting> {
    let table = payload.strip_prefix(&START)?.get(2..)?;
    let (_, table) = parse_field_table(table).ok()?;
    Some(Greeting {
        product: text(&table, "product")?,
        version: text(&table, "version")?,
    })
}

fn text(table: &FieldTable, name: &str) -> Option<String> {
    match table.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_greeting_is_not_taken_for_one() {
        for payload in [
            &b""[..],
            b"\0\x0a\0\x0a",
            b"\0\x0a\0\x0a\0\x09\0\0\0\x09\x07product",
            b"\0\x0a\0\x0b\0\x09\0\0\0\0",
            b"\0\x0a\0\x0a\0\x09\0\0\0\0",
        ] {
            assert_eq!(parsed(payload), None);
        }
    }
}
