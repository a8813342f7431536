//! `dead-letters`: finds what was given up, and sends it again, throws it away, or writes it out.

use std::collections::HashSet;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::time::{Duration, Instant, SystemTime};

use postrider_core::Seq;
use postrider_postgres::{ClaimLimits, Database, DeadLetterFilter, Error, SampleFrom};
use serde::Serialize;

use super::change::{self, Verb};
use super::letter::{self, Row, Summary, Whole};
use crate::cli::{
    Change, DeadLetterSelection, DeadLettersCommand, DiscardDeadLetters, Exit, Listing,
    ShowDeadLetter,
};
use crate::config::DatabaseConfig;
use crate::table::{Table, coarse, name, printable, shortened};
use crate::wiring;

/// How much of an error a list shows.
const ERROR_CHARACTERS: usize = 60;

/// The column that is there only where some message has a key.
pub(crate) const ORDERING_KEY: &str = "ORDERING KEY";

/// How much is read at once for an export: everything in memory, whatever the payloads' sizes, is one
/// page and one payload.
const PAGE: ClaimLimits = ClaimLimits {
    rows: 500,
    bytes: 8 << 20,
    max_message_bytes: u64::MAX,
    share: postrider_postgres::Share::InOrder,
};

const RETRY: Verb = Verb {
    infinitive: "retry",
    past: "retried",
    one: "dead letter",
    several: "dead letters",
    of_keys: (
        "waits for it no longer than until it has left: then what is parked goes out, in order",
        "wait for them no longer than until they have left: then what is parked goes out, in order",
    ),
};

const DISCARD: Verb = Verb {
    infinitive: "discard",
    past: "discarded",
    one: "dead letter",
    several: "dead letters",
    of_keys: (
        "goes on without it: what is parked goes out, in order",
        "go on without them: what is parked goes out, in order",
    ),
};

/// Does what was asked.
///
/// # Errors
/// When the database cannot be reached or holds no outbox this program knows, or nothing can be written to
/// `out` or `err`. What was changed before stays so.
pub(crate) async fn dead_letters(
    config: &DatabaseConfig,
    command: DeadLettersCommand,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<Exit> {
    if let DeadLettersCommand::Discard(arguments) = &command
        && !arguments.yes
        && !arguments.change.dry_run
        && !io::stdin().is_terminal()
    {
        writeln!(
            err,
            "error: discarding is for good, and nobody can be asked here: standard input is no terminal. \
             Say --yes, or look first with --dry-run"
        )?;
        return Ok(Exit::Usage);
    }
    let database = wiring::database_for_command(config)?;
    database.check_schema().await?;
    match command {
        DeadLettersCommand::List(arguments) => {
            let filter = filter(&arguments.selection);
            list(&database, &filter, &arguments.listing, out).await
        }
        DeadLettersCommand::Show(arguments) => show(&database, &arguments, out, err).await,
        DeadLettersCommand::Retry(change) => retry(&database, &change, out, err).await,
        DeadLettersCommand::Discard(arguments) => discard(&database, &arguments, out, err).await,
        DeadLettersCommand::Export(arguments) => {
            export(&database, &filter(&arguments.selection), out).await
        }
    }
}

fn filter(selection: &DeadLetterSelection) -> DeadLetterFilter {
    DeadLetterFilter {
        ids: selection.which.ids.clone(),
        exchange: selection.which.exchange.clone(),
        reason: selection.which.reason,
        older_than: selection.older_than,
        newer_than: selection.newer_than,
        ..DeadLetterFilter::default()
    }
}

/// The database's clock: ages by this machine's would be wrong by what the two differ.
pub(crate) async fn now(database: &Database) -> Result<SystemTime, Error> {
    // The cheapest look of those that ask it for the time, and within an operator's rights.
    Ok(database.lag(SampleFrom::default()).await?.database_now)
}

async fn list(
    database: &Database,
    filter: &DeadLetterFilter,
    listing: &Listing,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let now = now(database).await?;
    // One more than is shown tells whether there are more.
    let mut letters = database
        .dead_letters(filter, None, listing.limit + 1)
        .await?;
    let more = listing.cut(&mut letters);
    if listing.json {
        #[derive(Serialize)]
        struct List {
            dead_letters: Vec<Summary>,
            more: bool,
        }
        let dead_letters = letters
            .into_iter()
            .map(|letter| Summary::new(letter, now))
            .collect();
        serde_json::to_writer(&mut *out, &List { dead_letters, more })?;
        writeln!(out)?;
        return Ok(Exit::Success);
    }
    if letters.is_empty() {
        writeln!(out, "there are no dead letters to list")?;
        return Ok(Exit::Success);
    }
    let mut table = Table::new(&[
        "ID",
        "EXCHANGE",
        "ROUTING KEY",
        ORDERING_KEY,
        "REASON",
        "ATTEMPTS",
        "AGE",
        "ERROR",
    ]);
    for letter in &letters {
        table.row(vec![
            letter.id.to_string(),
            name(&letter.exchange),
            name(&letter.routing_key),
            letter
                .ordering_key
                .as_deref()
                .map_or_else(String::new, name),
            printable(&letter.reason),
            letter.attempts.to_string(),
            coarse(letter::age(letter, now)),
            shortened(&letter.error, ERROR_CHARACTERS),
        ]);
    }
    table.leave_out_if_empty(ORDERING_KEY);
    table.print(out)?;
    if more {
        writeln!(out, "there are more: list them with a higher --limit")?;
    }
    Ok(Exit::Success)
}

async fn show(
    database: &Database,
    arguments: &ShowDeadLetter,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let filter = DeadLetterFilter {
        ids: vec![arguments.id],
        ..DeadLetterFilter::default()
    };
    let now = now(database).await?;
    let letters = database.export_dead_letters(&filter, None, PAGE).await?;
    if letters.is_empty() {
        change::report_absent(&filter.ids, &HashSet::new(), "the dead letters", err)?;
        return Ok(Exit::Failure);
    }
    // Ids are unique by convention only: whoever broke it sees each.
    for (place, letter) in letters.into_iter().enumerate() {
        if arguments.json {
            serde_json::to_writer(&mut *out, &Whole::new(letter, now))?;
            writeln!(out)?;
            continue;
        }
        if place > 0 {
            writeln!(out)?;
        }
        letter::print(letter, now, out)?;
    }
    Ok(Exit::Success)
}

async fn retry(
    database: &Database,
    change: &Change<DeadLetterSelection>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let filter = filter(&change.selection);
    let counted = Instant::now();
    let matching = database.count_dead_letters(&filter, u64::MAX).await?;
    let absent = report_absent(database, &filter, err).await?;
    if change.dry_run {
        RETRY.would(matching, change.json, out)?;
    } else {
        let retried = RETRY
            .in_batches(matching, err, async |after, batch| {
                let filter = as_of(&filter, counted.elapsed());
                database.retry_dead_letters(&filter, after, batch).await
            })
            .await?;
        RETRY.did(matching, retried, change.json, out)?;
    }
    Ok(absent)
}

async fn discard(
    database: &Database,
    arguments: &DiscardDeadLetters,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let change = &arguments.change;
    let filter = filter(&change.selection);
    let counted = Instant::now();
    let matching = database.count_dead_letters(&filter, u64::MAX).await?;
    let absent = report_absent(database, &filter, err).await?;
    if change.dry_run {
        DISCARD.would(matching, change.json, out)?;
        return Ok(absent);
    }
    if matching > 0 && !arguments.yes && !confirmed(matching, err)? {
        writeln!(err, "nothing was discarded")?;
        return Ok(Exit::Failure);
    }
    let discarded = DISCARD
        .in_batches(matching, err, async |after, batch| {
            let filter = as_of(&filter, counted.elapsed());
            database.discard_dead_letters(&filter, after, batch).await
        })
        .await?;
    DISCARD.did(matching, discarded, change.json, out)?;
    Ok(absent)
}

/// What the filter meant so long ago: what was given up since then was not counted, and nobody was told
/// of it.
fn as_of(filter: &DeadLetterFilter, ago: Duration) -> DeadLetterFilter {
    DeadLetterFilter {
        older_than: Some(filter.older_than.unwrap_or_default() + ago),
        newer_than: filter.newer_than.map(|newer| newer + ago),
        ..filter.clone()
    }
}

fn confirmed(matching: u64, err: &mut dyn Write) -> io::Result<bool> {
    write!(
        err,
        "discard {} for good, never to be delivered? [y/N] ",
        DISCARD.number(matching)
    )?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
}

/// Says which of the named ids are not there, and how the program ends for it.
async fn report_absent(
    database: &Database,
    filter: &DeadLetterFilter,
    err: &mut dyn Write,
) -> anyhow::Result<Exit> {
    if filter.ids.is_empty() {
        return Ok(Exit::Success);
    }
    let mut found = HashSet::new();
    let mut after: Option<Seq> = None;
    loop {
        let page = database.dead_letters(filter, after, PAGE.rows).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.seq);
        found.extend(page.iter().map(|letter| letter.id));
    }
    let absent = change::report_absent(&filter.ids, &found, "the dead letters selected", err)?;
    Ok(if absent { Exit::Failure } else { Exit::Success })
}

async fn export(
    database: &Database,
    filter: &DeadLetterFilter,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let mut out = BufWriter::new(out);
    let mut after = None;
    loop {
        let page = database.export_dead_letters(filter, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.summary.seq);
        for letter in page {
            serde_json::to_writer(&mut out, &Row::new(letter))?;
            writeln!(out)?;
        }
    }
    out.flush()?;
    Ok(Exit::Success)
}
