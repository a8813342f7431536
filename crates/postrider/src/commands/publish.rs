//! `publish`: puts one message into the outbox.

use std::io::{Read, Write};

use anyhow::Context as _;
use postrider_postgres::{NewMessage, NewPayload};

use crate::cli::Publish;
use crate::config::DatabaseConfig;
use crate::wiring;

/// Writes the message in a transaction of its own and prints its id.
///
/// # Errors
/// When the payload cannot be read, the database cannot be reached, or the outbox refuses the
/// message; nothing is written then.
pub(crate) async fn publish(
    config: &DatabaseConfig,
    arguments: Publish,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let bytes = match arguments.payload.as_deref() {
        None | Some("-") => {
            let mut bytes = Vec::new();
            std::io::stdin()
                .read_to_end(&mut bytes)
                .context("cannot read the payload from standard input")?;
            bytes
        }
        Some(text) => text.as_bytes().to_vec(),
    };
    let payload = match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => NewPayload::Text(text),
        Ok(text) => NewPayload::Bytes(text.into_bytes()),
        Err(error) => NewPayload::Bytes(error.into_bytes()),
    };
    let expiration_ms = arguments
        .expiration
        .map(|expiration| i64::try_from(expiration.as_millis()))
        .transpose()
        .context("--expiration is too long")?;
    let message = NewMessage {
        headers: arguments
            .headers
            .into_iter()
            .map(|header| (header.name, header.value))
            .collect(),
        id: arguments.id,
        content_type: arguments.content_type,
        content_encoding: arguments.content_encoding,
        kind: arguments.kind,
        correlation_id: arguments.correlation_id,
        reply_to: arguments.reply_to,
        app_id: arguments.app_id,
        ordering_key: arguments.ordering_key,
        supersede: arguments.supersede,
        priority: arguments.priority.map(i32::from),
        expiration_ms,
        ..NewMessage::new(arguments.exchange, arguments.routing_key, payload)
    };
    let database = wiring::database_for_command(config)?;
    let id = database.publish(&message).await?;
    writeln!(out, "{id}")?;
    Ok(())
}
