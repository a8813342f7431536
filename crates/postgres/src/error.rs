//! What can go wrong with the database, and which class of trouble it is.

use std::error::Error as StdError;
use std::time::Duration;

use postrider_core::Seq;
use postrider_tls::{Fault, Tls};
use tokio_postgres::error::SqlState;

use crate::schema_name::Schema;

/// An error of this crate. The text never holds a password, nor a row's contents.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The schema's name is not acceptable.
    #[error(
        "invalid schema name {0:?}: use lower-case letters, digits and underscores, not starting with a digit or pg_, at most 48 bytes"
    )]
    SchemaName(String),

    /// The role's name is not acceptable.
    #[error(
        "invalid role name {0:?}: use 1 to 63 bytes without control characters, not public, none, or what begins with pg_"
    )]
    RoleName(String),

    /// The database URL or another setting cannot be used.
    #[error("{0}")]
    Settings(&'static str),

    /// No connection could be made.
    #[error("cannot connect to the database: {detail}")]
    Connect {
        /// What the server or the operating system said.
        detail: String,
        /// The cause.
        #[source]
        source: tokio_postgres::Error,
    },

    /// No connection could be made by TLS, or the server insists on it.
    #[error("cannot connect to the database: {fault}")]
    Tls {
        /// Which kind of trouble, and what to do about it.
        fault: Fault,
        /// The cause.
        #[source]
        source: tokio_postgres::Error,
    },

    /// Every connection of the pool is in use, or none could be made in time.
    #[error("no database connection within {0:?}: {1}")]
    NoConnection(Duration, &'static str),

    /// The server did not answer in time; the connection has been given up.
    #[error(
        "no answer from the database within {waited:?} while trying to {doing}; the connection was given up"
    )]
    NoAnswer {
        /// What was being done.
        doing: &'static str,
        /// For how long.
        waited: Duration,
    },

    /// The server refused a statement, or the connection broke under it.
    #[error("cannot {doing}: {detail}")]
    Query {
        /// What was being done.
        doing: &'static str,
        /// The server's message with its SQLSTATE, or what happened to the connection.
        detail: String,
        /// The cause.
        #[source]
        source: tokio_postgres::Error,
    },

    /// A listening session is over.
    #[error("the listening session to the database has ended")]
    SessionEnded,

    /// A standby, or a session in which every transaction is read-only.
    #[error(
        "the database does not accept writes: it is a standby, or default_transaction_read_only is on; name the primary, or list all hosts in the url"
    )]
    ReadOnly,

    /// Older than PostgreSQL 14.
    #[error("PostgreSQL {0} is too old: version 14 or newer is needed")]
    UnsupportedServer(String),

    /// The database is not in UTF-8, so that the limits in bytes would not be those of the wire.
    #[error("the database's encoding is {0}: the outbox needs a database with ENCODING 'UTF8'")]
    Encoding(String),

    /// There is no outbox in the schema.
    #[error("there is no outbox in schema {schema} of this database: run `postrider migrate`")]
    SchemaMissing {
        /// The schema looked at.
        schema: Schema,
    },

    /// The outbox lacks migrations this program needs.
    #[error(
        "the outbox in schema {schema} is at version {applied}, this program needs {needed}: run `postrider migrate`"
    )]
    SchemaOlder {
        /// The schema looked at.
        schema: Schema,
        /// The last migration applied.
        applied: i32,
        /// The last migration this program has.
        needed: i32,
    },

    /// The outbox has migrations this program does not know.
    #[error(
        "the outbox in schema {schema} is at version {applied}, newer than this program knows ({known}): use the postrider that migrated it, or a newer one"
    )]
    SchemaNewer {
        /// The schema looked at.
        schema: Schema,
        /// The last migration applied.
        applied: i32,
        /// The last migration this program has.
        known: i32,
    },

    /// A migration that was applied is not the one this program has.
    #[error(
        "migration {version} of the outbox in schema {schema} was applied as {applied_name} with checksum {applied}, but this program has {known_name} with {known}: a migration must not be edited after it was applied; use the postrider that applied it, or restore the schema"
    )]
    SchemaEdited {
        /// The schema looked at.
        schema: Schema,
        /// The migration that differs.
        version: i32,
        /// Its name in the database.
        applied_name: String,
        /// Its checksum in the database.
        applied: String,
        /// Its name in this program.
        known_name: &'static str,
        /// Its checksum in this program.
        known: String,
    },

    /// A sequence that hands out values from a cache gives later transactions lower values.
    #[error(
        "the sequence of {schema}.messages.seq caches {cache} values: messages would go out of order and be overlooked; run `ALTER TABLE {schema}.messages ALTER COLUMN seq SET CACHE 1` as the table's owner"
    )]
    SequenceCache {
        /// The schema looked at.
        schema: Schema,
        /// The sequence's cache.
        cache: i64,
    },

    /// The role lacks rights that the relay needs.
    #[error(
        "role {role} lacks rights in schema {schema}: {missing}; as the owner, run the SQL that `postrider grants relay --role NAME` prints, and make {role} a member of that role"
    )]
    Rights {
        /// The role.
        role: String,
        /// The schema looked at.
        schema: Schema,
        /// What it may not do.
        missing: String,
    },

    /// Another runner held the migration lock all the time.
    #[error(
        "another migration is running since more than {0:?}: wait for it, or look for its session with application_name postrider in pg_stat_activity"
    )]
    MigrationLock(Duration),

    /// A migration failed; it was rolled back.
    #[error("migration {version} ({name}) failed and was rolled back: {detail}")]
    Migration {
        /// Which migration.
        version: i32,
        /// Its name.
        name: &'static str,
        /// The server's message with its SQLSTATE.
        detail: String,
        /// The cause.
        #[source]
        source: tokio_postgres::Error,
    },

    /// A settle was given a row that its claim did not lock.
    #[error("message {0} is not part of this claim: nothing was settled")]
    NotClaimed(Seq),

    /// A settle was given two fates for one row.
    #[error("message {0} was named twice in one settlement: nothing was settled")]
    NamedTwice(Seq),

    /// The settle deleted or moved another number of rows than it was given.
    #[error(
        "{named} messages should have been settled, but {settled} were: look for triggers and rules on the tables of the outbox; the others will be delivered again"
    )]
    Settled {
        /// How many should have been settled.
        named: u64,
        /// How many were.
        settled: u64,
    },

    /// Before they were sent it was tried whether the rows of a claim can be deleted, and not all of them could.
    #[error(
        "{named} messages should be deleted once they are sent, but only {deleted} could be: look for triggers and rules on the tables of the outbox; they were not sent"
    )]
    Kept {
        /// How many should have been deleted.
        named: u64,
        /// How many were.
        deleted: u64,
    },

    /// The table was made anew: what was known of the old one says nothing of it.
    #[error("the table {schema}.messages was replaced, by a restore perhaps")]
    Replaced {
        /// The schema looked at.
        schema: Schema,
    },

    /// A transaction goes by a name that the relay cannot read.
    #[error(transparent)]
    Writer(#[from] postrider_core::WriterError),

    /// A claimed row holds what the relay cannot read.
    #[error("cannot read message {seq}: {detail}")]
    Row {
        /// The row, 0 if even that could not be read.
        seq: Seq,
        /// What is wrong.
        detail: String,
    },
}

/// The class of an error, for deciding what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The database cannot be reached or is overloaded, starting or stopping: it will come back.
    Unavailable,
    /// The server does not accept writes: a standby, or a failover is under way.
    ReadOnly,
    /// The outbox is missing, or not the one this program needs.
    Schema,
    /// The role may not do this, or may not log in.
    Privilege,
    /// The settings cannot work: the URL, the database's name, the server's version.
    Configuration,
    /// Any other error of a statement.
    Query,
}

impl Error {
    /// Which class of trouble this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::SchemaName(_)
            | Self::RoleName(_)
            | Self::Settings(_)
            | Self::UnsupportedServer(_)
            | Self::Encoding(_) => ErrorKind::Configuration,
            Self::NoConnection(..)
            | Self::NoAnswer { .. }
            | Self::SessionEnded
            | Self::MigrationLock(_) => ErrorKind::Unavailable,
            Self::ReadOnly => ErrorKind::ReadOnly,
            Self::Rights { .. } => ErrorKind::Privilege,
            Self::SchemaMissing { .. }
            | Self::SchemaOlder { .. }
            | Self::SchemaNewer { .. }
            | Self::SchemaEdited { .. }
            | Self::SequenceCache { .. } => ErrorKind::Schema,
            // A server without TLS, or with an expired certificate, is mended at the server: like an outage.
            Self::Connect { source, .. } | Self::Tls { source, .. } => match source.code() {
                Some(code) => kind_of_state(code),
                None => ErrorKind::Unavailable,
            },
            Self::Query { source, .. } | Self::Migration { source, .. } => kind_of(source),
            Self::NotClaimed(_)
            | Self::NamedTwice(_)
            | Self::Settled { .. }
            | Self::Kept { .. }
            | Self::Writer(_)
            | Self::Replaced { .. }
            | Self::Row { .. } => ErrorKind::Query,
        }
    }

    /// Whether the database is away rather than the request wrong: trying again later may help.
    #[must_use]
    pub fn is_connection(&self) -> bool {
        matches!(self.kind(), ErrorKind::Unavailable | ErrorKind::ReadOnly)
    }

    /// Whether the database is there and would say no to the same again, until somebody mends something. Not so of two transactions that got
    /// into each other's way (class 40 of PostgreSQL's appendix A).
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        let is_of_two = self.sqlstate().is_some_and(|state| state.starts_with("40"));
        match self.kind() {
            ErrorKind::Unavailable | ErrorKind::ReadOnly => false,
            ErrorKind::Schema
            | ErrorKind::Privilege
            | ErrorKind::Configuration
            | ErrorKind::Query => !is_of_two,
        }
    }

    /// Whether the time ran out, on either side: asking for less may help.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::NoAnswer { .. } => true,
            Self::Query { source, .. } => source.code() == Some(&SqlState::QUERY_CANCELED),
            _ => false,
        }
    }

    /// Whether the server, or the role, has no connection left to give.
    #[must_use]
    pub fn is_out_of_connections(&self) -> bool {
        self.sqlstate() == Some(SqlState::TOO_MANY_CONNECTIONS.code())
    }

    /// The server's SQLSTATE, when it sent one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Connect { source, .. }
            | Self::Tls { source, .. }
            | Self::Query { source, .. }
            | Self::Migration { source, .. } => source.code().map(SqlState::code),
            _ => None,
        }
    }

    /// Why a connection could not be made; by TLS, if it was to be.
    pub(crate) fn connect(source: tokio_postgres::Error, tls: Option<&Tls>) -> Self {
        // tokio-postgres tells of a server that accepts no writes only by this I/O error.
        if io_error_kind(&source) == Some(std::io::ErrorKind::PermissionDenied) {
            return Self::ReadOnly;
        }
        if let Some(fault) = tls.and_then(|tls| fault(tls, &source)) {
            return Self::Tls { fault, source };
        }
        let mut detail = describe(&source);
        // pg_hba.conf has lines for encrypted connections alone.
        if tls.is_none() && detail.contains("no encryption") {
            detail.push_str("; the server may want TLS: set [database.tls] mode = \"verify-full\"");
        }
        Self::Connect { detail, source }
    }

    /// Whether somebody else had locked a row that was not to be waited for.
    pub(crate) fn is_of_a_locked_row(&self) -> bool {
        match self {
            Self::Query { source, .. } => source.code() == Some(&SqlState::LOCK_NOT_AVAILABLE),
            _ => false,
        }
    }

    pub(crate) fn query(doing: &'static str, source: tokio_postgres::Error) -> Self {
        Self::Query {
            doing,
            detail: describe(&source),
            source,
        }
    }
}

fn fault(tls: &Tls, error: &tokio_postgres::Error) -> Option<Fault> {
    if let Some(said) = error.as_db_error() {
        return said
            .message()
            .contains("valid client certificate")
            .then(|| tls.client_certificate_missing(said.message()));
    }
    // Only its text tells what the server answered to the question for TLS.
    match error.source() {
        Some(cause) if cause.to_string() == "server does not support TLS" => {
            Some(tls.no_tls("set ssl = on there"))
        }
        _ => tls.fault(error),
    }
}

fn kind_of(error: &tokio_postgres::Error) -> ErrorKind {
    match error.code() {
        Some(code) => kind_of_state(code),
        None if error.is_closed() || io_error_kind(error).is_some() => ErrorKind::Unavailable,
        None => ErrorKind::Query,
    }
}

/// Classes of PostgreSQL's appendix A.
fn kind_of_state(state: &SqlState) -> ErrorKind {
    let code = state.code();
    match code {
        // Idle in transaction, idle session and transaction timeouts end the session.
        "25P03" | "57P05" | "25P04" => return ErrorKind::Unavailable,
        // Statement and lock timeouts: the server is slow, the statement not wrong.
        "57014" | "55P03" => return ErrorKind::Unavailable,
        "25006" => return ErrorKind::ReadOnly,
        "42501" => return ErrorKind::Privilege,
        // The outbox, one of its columns or functions is not there.
        "42P01" | "42703" | "42883" | "3F000" => return ErrorKind::Schema,
        // No such database.
        "3D000" => return ErrorKind::Configuration,
        _ => {}
    }
    match code.get(..2) {
        // Connection exception, insufficient resources (too many connections among them), operator
        // intervention (shutdown, crash, cannot connect now), system error.
        Some("08" | "53" | "57" | "58") => ErrorKind::Unavailable,
        // Invalid authorization: wrong password, no pg_hba entry.
        Some("28") => ErrorKind::Privilege,
        _ => ErrorKind::Query,
    }
}

fn io_error_kind(error: &tokio_postgres::Error) -> Option<std::io::ErrorKind> {
    error
        .source()
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .map(std::io::Error::kind)
}

/// What happened, for people: tokio-postgres's own text leaves the cause out.
///
/// The server's DETAIL is left out for data errors and violated constraints: there it quotes the row,
/// whose payload may be secret.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    let Some(db) = error.as_db_error() else {
        return match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
    };
    let mut text = format!("{} (SQLSTATE {})", db.message(), db.code().code());
    let quotes_the_row = matches!(db.code().code().get(..2), Some("22" | "23"));
    if let Some(detail) = db.detail().filter(|_| !quotes_the_row) {
        text.push_str("; ");
        text.push_str(detail);
    }
    if let Some(hint) = db.hint() {
        text.push_str("; hint: ");
        text.push_str(hint);
    }
    text
}
