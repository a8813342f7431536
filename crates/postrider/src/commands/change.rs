//! What the commands that change many messages have in common: bounded transactions, progress, the report.

use std::collections::HashSet;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use postrider_core::Seq;
use postrider_postgres::{Changed, Error};
use serde_json::{Map, Value};
use uuid::Uuid;

/// How many messages one transaction changes: short enough to be in nobody's way.
const BATCH: u32 = 1_000;

/// How often to say how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// The words for one kind of change.
pub(crate) struct Verb {
    /// As in "would retry".
    pub(crate) infinitive: &'static str,
    /// As in "retried"; the name of the number in JSON too.
    pub(crate) past: &'static str,
    /// One of them.
    pub(crate) one: &'static str,
    /// Several.
    pub(crate) several: &'static str,
    /// What that means for one ordering key that waited for one of them, and for several.
    pub(crate) of_keys: (&'static str, &'static str),
}

impl Verb {
    /// A number of them, in words.
    pub(crate) fn number(&self, count: u64) -> String {
        match count {
            1 => format!("1 {}", self.one),
            _ => format!("{count} {}", self.several),
        }
    }

    /// Says what a change would be about.
    ///
    /// # Errors
    /// When writing failed.
    pub(crate) fn would(
        &self,
        matching: u64,
        json: bool,
        out: &mut dyn Write,
    ) -> std::io::Result<()> {
        if json {
            let line = Map::from_iter([
                ("matching".to_owned(), Value::from(matching)),
                (self.past.to_owned(), Value::from(0)),
                ("dry_run".to_owned(), Value::from(true)),
            ]);
            return writeln!(out, "{}", Value::Object(line));
        }
        writeln!(out, "would {} {}", self.infinitive, self.number(matching))
    }

    /// Says what was changed.
    ///
    /// # Errors
    /// When writing failed.
    pub(crate) fn did(
        &self,
        matching: u64,
        changed: Total,
        json: bool,
        out: &mut dyn Write,
    ) -> std::io::Result<()> {
        if json {
            let line = Map::from_iter([
                ("matching".to_owned(), Value::from(matching)),
                (self.past.to_owned(), Value::from(changed.rows)),
                ("released_keys".to_owned(), Value::from(changed.keys)),
                ("dry_run".to_owned(), Value::from(false)),
            ]);
            return writeln!(out, "{}", Value::Object(line));
        }
        writeln!(out, "{} {}", self.past, self.number(changed.rows))?;
        let (of_one, of_several) = self.of_keys;
        match changed.keys {
            0 => Ok(()),
            1 => writeln!(out, "1 ordering key {of_one}"),
            keys => writeln!(out, "{keys} ordering keys {of_several}"),
        }
    }

    /// Changes up to `total` messages, the number that was counted before, and returns how many were
    /// changed. `change` is told where the last transaction ended, and the most that the next may change.
    ///
    /// It ends at `total` also if more match meanwhile: nobody was told of those.
    ///
    /// # Errors
    /// What `change` failed with, and how far it had come; what was changed until then stays so.
    pub(crate) async fn in_batches(
        &self,
        total: u64,
        err: &mut dyn Write,
        mut change: impl AsyncFnMut(Option<Seq>, u32) -> Result<Changed, Error>,
    ) -> anyhow::Result<Total> {
        let past = self.past;
        let mut changed = 0;
        let mut keys = 0;
        let mut after = None;
        let mut said: Option<Instant> = None;
        while changed < total {
            let batch = u32::try_from(total - changed).map_or(BATCH, |left| left.min(BATCH));
            let step = change(after, batch)
                .await
                .with_context(|| format!("{changed} of {total} were {past} before this"))?;
            if step.rows == 0 {
                break;
            }
            changed += step.rows;
            keys += step.keys;
            after = step.last;
            let due = said.is_none_or(|said| said.elapsed() >= PROGRESS_INTERVAL);
            if due && total > u64::from(BATCH) {
                writeln!(err, "{changed} of {total} {past}")?;
                said = Some(Instant::now());
            }
        }
        Ok(Total {
            rows: changed,
            keys,
        })
    }
}

/// What all transactions of a command changed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Total {
    /// How many messages.
    pub(crate) rows: u64,
    /// How many ordering keys waited for one of them.
    pub(crate) keys: u64,
}

/// The named ids that were not found, each on a line of `err`; whether there are any.
///
/// # Errors
/// When writing failed.
pub(crate) fn report_absent(
    named: &[Uuid],
    found: &HashSet<Uuid>,
    among: &str,
    err: &mut dyn Write,
) -> std::io::Result<bool> {
    let mut any = false;
    for id in named.iter().filter(|id| !found.contains(id)) {
        writeln!(err, "{id} is not among {among}")?;
        any = true;
    }
    Ok(any)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERB: Verb = Verb {
        infinitive: "retry",
        past: "retried",
        one: "dead letter",
        several: "dead letters",
        of_keys: ("goes on", "go on"),
    };

    async fn run(total: u64, there: u64) -> (u64, Vec<u32>, String) {
        let mut asked = Vec::new();
        let mut met = 0;
        let mut err = Vec::new();
        let changed = VERB.in_batches(total, &mut err, async |after, batch| {
            assert_eq!(after.map_or(0, |seq| seq.0), met);
            asked.push(batch);
            let left = there - u64::try_from(met).unwrap();
            let rows = left.min(u64::from(batch));
            met += i64::try_from(rows).unwrap();
            Ok(Changed {
                rows,
                last: (rows > 0).then_some(Seq(met)),
                keys: rows.min(1),
            })
        });
        let changed = changed.await.unwrap();
        // A key in each transaction.
        let transactions = asked.len() - usize::from(changed.rows < total);
        assert_eq!(changed.keys, u64::try_from(transactions).unwrap());
        (changed.rows, asked, String::from_utf8(err).unwrap())
    }

    #[test]
    fn what_keys_waited_for_is_said_to_people_and_to_programs() {
        let said = |rows, keys, json| {
            let mut out = Vec::new();
            VERB.did(rows, Total { rows, keys }, json, &mut out)
                .unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(said(2, 0, false), "retried 2 dead letters\n");
        assert_eq!(
            said(1, 1, false),
            "retried 1 dead letter\n1 ordering key goes on\n"
        );
        assert_eq!(
            said(3, 2, false),
            "retried 3 dead letters\n2 ordering keys go on\n"
        );
        let json: Value = serde_json::from_str(&said(3, 2, true)).unwrap();
        assert_eq!(
            (&json["retried"], &json["released_keys"]),
            (&3.into(), &2.into())
        );
    }

    #[tokio::test]
    async fn no_transaction_is_larger_than_a_batch_and_the_end_is_what_was_counted() {
        let (changed, asked, said) = run(2_500, 9_000).await;
        assert_eq!((changed, asked), (2_500, vec![1_000, 1_000, 500]));
        assert!(said.starts_with("1000 of 2500 retried\n"), "{said}");
        let (changed, asked, said) = run(3, 3).await;
        assert_eq!((changed, asked, said.as_str()), (3, vec![3], ""));
    }

    #[tokio::test]
    async fn it_ends_when_somebody_else_took_the_rest() {
        let (changed, asked, _) = run(2_500, 1_200).await;
        assert_eq!((changed, asked), (1_200, vec![1_000, 1_000, 1_000]));
    }
}
