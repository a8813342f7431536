//! `keys`: which ordering keys wait, for what, and what of a key waits.

mod literal;
mod shown;

use std::io::Write;
use std::time::SystemTime;

use postrider_postgres::{BlockedKey, Database, Head, Schema};
use serde::Serialize;

use self::shown::{Key, Waiting, next};
use super::dead_letters::now;
use crate::cli::{Exit, KeysCommand, ListKeys, ShowKey};
use crate::config::DatabaseConfig;
use crate::table::{Table, coarse, name, printable, timestamp};
use crate::wiring;

/// How many keys are read at once.
const PAGE: u32 = 1_000;

/// Does what was asked.
///
/// # Errors
/// When the database cannot be reached or holds no outbox this program knows, or nothing can be written to
/// `out` or `err`.
pub(crate) async fn keys(
    config: &DatabaseConfig,
    command: KeysCommand,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let database = wiring::database_for_command(config)?;
    database.check_schema().await?;
    match command {
        KeysCommand::List(arguments) => list(&database, &arguments, out).await,
        KeysCommand::Show(arguments) => {
            let schema = Schema::new(&config.schema)?;
            show(&database, &schema, &arguments, out, err).await
        }
    }
}

async fn list(
    database: &Database,
    arguments: &ListKeys,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let listing = &arguments.listing;
    let now = now(database).await?;
    // One more than is shown tells whether there are more.
    let mut keys = select(database, arguments.blocked, listing.limit + 1).await?;
    let more = listing.cut(&mut keys);
    if listing.json {
        #[derive(Serialize)]
        struct List {
            keys: Vec<Key>,
            more: bool,
        }
        let keys = keys.into_iter().map(|key| Key::new(key, now)).collect();
        serde_json::to_writer(&mut *out, &List { keys, more })?;
        writeln!(out)?;
        return Ok(Exit::Success);
    }
    if keys.is_empty() {
        writeln!(out, "no ordering key is blocked")?;
        return Ok(Exit::Success);
    }
    let mut table = Table::new(&["KEY", "BLOCKED FOR", "BY", "IN", "REASON", "PARKED", "NEXT"]);
    for key in &keys {
        let (table_of_head, message) = match &key.head {
            Head::Deferred { message, .. } => ("deferred", Some(message)),
            Head::DeadLetter { message } => ("dead_letters", Some(message)),
            Head::Resuming | Head::Missing { .. } => ("-", None),
        };
        let reason = message.and_then(|message| message.reason.as_deref());
        table.row(vec![
            name(&key.key),
            coarse(shown::blocked_for(key, now)),
            message.map_or_else(|| "-".to_owned(), |message| message.id.to_string()),
            table_of_head.to_owned(),
            printable(reason.unwrap_or("-")),
            key.parked.to_string(),
            next(&key.head, now),
        ]);
    }
    table.print(out)?;
    if more {
        writeln!(out, "there are more: list them with a higher --limit")?;
    }
    Ok(Exit::Success)
}

/// The first keys, at most so many, page by page: those that nothing holds back any more may be many.
async fn select(
    database: &Database,
    only_held_back: bool,
    most: u32,
) -> Result<Vec<BlockedKey>, postrider_postgres::Error> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut selected = Vec::new();
    let mut after: Option<String> = None;
    while selected.len() < most {
        let page = database.blocked_keys(after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
        selected.extend(
            page.into_iter()
                .filter(|key| !only_held_back || key.head != Head::Resuming),
        );
    }
    selected.truncate(most);
    Ok(selected)
}

async fn show(
    database: &Database,
    schema: &Schema,
    arguments: &ShowKey,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let now = now(database).await?;
    let mut state = database.key(&arguments.key, arguments.limit + 1).await?;
    let blocked = state.blocked.take();
    let (waiting, more) = shown::in_order(state, arguments.limit, now);
    if blocked.is_none() && waiting.is_empty() {
        writeln!(
            err,
            "nothing of the ordering key {} waits. Keys are compared as they are, capitals and spaces count; \
             `postrider keys list` names those that are blocked",
            name(&arguments.key)
        )?;
        return Ok(Exit::Failure);
    }
    if arguments.json {
        #[derive(Serialize)]
        struct Shown {
            key: String,
            blocked: Option<Key>,
            waiting: Vec<Waiting>,
            more: bool,
        }
        let shown = Shown {
            key: arguments.key.clone(),
            blocked: blocked.map(|key| Key::new(key, now)),
            waiting,
            more,
        };
        serde_json::to_writer(&mut *out, &shown)?;
        writeln!(out)?;
        return Ok(Exit::Success);
    }
    match &blocked {
        None => writeln!(
            out,
            "{:<11}  {}\nnothing holds it back: what waits goes in its turn",
            "key",
            name(&arguments.key)
        )?,
        Some(key) => print(key, schema, now, out)?,
    }
    writeln!(out)?;
    let mut table = Table::new(&["SEQ", "ID", "IN", "EXCHANGE", "ROUTING KEY", "AGE"]);
    for message in &waiting {
        table.row(message.cells());
    }
    table.print(out)?;
    if more {
        writeln!(out, "there are more: show them with a higher --limit")?;
    }
    Ok(Exit::Success)
}

fn print(
    key: &BlockedKey,
    schema: &Schema,
    now: SystemTime,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let since = format!(
        "{}, since {}",
        coarse(shown::blocked_for(key, now)),
        timestamp(key.blocked_at)
    );
    let mut lines = vec![("key", name(&key.key)), ("blocked for", since)];
    let head = match &key.head {
        Head::Deferred { message, .. } => Some(("deferred", message)),
        Head::DeadLetter { message } => Some(("dead_letters", message)),
        Head::Resuming | Head::Missing { .. } => None,
    };
    if let Some((table, message)) = head {
        let place = format!(
            "{} (seq {}), for exchange {} with routing key {}",
            message.id,
            message.seq,
            name(&message.exchange),
            name(&message.routing_key)
        );
        let reason = message.reason.as_deref().unwrap_or("it waits for its time");
        let attempts = match message.attempts {
            1 => "1 attempt was charged".to_owned(),
            several => format!("{several} attempts were charged"),
        };
        lines.extend([
            ("by", place),
            (
                "in",
                format!("{schema}.{table}: {}; {attempts}", printable(reason)),
            ),
        ]);
        if let Some(error) = &message.error {
            lines.push(("error", printable(error)));
        }
    }
    lines.extend([
        ("next", shown::advice(&key.head, &key.key, schema, now)),
        ("parked", key.parked.to_string()),
    ]);
    lines
        .into_iter()
        .try_for_each(|(label, value)| writeln!(out, "{label:<11}  {value}"))
}
