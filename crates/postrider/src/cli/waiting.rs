//! The commands over messages that do not go by themselves now: dead letters, what is deferred, and what waits behind either.

use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args, Subcommand};
use postrider_core::Reason;
use postrider_postgres::Cause;
use uuid::Uuid;

use super::duration;

/// `dead-letters`
#[derive(Debug, Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// List dead letters, the oldest first
    #[command(
        long_about = "List dead letters: those that were given up first come first. Without a selector, all.",
        after_help = "\
Examples:
  postrider dead-letters list
  postrider dead-letters list --exchange orders --reason unroutable
  postrider dead-letters list --newer-than 1h --limit 1000
  postrider dead-letters list --json | jq -r '.dead_letters[].id'"
    )]
    List(List<DeadLetterSelection>),

    /// Show one dead letter with everything that is known of it
    #[command(
        long_about = "Show one dead letter with everything that is known of it: why it was given up, its properties, \
            its headers and its payload. A payload that is not text is shown in hexadecimal.",
        after_help = "\
Examples:
  postrider dead-letters show 0193d5c4-9d1f-7c3a-8f0e-2b6a4c1d5e7f
  postrider dead-letters show 0193d5c4-9d1f-7c3a-8f0e-2b6a4c1d5e7f --json | jq -r .payload"
    )]
    Show(ShowDeadLetter),

    /// Send dead letters again
    #[command(
        long_about = "Send dead letters again: each becomes a deferred message that is due now, keeps its id, and may fail as \
            often as a new one. A relay publishes it. If it held back its ordering key, what is parked behind it follows when it has \
            left; otherwise it blocks its key until then.\n\n\
            They are moved in transactions of a thousand at most. Interrupted, it has moved whole thousands \
            and touched nothing else; start it again for the rest.",
        after_help = "\
Examples:
  postrider dead-letters retry 0193d5c4-9d1f-7c3a-8f0e-2b6a4c1d5e7f
  postrider dead-letters retry --exchange orders --dry-run
  postrider dead-letters retry --reason exchange_missing --older-than 10min
  postrider dead-letters retry --all"
    )]
    Retry(Change<DeadLetterSelection>),

    /// Delete dead letters for good
    #[command(
        long_about = "Delete dead letters for good: their messages will never be delivered. Asks before it does; \
            where nobody can be asked, --yes is required. `export` them first to be able to change your mind. An ordering key \
            that was held back goes on without them.\n\n\
            They are deleted in transactions of a thousand at most. Interrupted, it has deleted whole thousands \
            and touched nothing else; start it again for the rest.",
        after_help = "\
Examples:
  postrider dead-letters discard 0193d5c4-9d1f-7c3a-8f0e-2b6a4c1d5e7f
  postrider dead-letters discard --reason too_large --dry-run
  postrider dead-letters export --older-than 30days > gone.jsonl
  postrider dead-letters discard --older-than 30days --yes"
    )]
    Discard(DiscardDeadLetters),

    /// Write dead letters to standard output, one JSON object a line
    #[command(
        long_about = "Write dead letters to standard output, one JSON object a line, the oldest first, and change \
            nothing. Without a selector, all.\n\n\
            The names are the columns of outbox.dead_letters, and the values are written as PostgreSQL reads them, so \
            that a row can be put back with json_populate_record: a payload of bytes as \\x and hexadecimal, one of JSON \
            as it is, on one line.",
        after_help = "\
Examples:
  postrider dead-letters export > dead-letters.jsonl
  postrider dead-letters export --exchange orders | jq -c '{id, reason, error}'"
    )]
    Export(ExportDeadLetters),
}

/// `deferred`
#[derive(Debug, Subcommand)]
pub(crate) enum DeferredCommand {
    /// List deferred messages, the next due first
    #[command(
        long_about = "List deferred messages: those due next come first. Without a selector, all.",
        after_help = "\
Examples:
  postrider deferred list
  postrider deferred list --exchange orders --reason nacked
  postrider deferred list --cause scheduled --json | jq -r '.deferred[].id'"
    )]
    List(List<DeferredSelection>),

    /// Make deferred messages due now
    #[command(
        long_about = "Make deferred messages due now, scheduled ones as well, and a relay publishes them. Their \
             attempts stay counted.\n\n\
            They are released in transactions of a thousand at most. Interrupted, it has released whole thousands \
            and touched nothing else; start it again for the rest.",
        after_help = "\
Examples:
  postrider deferred release 0193d5c4-9d1f-7c3a-8f0e-2b6a4c1d5e7f
  postrider deferred release --exchange orders --dry-run
  postrider deferred release --reason nacked"
    )]
    Release(Change<DeferredSelection>),
}

/// `keys`
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// List the keys whose messages wait: since when, by which message, and what happens next
    #[command(
        long_about = "List the keys whose messages wait, in alphabetical order: since when, the message that holds them back, where \
            that is and why, what happens next, and how many messages are parked behind it.\n\n\
            A key that nothing holds back any more is listed until what was parked is out (`going out`); --blocked leaves it out.",
        after_help = "\
Examples:
  postrider keys list
  postrider keys list --blocked
  postrider keys list --json | jq -r '.keys[] | select(.waits_in == \"dead_letters\") | .head.id'"
    )]
    List(ListKeys),

    /// Show what holds one key back, and what of it waits, in order
    #[command(
        long_about = "Show what holds one key back, and the first of its messages that wait, in order, wherever they are. Ends with 1 when \
            nothing of the key waits.",
        after_help = "\
Examples:
  postrider keys show order-17
  postrider keys show order-17 --json | jq .head"
    )]
    Show(ShowKey),
}

/// `keys list`
#[derive(Debug, Args)]
pub(crate) struct ListKeys {
    /// Only keys that a message holds back, not those whose parked messages are going out
    #[arg(long)]
    pub(crate) blocked: bool,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

/// `keys show`
#[derive(Debug, Args)]
pub(crate) struct ShowKey {
    /// The key, as it is: capitals and spaces count
    #[arg(value_name = "KEY")]
    pub(crate) key: String,

    /// Show at most so many messages of those in each place
    #[arg(
        long,
        value_name = "N",
        default_value_t = 20,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub(crate) limit: u32,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which messages. Everything given must hold.
#[derive(Debug, Clone, Args)]
pub(crate) struct Which {
    /// Only the messages of these ids
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<Uuid>,

    /// Only messages to this exchange; '' is RabbitMQ's default exchange
    #[arg(short, long)]
    pub(crate) exchange: Option<String>,

    /// Only messages whose last publish failed for this reason
    #[arg(long, value_parser = reason())]
    pub(crate) reason: Option<Reason>,
}

/// Which dead letters.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeadLetterSelection {
    #[command(flatten)]
    pub(crate) which: Which,

    /// Only messages given up longer ago than this, such as 2h or 30days
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) older_than: Option<Duration>,

    /// Only messages given up within this time, such as 10min
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) newer_than: Option<Duration>,
}

/// Which deferred messages.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeferredSelection {
    #[command(flatten)]
    pub(crate) which: Which,

    /// Only messages that wait for this cause: after a failure, or for the time they were published for
    #[arg(long, value_parser = cause())]
    pub(crate) cause: Option<Cause>,
}

/// Arguments that select messages.
pub(crate) trait Selection: Args {
    /// Their names.
    const ARGUMENTS: &'static [&'static str];
}

impl Selection for DeadLetterSelection {
    const ARGUMENTS: &'static [&'static str] =
        &["ids", "exchange", "reason", "older_than", "newer_than"];
}

impl Selection for DeferredSelection {
    const ARGUMENTS: &'static [&'static str] = &["ids", "exchange", "reason", "cause"];
}

/// Those that `--all` excludes.
fn selectors(names: &'static [&'static str]) -> ArgGroup {
    ArgGroup::new("selectors").args(names).multiple(true)
}

/// A command that changes something must be told which messages, or plainly that it is all of them.
fn required(names: &'static [&'static str]) -> ArgGroup {
    ArgGroup::new("required")
        .args(names)
        .arg("all")
        .multiple(true)
        .required(true)
}

/// How much of a list.
#[derive(Debug, Args)]
pub(crate) struct Listing {
    /// List at most so many, and say whether there are more
    #[arg(
        long,
        value_name = "N",
        default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    pub(crate) limit: u32,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl Listing {
    /// Cuts what was read to the limit, and says whether there was more.
    pub(crate) fn cut<T>(&self, rows: &mut Vec<T>) -> bool {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        more
    }
}

/// Which messages to list, and how.
#[derive(Debug, Args)]
pub(crate) struct List<S: Selection> {
    #[command(flatten)]
    pub(crate) selection: S,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

/// Which messages to change, and how.
#[derive(Debug, Args)]
#[command(group = selectors(S::ARGUMENTS), group = required(S::ARGUMENTS))]
pub(crate) struct Change<S: Selection> {
    #[command(flatten)]
    pub(crate) selection: S,

    /// All of them
    #[arg(long, conflicts_with = "selectors")]
    // Read by nobody: all is what no selector selects.
    all: bool,

    /// Say how many messages it is about, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `dead-letters show`
#[derive(Debug, Args)]
pub(crate) struct ShowDeadLetter {
    /// The message's id
    #[arg(value_name = "ID")]
    pub(crate) id: Uuid,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `dead-letters discard`
#[derive(Debug, Args)]
pub(crate) struct DiscardDeadLetters {
    #[command(flatten)]
    pub(crate) change: Change<DeadLetterSelection>,

    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// `dead-letters export`
#[derive(Debug, Args)]
pub(crate) struct ExportDeadLetters {
    #[command(flatten)]
    pub(crate) selection: DeadLetterSelection,
}

fn cause() -> impl TypedValueParser<Value = Cause> {
    PossibleValuesParser::new(Cause::ALL.map(Cause::as_str)).try_map(|name| {
        Cause::ALL
            .into_iter()
            .find(|cause| cause.as_str() == name)
            .ok_or("not a cause")
    })
}

/// The names that metrics, tables and logs use too.
fn reason() -> impl TypedValueParser<Value = Reason> {
    PossibleValuesParser::new(Reason::ALL.map(Reason::as_str)).try_map(|name| {
        Reason::ALL
            .into_iter()
            .find(|reason| reason.as_str() == name)
            .ok_or("not a reason")
    })
}
