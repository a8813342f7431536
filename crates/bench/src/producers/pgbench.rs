//! pgbench, as the application: one row in each transaction.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use postrider_testbed::test_dir::TestDir;
use serde::Serialize;
use tokio::process::Command;

use crate::{
    stage::{CONTENT_TYPE, Installation, Stage},
    statistics::percentile,
    throughput::PAYLOAD_BYTES,
};

/// How it shows in pg_stat_activity.
pub(super) const APPLICATION_NAME: &str = "bench-producer";

/// It cannot use more of two cores, and the servers need them as well.
const MOST_THREADS: u32 = 2;

/// How much longer than planned it may take: what is behind a schedule is still done.
const PATIENCE: Duration = Duration::from_secs(120);

/// What it does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inserts {
    pub(super) clients: u32,
    pub(super) seconds: u32,
    /// Transactions a second; without it as many as there can be.
    pub(super) rate: Option<u32>,
}

/// Milliseconds, of transactions that were due by a schedule: from then on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Delays {
    pub(super) mean: f64,
    pub(super) p99: f64,
}

/// What it said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Done {
    pub(super) transactions: u32,
    pub(super) a_second: f64,
    /// With a rate.
    pub(super) delays: Option<Delays>,
}

/// Its program with a directory for its files.
#[derive(Debug)]
pub(super) struct Pgbench {
    program: PathBuf,
    dir: TestDir,
}

impl Pgbench {
    /// # Errors
    /// It is not installed.
    pub(super) fn find(stage: &Stage) -> Result<Self> {
        Ok(Self {
            program: stage.pgbench()?,
            dir: TestDir::create()?,
        })
    }

    /// Inserts messages for `queue`.
    ///
    /// # Errors
    /// pgbench fails, or one of its transactions does.
    pub(super) async fn run(
        &self,
        installation: &Installation,
        queue: &str,
        inserts: Inserts,
    ) -> Result<Done> {
        let script = self.dir.path().join("insert.sql");
        fs::write(&script, insert(queue))?;
        let log = self.dir.path().join("log");
        let mut command = Command::new(&self.program);
        command
            .args(["--no-vacuum", "--protocol=prepared"])
            .arg(format!("--client={}", inserts.clients))
            .arg(format!("--jobs={}", inserts.clients.min(MOST_THREADS)))
            .arg(format!("--time={}", inserts.seconds))
            .arg("--file")
            .arg(&script);
        if let Some(rate) = inserts.rate {
            command
                .arg(format!("--rate={rate}"))
                .arg("--log")
                .arg(format!("--log-prefix={}", log.display()));
        }
        command
            .arg(&installation.database.url)
            .env("PGAPPNAME", APPLICATION_NAME)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let allowed = Duration::from_secs(u64::from(inserts.seconds)) + PATIENCE;
        let output = tokio::time::timeout(allowed, command.output())
            .await
            .with_context(|| format!("pgbench did not end within {allowed:?}"))?
            .with_context(|| format!("could not run {}", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "pgbench failed ({}):\n{said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let delays = match inserts.rate {
            None => None,
            Some(_) => {
                let logged = take_logs(self.dir.path(), "log.")?;
                Some(delays(&logged).context("pgbench logged no transaction")?)
            }
        };
        let (transactions, a_second) =
            read(&said).with_context(|| format!("pgbench said something else:\n{said}"))?;
        Ok(Done {
            transactions,
            a_second,
            delays,
        })
    }
}

/// The transaction.
fn insert(queue: &str) -> String {
    let payload = (0..PAYLOAD_BYTES).fold(String::new(), |mut hex, _| {
        let _ = write!(hex, "{:02x}", b'x');
        hex
    });
    format!(
        "INSERT INTO outbox.messages (exchange, routing_key, payload, content_type) \
         VALUES ('', '{queue}', '\\x{payload}', '{CONTENT_TYPE}');\n"
    )
}

/// How many transactions there were, and how many a second.
fn read(said: &str) -> Option<(u32, f64)> {
    let after = |what: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(what))?;
        // `12345/20000` where a number of transactions was asked for, and what is not counted in parentheses.
        line.split([' ', '/']).next()
    };
    Some((
        after("number of transactions actually processed: ")?
            .parse()
            .ok()?,
        after("tps = ")?.parse().ok()?,
    ))
}

/// The text of all files whose names begin so; each thread writes one. They are removed.
fn take_logs(dir: &Path, prefix: &str) -> Result<String> {
    let mut text = String::new();
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            text.push_str(&fs::read_to_string(entry.path())?);
            fs::remove_file(entry.path())?;
        }
    }
    Ok(text)
}

/// From lines of `client transaction time script seconds microseconds lag`, times in microseconds: the third has the
/// wait for the client in it.
fn delays(logged: &str) -> Option<Delays> {
    let mut milliseconds: Vec<f64> = logged
        .lines()
        .filter_map(|line| line.split(' ').nth(2)?.parse().ok())
        .map(|microseconds: f64| microseconds / 1e3)
        .collect();
    milliseconds.sort_unstable_by(f64::total_cmp);
    Some(Delays {
        p99: percentile(&milliseconds, 0.99)?,
        mean: milliseconds.iter().sum::<f64>() / milliseconds.len() as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::{Delays, delays, insert, read};

    #[test]
    fn transactions_and_their_rate_are_read_with_and_without_a_schedule() {
        let said = "pgbench (15.18 (Debian 15.18-0+deb12u1))\n\
                    transaction type: insert.sql\n\
                    duration: 2 s\n\
                    number of transactions actually processed: 46813\n\
                    number of failed transactions: 0 (0.000%)\n\
                    latency average = 0.341 ms\n\
                    initial connection time = 3.214 ms\n\
                    tps = 23440.123456 (without initial connection time)\n";
        assert_eq!(read(said), Some((46_813, 23_440.123_456)));
        assert_eq!(read("nothing\n"), None);
    }

    #[test]
    fn delays_count_from_when_a_transaction_was_due() {
        let logged = "0 1 1000 0 1795245123 100000 5\n1 1 3000 0 1795245123 100100 2500\n";
        assert_eq!(
            delays(logged),
            Some(Delays {
                mean: 2.0,
                p99: 3.0
            })
        );
        assert_eq!(delays(""), None);
    }

    #[test]
    fn the_payload_has_as_many_bytes_as_that_of_the_other_benchmarks() {
        let script = insert("q");
        assert_eq!(script.matches("78").count(), super::PAYLOAD_BYTES);
        assert_eq!(script.lines().count(), 1);
    }
}
