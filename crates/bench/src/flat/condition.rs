//! The conditions an outbox can be in, and how it gets there.

use anyhow::{Context, Result, ensure};
use postrider_testbed::Client;
use serde::Serialize;

use crate::{
    report::grouped,
    stage::{self, Installation},
    throughput::PAYLOAD_BYTES,
};

/// What stands before the messages that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Nothing.
    Empty,
    /// Deleted rows that an older snapshot still sees, so that vacuum may not remove them.
    UnderSnapshot,
    /// The same, kept by a transaction that has itself written to the outbox before them and does not end.
    UnderWriter,
    /// Messages that were not sent yet.
    Backlog,
}

/// A kind, and how many rows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Condition {
    pub(crate) kind: Kind,
    pub(crate) rows: u32,
}

const fn condition(kind: Kind, rows: u32) -> Condition {
    Condition { kind, rows }
}

/// What the others are compared with.
pub(crate) const EMPTY: Condition = condition(Kind::Empty, 0);

pub(crate) const FULL: [Condition; 9] = [
    EMPTY,
    condition(Kind::UnderSnapshot, 100_000),
    condition(Kind::UnderSnapshot, 1_000_000),
    condition(Kind::UnderSnapshot, 5_000_000),
    condition(Kind::UnderWriter, 100_000),
    condition(Kind::UnderWriter, 1_000_000),
    condition(Kind::UnderWriter, 5_000_000),
    condition(Kind::Backlog, 1_000_000),
    condition(Kind::Backlog, 5_000_000),
];

/// As [`FULL`], and as much of it as a minute or so allows.
pub(crate) const SHORT: [Condition; 4] = [
    EMPTY,
    condition(Kind::UnderSnapshot, 500_000),
    condition(Kind::UnderWriter, 500_000),
    condition(Kind::Backlog, 500_000),
];

impl Condition {
    pub(crate) fn name(self) -> String {
        let rows = grouped(f64::from(self.rows));
        match self.kind {
            Kind::Empty => "empty".to_owned(),
            Kind::UnderSnapshot => format!("{rows} deleted, kept by a snapshot"),
            Kind::UnderWriter => format!("{rows} deleted, kept by a writer"),
            Kind::Backlog => format!("backlog of {rows}"),
        }
    }

    /// The name, as short as beneath a bar.
    pub(super) fn label(self) -> String {
        let rows = match self.rows {
            rows if rows.is_multiple_of(1_000_000) => format!("{}M", rows / 1_000_000),
            rows => format!("{}k", rows / 1_000),
        };
        match self.kind {
            Kind::Empty => "empty".to_owned(),
            Kind::UnderSnapshot => format!("{rows} snap"),
            Kind::UnderWriter => format!("{rows} writer"),
            Kind::Backlog => format!("{rows} backlog"),
        }
    }

    /// Brings an empty outbox there, with that many messages of `messages` to be drained behind it. As long as the
    /// sessions that are returned stay open, it stays there.
    ///
    /// # Errors
    /// PostgreSQL refuses.
    pub(crate) async fn bring_about(
        self,
        installation: &Installation,
        queue: &str,
    ) -> Result<Vec<Client>> {
        let payload = [b'x'; PAYLOAD_BYTES];
        let worker = installation.database.client().await?;
        // It could remove nothing of what is kept, and would come over one measurement and not over another.
        worker
            .batch_execute(
                "ALTER TABLE outbox.messages SET (autovacuum_enabled = off, toast.autovacuum_enabled = off)",
            )
            .await
            .context("could not switch autovacuum off")?;
        let kept = match self.kind {
            Kind::Empty => Vec::new(),
            Kind::UnderSnapshot => {
                let reader = installation.database.client().await?;
                reader
                    // The snapshot is taken by the first query, not by BEGIN.
                    .batch_execute(
                        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.messages",
                    )
                    .await
                    .context("could not take a snapshot")?;
                vec![reader]
            }
            Kind::UnderWriter => {
                let writer = installation.database.client().await?;
                writer.batch_execute("BEGIN").await?;
                stage::insert(&writer, queue, &payload, 1).await?;
                vec![writer]
            }
            Kind::Backlog => {
                stage::insert(&worker, queue, &payload, self.rows).await?;
                Vec::new()
            }
        };
        if let Kind::UnderSnapshot | Kind::UnderWriter = self.kind {
            stage::insert(&worker, queue, &payload, self.rows).await?;
            // In a transaction of its own: what one transaction inserts and deletes nobody keeps.
            let deleted = worker
                .execute("DELETE FROM outbox.messages", &[])
                .await
                .context("could not delete the rows")?;
            ensure!(
                deleted == u64::from(self.rows),
                "{deleted} rows were deleted, not {}",
                self.rows
            );
        }
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::{EMPTY, FULL, SHORT};

    #[test]
    fn the_short_form_has_fewer_rows_of_the_same_kinds_and_both_have_what_the_others_are_compared_with()
     {
        let is_less = |condition: &super::Condition| {
            let more = |full: &super::Condition| {
                full.kind == condition.kind && full.rows >= condition.rows
            };
            FULL.iter().any(more)
        };
        assert!(SHORT.iter().all(is_less));
        assert!(SHORT.contains(&EMPTY) && FULL.contains(&EMPTY));
    }

    #[test]
    fn every_condition_has_a_label_of_its_own() {
        let labels = FULL.map(super::Condition::label);
        let distinct: std::collections::HashSet<_> = labels.iter().collect();
        assert_eq!(distinct.len(), FULL.len(), "{labels:?}");
    }
}
