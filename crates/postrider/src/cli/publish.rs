//! The command that writes a message by hand.

use std::time::Duration;

use clap::Args;
use serde_json::Value;
use uuid::Uuid;

use super::duration;

/// `publish`
#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// The exchange; '' is RabbitMQ's default exchange
    #[arg(short, long)]
    pub(crate) exchange: String,

    /// The routing key
    #[arg(short = 'k', long, value_name = "KEY")]
    pub(crate) routing_key: String,

    /// A header: NAME=TEXT, or NAME:=JSON for a number, true, a list; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME=TEXT", value_parser = header)]
    pub(crate) headers: Vec<Header>,

    /// The MIME type of the payload; one for JSON has it checked [default: application/json, or
    /// application/octet-stream for what is no text]
    #[arg(short = 't', long, value_name = "MIME")]
    pub(crate) content_type: Option<String>,

    /// The message's id [default: a new one]
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<Uuid>,

    /// The application's name for the kind of message
    #[arg(long = "type", value_name = "NAME")]
    pub(crate) kind: Option<String>,

    /// How the payload is encoded, such as gzip
    #[arg(long, value_name = "NAME")]
    pub(crate) content_encoding: Option<String>,

    /// What this message answers
    #[arg(long, value_name = "ID")]
    pub(crate) correlation_id: Option<String>,

    /// The queue an answer goes to
    #[arg(long, value_name = "QUEUE")]
    pub(crate) reply_to: Option<String>,

    /// The application the message is from
    #[arg(long, value_name = "NAME")]
    pub(crate) app_id: Option<String>,

    /// Messages of one key are first delivered in the order in which they were published
    #[arg(long, value_name = "KEY", conflicts_with = "priority")]
    pub(crate) ordering_key: Option<String>,

    /// Let the next message of the key stand for this one, if both wait and go to the same exchange and routing key
    #[arg(long, requires = "ordering_key")]
    pub(crate) supersede: bool,

    /// 0 to 255; not with an ordering key
    #[arg(long, value_name = "N")]
    pub(crate) priority: Option<u8>,

    /// How long the message may wait in a queue, such as 10min, to the millisecond
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) expiration: Option<Duration>,

    /// The payload; `-` or nothing reads standard input, byte for byte
    #[arg(value_name = "PAYLOAD|-", allow_negative_numbers = true)]
    pub(crate) payload: Option<String>,
}

/// One header of `publish`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Header {
    /// Its name.
    pub(crate) name: String,
    /// Its value, with its JSON type.
    pub(crate) value: Value,
}

fn header(text: &str) -> Result<Header, String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("write NAME=TEXT, or NAME:=JSON")?;
    let (name, value) = match name.strip_suffix(':') {
        Some(name) => (
            name,
            serde_json::from_str(value).map_err(|error| format!("no JSON behind `:=`: {error}"))?,
        ),
        None => (name, Value::String(value.to_owned())),
    };
    if name.is_empty() {
        return Err("the header has no name: write NAME=TEXT, or NAME:=JSON".to_owned());
    }
    Ok(Header {
        name: name.to_owned(),
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_text_unless_it_says_that_it_is_json() {
        let parsed = |text| header(text).map(|header| (header.name, header.value));
        assert_eq!(
            parsed("a=1"),
            Ok(("a".to_owned(), Value::String("1".to_owned())))
        );
        assert_eq!(parsed("a:=1"), Ok(("a".to_owned(), Value::from(1))));
        assert_eq!(
            parsed("a=x=y"),
            Ok(("a".to_owned(), Value::String("x=y".to_owned())))
        );
        assert!(parsed("a").is_err());
        assert!(parsed("=1").is_err());
        assert!(parsed("a:=one").is_err());
    }
}
