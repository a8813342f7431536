//! What has to be known to use a database.

use std::fmt;
use std::time::Duration;

use postrider_tls::Tls;

use crate::schema_name::Schema;

/// How to reach the database and how its sessions behave.
#[derive(Clone)]
pub struct Settings {
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, or the `key=value` form. Several hosts may be
    /// given; the first that accepts writes is used. A secret: never printed.
    pub url: String,
    /// How to encrypt, and what to verify, for every host; `None` for plain text, whatever the URL's host is. An
    /// `sslmode` in the URL may only say the same. Unix sockets know no TLS.
    pub tls: Option<Tls>,
    /// The schema that holds the outbox.
    pub schema: Schema,
    /// Shown in `pg_stat_activity`; a listener adds the relay's name to it.
    pub application_name: String,
    /// Bounds each attempt to connect, name resolution and authentication included.
    pub connect_timeout: Duration,
    /// How long sent data may stay unacknowledged before either side gives the connection up. It is
    /// set on the server's side of the session too, where it ends a claim whose relay stopped reading.
    pub tcp_user_timeout: Duration,
    /// The longest a single statement may take, on the server. The client waits five seconds longer.
    pub statement_timeout: Duration,
    /// How long a claim may stay open without a statement before the server ends it. Longer than the
    /// broker is given to confirm, or settles are lost.
    pub idle_in_transaction_timeout: Duration,
    /// The most connections of the pool; a [`Listener`](crate::Listener) has one of its own beside them.
    pub connections: usize,
}

impl Settings {
    /// Settings for this URL, everything else at its default: plain text, schema `outbox`, connect within 10 s,
    /// `tcp_user_timeout` 10 s, statements within 30 s, claims open for at most 120 s, 4 connections.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            tls: None,
            schema: Schema::default(),
            application_name: "postrider".to_owned(),
            connect_timeout: Duration::from_secs(10),
            tcp_user_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            idle_in_transaction_timeout: Duration::from_secs(120),
            connections: 4,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("url", &"[redacted]")
            .field("tls", &self.tls)
            .field("schema", &self.schema)
            .field("application_name", &self.application_name)
            .field("connect_timeout", &self.connect_timeout)
            .field("tcp_user_timeout", &self.tcp_user_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field(
                "idle_in_transaction_timeout",
                &self.idle_in_transaction_timeout,
            )
            .field("connections", &self.connections)
            .finish()
    }
}
