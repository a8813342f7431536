//! What hears of an insert: the ways that are compared.

use anyhow::{Context, Result};
use postrider_testbed::{Client, Daemon};
use serde::Serialize;

use crate::{
    daemon,
    stage::{Installation, Stage},
};

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Wakeup {
    /// No trigger and no relay: what the others are compared with.
    Nothing,
    /// A trigger that notifies with each insert, and a session that listens.
    AlwaysNotify,
    /// Postrider's trigger while a relay is awake, but without the relay's own work: a session holds its lock. What is
    /// left when daemon and broker have a machine of their own.
    Trigger,
    /// Postrider's trigger, and the daemon, which publishes on the same cores.
    Postrider,
}

/// In the order of the table.
pub(super) const ALL: [Wakeup; 4] = [
    Wakeup::Nothing,
    Wakeup::AlwaysNotify,
    Wakeup::Trigger,
    Wakeup::Postrider,
];

/// What runs beside the producers. It ends with its drop.
#[derive(Debug)]
pub(super) struct Beside {
    /// What must stay open.
    _session: Option<Client>,
    pub(super) daemon: Option<Daemon>,
}

impl Wakeup {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no relay",
            Self::AlwaysNotify => "always notified",
            Self::Trigger => "postrider's trigger, relay awake elsewhere",
            Self::Postrider => "postrider on the same cores",
        }
    }

    /// The name, as short as beside a bar.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Nothing => "no relay",
            Self::AlwaysNotify => "always notified",
            Self::Trigger => "postrider's trigger alone",
            Self::Postrider => "postrider on the same cores",
        }
    }

    /// Prepares a new outbox.
    ///
    /// # Errors
    /// PostgreSQL refuses.
    pub(super) async fn prepare(self, client: &Client) -> Result<()> {
        let statements = match self {
            Self::Nothing => "ALTER TABLE outbox.messages DISABLE TRIGGER USER",
            Self::AlwaysNotify => {
                "ALTER TABLE outbox.messages DISABLE TRIGGER USER; \
                 CREATE FUNCTION outbox.bench_notify() RETURNS trigger LANGUAGE plpgsql AS $$ \
                 BEGIN PERFORM pg_catalog.pg_notify('postrider_outbox', ''); RETURN NULL; END $$; \
                 CREATE TRIGGER bench_notify AFTER INSERT ON outbox.messages \
                 FOR EACH STATEMENT EXECUTE FUNCTION outbox.bench_notify()"
            }
            Self::Trigger | Self::Postrider => "",
        };
        client
            .batch_execute(statements)
            .await
            .with_context(|| format!("could not prepare the outbox for: {}", self.name()))
    }

    /// Starts what belongs to it.
    ///
    /// # Errors
    /// PostgreSQL refuses, or the daemon does not start.
    pub(super) async fn start(self, stage: &Stage, installation: &Installation) -> Result<Beside> {
        let said = match self {
            Self::AlwaysNotify => Some("LISTEN postrider_outbox"),
            // The key that the trigger asks for. An older trigger, which asks nothing, notifies all the same.
            Self::Trigger => Some(
                "SELECT pg_advisory_lock(1886352244, 'outbox.messages'::regclass::oid::integer)",
            ),
            Self::Nothing | Self::Postrider => None,
        };
        let session = match said {
            None => None,
            Some(said) => {
                let session = installation.database.client().await?;
                session.batch_execute(said).await?;
                Some(session)
            }
        };
        let daemon = match self {
            Self::Postrider => Some(daemon::start(stage, installation).await?),
            Self::Nothing | Self::AlwaysNotify | Self::Trigger => None,
        };
        Ok(Beside {
            _session: session,
            daemon,
        })
    }
}
