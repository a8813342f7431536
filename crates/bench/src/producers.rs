//! What the relay costs those who insert.
//!
//! pgbench inserts one row in each transaction: without a relay, with a trigger that always notifies, and with
//! Postrider. On the same cores a daemon that publishes what is inserted takes CPU time from the producers, whatever it
//! does for them: so the trigger is measured by itself as well, the CPU time is told by whose it is, and a part of the
//! measurements has a fixed rate that leaves room for all, and looks at how long transactions take.

mod beside;
mod pauses;
mod pgbench;
mod summary;
mod wakeup;

use std::{fmt, time::Duration};

use anyhow::{Context, Result};
use postrider_testbed::{Client, QueueKind, wait_until};
use serde::Serialize;

pub(crate) use self::beside::beside_daemon;
use self::{
    pauses::{LATE_MS, Pauses},
    pgbench::{APPLICATION_NAME, Delays, Done, Inserts, Pgbench},
    summary::{Line, summarise},
    wakeup::Wakeup,
};
use crate::{
    chart::{Chart, Scale, Series},
    daemon,
    queue::Queue,
    report::grouped,
    stage::{Installation, Stage},
    statistics::Spread,
};

/// What one commit waits for others, in microseconds, where commits are slow.
const SLOW_COMMIT_US: u32 = 5_000;

/// Of what there can be without a relay, where the rate is fixed.
const FIXED_SHARE: f64 = 0.4;

/// How long producers' sessions may take to end.
const LEAVING: Duration = Duration::from_secs(30);

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProducersPlan {
    pub(crate) rounds: u32,
    pub(crate) short: bool,
}

impl ProducersPlan {
    fn seconds(self) -> u32 {
        if self.short { 2 } else { 6 }
    }

    fn transactions_with_pauses(self) -> u32 {
        if self.short { 2_000 } else { 10_000 }
    }
}

/// How the producers insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Load {
    clients: u32,
    slow_commits: bool,
    fixed_rate: bool,
}

const fn full_speed(clients: u32) -> Load {
    Load {
        clients,
        slow_commits: false,
        fixed_rate: false,
    }
}

/// The fixed rate comes from the measurement of as many clients before it.
const LOADS: [Load; 5] = [
    full_speed(1),
    full_speed(8),
    Load {
        fixed_rate: true,
        ..full_speed(8)
    },
    full_speed(32),
    Load {
        slow_commits: true,
        ..full_speed(32)
    },
];

impl Load {
    fn name(self) -> String {
        let mut name = match self.clients {
            1 => "1 client".to_owned(),
            clients => format!("{clients} clients"),
        };
        if self.slow_commits {
            name.push_str(", 5 ms commits");
        }
        if self.fixed_rate {
            name.push_str(", fixed rate");
        }
        name
    }
}

/// Microseconds for each transaction.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cost {
    /// All of PostgreSQL but the daemon's sessions: the producers' own, and what writes out what they did.
    producing: f64,
    /// The daemon's sessions.
    relaying: f64,
    daemon: f64,
    broker: f64,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
struct Run {
    round: u32,
    load: Load,
    wakeup: Wakeup,
    transactions_a_second: f64,
    delays_ms: Option<Delays>,
    cpu_us_a_transaction: Cost,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Producers {
    rounds: u32,
    /// Of one measurement.
    seconds: u32,
    summary: Vec<Line>,
    pauses: Pauses,
    runs: Vec<Run>,
}

/// Measures all loads with all wake-ups, the wake-ups in turns, and then the transactions with pauses.
///
/// # Errors
/// pgbench is not there, or a measurement fails.
pub(crate) async fn measure(stage: &Stage, plan: ProducersPlan) -> Result<Producers> {
    println!("Measuring the producers.\n");
    let pgbench = Pgbench::find(stage)?;
    let mut places = Vec::new();
    for wakeup in wakeup::ALL {
        places.push(Place::prepare(stage, wakeup).await?);
    }
    let mut runs: Vec<Run> = Vec::new();
    for round in 1..=plan.rounds {
        for load in LOADS {
            let inserts = Inserts {
                clients: load.clients,
                seconds: plan.seconds(),
                rate: load
                    .fixed_rate
                    .then(|| fixed_rate(&runs, round, load.clients))
                    .flatten(),
            };
            let mut turns: Vec<&Place> = places.iter().collect();
            // Nobody always comes after the same other.
            turns.rotate_left(round as usize % places.len());
            for place in turns {
                let name = format!("{}, {}", load.name(), place.wakeup.name());
                let (done, cost) = place
                    .measure(stage, &pgbench, load, inserts)
                    .await
                    .with_context(|| name.clone())?;
                println!(
                    "round {round} of {}: {name:<66} {:>7} transactions/s",
                    plan.rounds,
                    grouped(done.a_second)
                );
                runs.push(Run {
                    round,
                    load,
                    wakeup: place.wakeup,
                    transactions_a_second: done.a_second,
                    delays_ms: done.delays,
                    cpu_us_a_transaction: cost,
                });
            }
        }
    }
    for place in places {
        stage.remove(place.installation).await?;
    }
    println!();
    let pauses = pauses::measure(stage, plan.transactions_with_pauses()).await?;
    Ok(Producers {
        rounds: plan.rounds,
        seconds: plan.seconds(),
        summary: summarise(&runs),
        pauses,
        runs,
    })
}

/// What as many clients can do without a relay, in the same round, leaves this much to a schedule.
fn fixed_rate(runs: &[Run], round: u32, clients: u32) -> Option<u32> {
    runs.iter()
        .find(|run| {
            run.round == round && run.load == full_speed(clients) && run.wakeup == Wakeup::Nothing
        })
        .map(|run| (run.transactions_a_second * FIXED_SHARE).round() as u32)
}

/// A database for one of the wake-ups.
#[derive(Debug)]
struct Place {
    wakeup: Wakeup,
    installation: Installation,
    client: Client,
}

impl Place {
    async fn prepare(stage: &Stage, wakeup: Wakeup) -> Result<Self> {
        let installation = stage.install(&stage.binary).await?;
        let client = installation.database.client().await?;
        wakeup.prepare(&client).await?;
        Ok(Self {
            wakeup,
            installation,
            client,
        })
    }

    async fn measure(
        &self,
        stage: &Stage,
        pgbench: &Pgbench,
        load: Load,
        inserts: Inserts,
    ) -> Result<(Done, Cost)> {
        self.client
            .batch_execute("TRUNCATE outbox.messages; CHECKPOINT")
            .await
            .context("could not empty the outbox")?;
        self.set_commits(load).await?;
        let queue = Queue::declare(&stage.control, QueueKind::Quorum).await?;
        let beside = self.wakeup.start(stage, &self.installation).await?;
        stage.wait_until_quiet().await?;

        let of_daemon = || {
            let daemon = beside.daemon.as_ref();
            daemon.map_or(Ok(0.0), |daemon| daemon.cpu_seconds())
        };
        let sessions_before = daemon::sessions(&self.client).await?;
        let before = stage.cpu(of_daemon()?)?;
        let done = pgbench
            .run(&self.installation, &queue.name, inserts)
            .await?;
        self.producers_left().await?;
        let after = stage.cpu(of_daemon()?)?;
        let sessions_after = daemon::sessions(&self.client).await?;

        if let Some(daemon) = beside.daemon {
            daemon::stop(daemon).await?;
        }
        queue.delete().await?;
        let cpu = after.microseconds_a_message(before, done.transactions.max(1));
        let relaying =
            sessions_after.since(&sessions_before) * 1e6 / f64::from(done.transactions.max(1));
        Ok((
            done,
            Cost {
                producing: cpu.postgres - relaying,
                relaying,
                daemon: cpu.publisher,
                broker: cpu.broker,
            },
        ))
    }

    /// For sessions that begin from now on, the daemon's as well.
    async fn set_commits(&self, load: Load) -> Result<()> {
        let name = &self.installation.database.name;
        let statements = if load.slow_commits {
            format!(
                "ALTER DATABASE {name} SET commit_delay = {SLOW_COMMIT_US}; \
                 ALTER DATABASE {name} SET commit_siblings = 0"
            )
        } else {
            format!(
                "ALTER DATABASE {name} RESET commit_delay; ALTER DATABASE {name} RESET commit_siblings"
            )
        };
        self.client
            .batch_execute(&statements)
            .await
            .context("could not set how long commits take")
    }

    /// What a session used is in an account that can be read until it has ended, and again when it has.
    async fn producers_left(&self) -> Result<()> {
        wait_until(LEAVING, "the producers' sessions to end", async || {
            self.client
                .query_one(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1",
                    &[&APPLICATION_NAME],
                )
                .await
                .is_ok_and(|row| row.get::<_, i64>(0) == 0)
        })
        .await
    }
}

impl Producers {
    /// What each way leaves of the rate there is without a relay. A fixed rate is no measure of that.
    pub(crate) fn chart(&self) -> Chart {
        let loads = || LOADS.into_iter().filter(|load| !load.fixed_rate);
        let series = |wakeup: Wakeup| {
            let value = |load: Load| {
                let mut lines = self.summary.iter();
                let line = lines.find(|line| line.load == load && line.wakeup == wakeup)?;
                Some(line.rate_ratio)
            };
            Series {
                name: wakeup.label().to_owned(),
                values: loads().map(value).collect(),
            }
        };
        Chart {
            name: "producers",
            title: "Producers: one row in each transaction, as fast as they can".to_owned(),
            unit: "of the transactions/s without a relay".to_owned(),
            scale: Scale::Linear,
            labels: loads().map(Load::name).collect(),
            series: [Wakeup::AlwaysNotify, Wakeup::Trigger, Wakeup::Postrider]
                .map(series)
                .into(),
        }
    }
}

impl fmt::Display for Producers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Producers: one row in each transaction for {} s, medians of {} interleaved rounds (lowest to highest); CPU \
             time in µs a transaction\n",
            self.seconds, self.rounds
        )?;
        writeln!(
            f,
            "| producers | | transactions/s | of no relay | CPU: producers' PostgreSQL | of no relay | daemon's sessions \
             | daemon | broker | mean, ms | p99, ms |"
        )?;
        writeln!(f, "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")?;
        for line in &self.summary {
            let ratio = |ratio: Spread| ratio.written(|value| format!("{value:.2}"));
            let us = |us: Spread| us.written(|value| format!("{value:.1}"));
            let ms = |ms: Option<Spread>| {
                ms.map_or_else(
                    || "-".to_owned(),
                    |ms| ms.written(|value| format!("{value:.2}")),
                )
            };
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                line.load.name(),
                line.wakeup.name(),
                line.transactions_a_second.written(grouped),
                ratio(line.rate_ratio),
                us(line.producing_us),
                ratio(line.producing_ratio),
                us(line.relaying_us),
                us(line.daemon_us),
                us(line.broker_us),
                ms(line.mean_ms),
                ms(line.p99_ms)
            )?;
        }
        let pauses = &self.pauses;
        writeln!(
            f,
            "\nOf {} transactions in bursts over {:.0} s, with {} pauses of more than 100 ms and {} transactions held \
             open for 5 to 50 ms, {} ({:.2} %) waited for more than {LATE_MS} ms from COMMIT answered to consumer; p50 \
             {:.2} ms, p99 {:.2} ms, at most {:.1} ms.",
            grouped(f64::from(pauses.transactions)),
            pauses.seconds,
            pauses.long_pauses,
            grouped(pauses.held as f64),
            pauses.late,
            pauses.late as f64 / f64::from(pauses.transactions) * 100.0,
            pauses.p50_ms,
            pauses.p99_ms,
            pauses.max_ms
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Cost, Run, Wakeup, fixed_rate, full_speed};

    pub(super) fn run(round: u32, wakeup: Wakeup, rate: f64, producing: f64) -> Run {
        Run {
            round,
            load: full_speed(8),
            wakeup,
            transactions_a_second: rate,
            delays_ms: None,
            cpu_us_a_transaction: Cost {
                producing,
                relaying: 0.0,
                daemon: 0.0,
                broker: 0.0,
            },
        }
    }

    #[test]
    fn the_fixed_rate_comes_from_its_own_round() {
        let runs = [
            run(1, Wakeup::Nothing, 100.0, 10.0),
            run(2, Wakeup::Postrider, 150.0, 10.0),
            run(2, Wakeup::Nothing, 200.0, 10.0),
        ];
        assert_eq!(fixed_rate(&runs, 2, 8), Some(80));
        assert_eq!(fixed_rate(&runs, 3, 8), None);
    }
}
