//! `deferred`: finds what waits for a time, and lets it go early.

use std::collections::HashSet;
use std::io::Write;
use std::time::SystemTime;

use postrider_postgres::{Database, DeferredFilter, DeferredSummary};
use serde::Serialize;
use uuid::Uuid;

use super::change::{self, Verb};
use super::dead_letters::{ORDERING_KEY, now};
use crate::cli::{Change, DeferredCommand, DeferredSelection, Exit, Listing};
use crate::config::DatabaseConfig;
use crate::table::{Table, coarse, name, printable, shortened, timestamp};
use crate::wiring;

/// How much of an error a list shows.
const ERROR_CHARACTERS: usize = 60;

/// How many rows are read at once to find the named ids.
const PAGE: u32 = 1_000;

const RELEASE: Verb = Verb {
    infinitive: "release",
    past: "released",
    one: "deferred message",
    several: "deferred messages",
    // A message that is due holds back its key until it has left.
    of_keys: ("goes on", "go on"),
};

/// Does what was asked.
///
/// # Errors
/// When the database cannot be reached or holds no outbox this program knows, or nothing can be written to
/// `out` or `err`. What was changed before stays so.
pub(crate) async fn deferred(
    config: &DatabaseConfig,
    command: DeferredCommand,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let database = wiring::database_for_command(config)?;
    database.check_schema().await?;
    match command {
        DeferredCommand::List(arguments) => {
            let filter = filter(&arguments.selection);
            list(&database, &filter, &arguments.listing, out).await
        }
        DeferredCommand::Release(change) => release(&database, &change, out, err).await,
    }
}

fn filter(selection: &DeferredSelection) -> DeferredFilter {
    DeferredFilter {
        ids: selection.which.ids.clone(),
        exchange: selection.which.exchange.clone(),
        reason: selection.which.reason,
        cause: selection.cause,
        ..DeferredFilter::default()
    }
}

/// A deferred message without its contents, in `list --json`.
#[derive(Debug, Serialize)]
struct Summary {
    id: Uuid,
    seq: i64,
    exchange: String,
    routing_key: String,
    ordering_key: Option<String>,
    cause: &'static str,
    reason: Option<String>,
    error: Option<String>,
    attempts: u32,
    created_at: String,
    due_at: String,
    /// Below zero for what is due already.
    due_in_seconds: f64,
    /// Whether it waits for an earlier one of its ordering key instead.
    waits_for_its_turn: bool,
}

impl Summary {
    fn new(message: DeferredSummary, now: SystemTime) -> Self {
        let due_in_seconds = match message.due_at.duration_since(now) {
            Ok(wait) => wait.as_secs_f64(),
            Err(past) => -past.duration().as_secs_f64(),
        };
        Self {
            waits_for_its_turn: message.waits_for_its_turn(),
            id: message.id,
            seq: message.seq.0,
            exchange: message.exchange,
            routing_key: message.routing_key,
            ordering_key: message.ordering_key,
            cause: message.cause.as_str(),
            reason: message.reason,
            error: message.error,
            attempts: message.attempts,
            created_at: timestamp(message.created_at),
            due_at: timestamp(message.due_at),
            due_in_seconds,
        }
    }
}

async fn list(
    database: &Database,
    filter: &DeferredFilter,
    listing: &Listing,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let now = now(database).await?;
    // One more than is shown tells whether there are more.
    let mut messages = database.deferred(filter, None, listing.limit + 1).await?;
    let more = listing.cut(&mut messages);
    if listing.json {
        #[derive(Serialize)]
        struct List {
            deferred: Vec<Summary>,
            more: bool,
        }
        let deferred = messages
            .into_iter()
            .map(|message| Summary::new(message, now))
            .collect();
        serde_json::to_writer(&mut *out, &List { deferred, more })?;
        writeln!(out)?;
        return Ok(Exit::Success);
    }
    if messages.is_empty() {
        writeln!(out, "there are no deferred messages to list")?;
        return Ok(Exit::Success);
    }
    let mut table = Table::new(&[
        "ID",
        "EXCHANGE",
        "ROUTING KEY",
        ORDERING_KEY,
        "CAUSE",
        "REASON",
        "ATTEMPTS",
        "DUE IN",
        "ERROR",
    ]);
    for message in &messages {
        let due_in = match message.due_at.duration_since(now) {
            _ if message.waits_for_its_turn() => "its turn".to_owned(),
            Ok(wait) => coarse(wait),
            Err(_) => "now".to_owned(),
        };
        table.row(vec![
            message.id.to_string(),
            name(&message.exchange),
            name(&message.routing_key),
            message
                .ordering_key
                .as_deref()
                .map_or_else(String::new, name),
            message.cause.to_string(),
            printable(message.reason.as_deref().unwrap_or("-")),
            message.attempts.to_string(),
            due_in,
            shortened(message.error.as_deref().unwrap_or("-"), ERROR_CHARACTERS),
        ]);
    }
    table.leave_out_if_empty(ORDERING_KEY);
    table.print(out)?;
    if more {
        writeln!(out, "there are more: list them with a higher --limit")?;
    }
    Ok(Exit::Success)
}

async fn release(
    database: &Database,
    change: &Change<DeferredSelection>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let filter = filter(&change.selection);
    let matching = database.count_deferred(&filter, u64::MAX).await?;
    let absent = report_absent(database, &filter, err).await?;
    if change.dry_run {
        RELEASE.would(matching, change.json, out)?;
        return Ok(absent);
    }
    let released = RELEASE
        .in_batches(matching, err, async |after, batch| {
            database.release_deferred(&filter, after, batch).await
        })
        .await?;
    if released.rows < matching {
        writeln!(
            err,
            "the others of {matching} are due already, are being published, or wait for an earlier one of their ordering key"
        )?;
    }
    RELEASE.did(matching, released, change.json, out)?;
    Ok(absent)
}

/// Says which of the named ids are not there, and how the program ends for it.
async fn report_absent(
    database: &Database,
    filter: &DeferredFilter,
    err: &mut dyn Write,
) -> anyhow::Result<Exit> {
    if filter.ids.is_empty() {
        return Ok(Exit::Success);
    }
    let mut found = HashSet::new();
    let mut after = None;
    loop {
        let page = database.deferred(filter, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.cursor());
        found.extend(page.iter().map(|message| message.id));
    }
    let among = "the deferred messages selected";
    let absent = change::report_absent(&filter.ids, &found, among, err)?;
    Ok(if absent { Exit::Failure } else { Exit::Success })
}
