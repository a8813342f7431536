//! How one dead letter is shown: to people, as JSON, and as a row that can be put back.

use std::io::Write;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postrider_core::Payload;
use postrider_postgres::{DeadLetter, DeadLetterSummary};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::table::{coarse, name, printable, timestamp};

/// How many bytes a line of a payload in hexadecimal has.
const HEX_LINE: usize = 32;

/// A dead letter without its contents, in `list --json`.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    id: Uuid,
    seq: i64,
    exchange: String,
    routing_key: String,
    ordering_key: Option<String>,
    /// Whether the key waits until this one has left.
    blocks: bool,
    reason: String,
    error: String,
    attempts: u32,
    created_at: String,
    given_up_at: String,
    age_seconds: f64,
    payload_bytes: u64,
}

impl Summary {
    /// What is known of the letter at this time.
    pub(crate) fn new(letter: DeadLetterSummary, now: SystemTime) -> Self {
        Self {
            age_seconds: age(&letter, now).as_secs_f64(),
            id: letter.id,
            seq: letter.seq.0,
            exchange: letter.exchange,
            routing_key: letter.routing_key,
            ordering_key: letter.ordering_key,
            blocks: letter.blocks,
            reason: letter.reason,
            error: letter.error,
            attempts: letter.attempts,
            created_at: timestamp(letter.created_at),
            given_up_at: timestamp(letter.given_up_at),
            payload_bytes: letter.payload_bytes,
        }
    }
}

/// How long ago the letter was given up.
pub(crate) fn age(letter: &DeadLetterSummary, now: SystemTime) -> Duration {
    now.duration_since(letter.given_up_at).unwrap_or_default()
}

/// Everything, in `show --json`. Of the two payloads the one that fits is there.
#[derive(Serialize)]
pub(crate) struct Whole {
    #[serde(flatten)]
    summary: Summary,
    headers: Map<String, Value>,
    content_type: Option<String>,
    content_encoding: Option<String>,
    r#type: Option<String>,
    correlation_id: Option<String>,
    reply_to: Option<String>,
    app_id: Option<String>,
    priority: Option<u8>,
    expiration_ms: Option<u64>,
    supersede: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl Whole {
    /// Everything that is known of the letter at this time.
    pub(crate) fn new(letter: DeadLetter, now: SystemTime) -> Self {
        let (payload, payload_base64) = match String::from_utf8(bytes(letter.payload)) {
            Ok(text) => (Some(text), None),
            Err(binary) => (None, Some(STANDARD.encode(binary.as_bytes()))),
        };
        let properties = letter.properties;
        Self {
            summary: Summary::new(letter.summary, now),
            headers: letter.headers,
            content_type: properties.content_type,
            content_encoding: properties.content_encoding,
            r#type: properties.kind,
            correlation_id: properties.correlation_id,
            reply_to: properties.reply_to,
            app_id: properties.app_id,
            priority: properties.priority,
            expiration_ms: properties.expiration_ms,
            supersede: letter.supersede,
            payload,
            payload_base64,
        }
    }
}

/// No bound was set, so every payload was fetched.
fn bytes(payload: Payload) -> Vec<u8> {
    match payload {
        Payload::Fetched(bytes) => bytes,
        Payload::TooLarge { .. } => Vec::new(),
    }
}

/// Prints everything for a person.
///
/// # Errors
/// When writing failed.
pub(crate) fn print(
    letter: DeadLetter,
    now: SystemTime,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let summary = &letter.summary;
    let given_up = format!(
        "{} ({} ago)",
        timestamp(summary.given_up_at),
        coarse(age(summary, now))
    );
    let properties = &letter.properties;
    let key = |key| match summary.blocks {
        true => format!("{}, which waits for this message", name(key)),
        false => name(key),
    };
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    for (label, value) in [
        ("id", Some(summary.id.to_string())),
        ("seq", Some(summary.seq.to_string())),
        ("exchange", Some(name(&summary.exchange))),
        ("routing key", Some(name(&summary.routing_key))),
        ("ordering key", summary.ordering_key.as_deref().map(key)),
        ("reason", Some(printable(&summary.reason))),
        ("error", Some(printable(&summary.error))),
        ("attempts", Some(summary.attempts.to_string())),
        ("given up", Some(given_up)),
        ("created", Some(timestamp(summary.created_at))),
        ("content type", shown(properties.content_type.as_deref())),
        (
            "content encoding",
            shown(properties.content_encoding.as_deref()),
        ),
        ("type", shown(properties.kind.as_deref())),
        (
            "correlation id",
            shown(properties.correlation_id.as_deref()),
        ),
        ("reply to", shown(properties.reply_to.as_deref())),
        ("app id", shown(properties.app_id.as_deref())),
        ("priority", number(properties.priority.map(u64::from))),
        ("expiration ms", number(properties.expiration_ms)),
    ] {
        if let Some(value) = value {
            writeln!(out, "{label:<16}  {value}")?;
        }
    }
    for (header, value) in &letter.headers {
        let value = printable(&value.to_string());
        writeln!(out, "{:<16}  {}: {value}", "header", name(header))?;
    }
    let bytes = bytes(letter.payload);
    match std::str::from_utf8(&bytes) {
        Ok("") => writeln!(out, "\nthe payload is empty"),
        Ok(text) => {
            writeln!(out, "\npayload, {} bytes of text:", bytes.len())?;
            text.lines()
                .try_for_each(|line| writeln!(out, "{}", printable(line)))
        }
        Err(_) => {
            writeln!(out, "\npayload, {} bytes in hexadecimal:", bytes.len())?;
            bytes
                .chunks(HEX_LINE)
                .try_for_each(|line| writeln!(out, "{}", hex(line)))
        }
    }
}

fn shown(property: Option<&str>) -> Option<String> {
    property.map(name)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// A row of `outbox.dead_letters`, under the names of its columns and as PostgreSQL reads it:
/// `json_populate_record` makes the row of it again.
#[derive(Serialize)]
pub(crate) struct Row {
    seq: i64,
    id: Uuid,
    exchange: String,
    routing_key: String,
    payload: Option<String>,
    payload_json: Option<Box<RawValue>>,
    content_type: Option<String>,
    headers: Map<String, Value>,
    ordering_key: Option<String>,
    r#type: Option<String>,
    content_encoding: Option<String>,
    correlation_id: Option<String>,
    reply_to: Option<String>,
    app_id: Option<String>,
    priority: Option<u8>,
    expiration: Option<u64>,
    supersede: bool,
    created_at: String,
    attempts: u32,
    reason: String,
    error: String,
    given_up_at: String,
    blocks: bool,
}

impl Row {
    /// The row of this letter.
    pub(crate) fn new(letter: DeadLetter) -> Self {
        let summary = letter.summary;
        let properties = letter.properties;
        let bytes = bytes(letter.payload);
        let payload_json = if letter.payload_is_json {
            on_one_line(&bytes)
        } else {
            None
        };
        Self {
            seq: summary.seq.0,
            id: summary.id,
            exchange: summary.exchange,
            routing_key: summary.routing_key,
            payload: payload_json
                .is_none()
                .then(|| format!("\\x{}", hex(&bytes))),
            payload_json,
            content_type: properties.content_type,
            headers: letter.headers,
            ordering_key: summary.ordering_key,
            r#type: properties.kind,
            content_encoding: properties.content_encoding,
            correlation_id: properties.correlation_id,
            reply_to: properties.reply_to,
            app_id: properties.app_id,
            priority: properties.priority,
            expiration: properties.expiration_ms,
            supersede: letter.supersede,
            created_at: exact(summary.created_at),
            attempts: summary.attempts,
            reason: summary.reason,
            error: summary.error,
            given_up_at: exact(summary.given_up_at),
            blocks: summary.blocks,
        }
    }
}

/// JSON as it was written, but for line breaks: between its tokens, the only place where JSON has
/// them, they mean no more than a blank, and here they would end the row. `None` for what the parser here does
/// not take (PostgreSQL allows deeper nesting): its bytes are as good a payload.
fn on_one_line(json: &[u8]) -> Option<Box<RawValue>> {
    let text = std::str::from_utf8(json).ok()?.replace(['\n', '\r'], " ");
    // `json_populate_record` would take it for no payload at all.
    if text.trim() == "null" {
        return None;
    }
    RawValue::from_string(text).ok()
}

/// To the microsecond, which is what PostgreSQL keeps.
fn exact(time: SystemTime) -> String {
    match timestamp(time) {
        shown if shown.ends_with('Z') => humantime::format_rfc3339_micros(time).to_string(),
        shown if shown.starts_with("before") => "-infinity".to_owned(),
        _ => "infinity".to_owned(),
    }
}
