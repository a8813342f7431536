//! `status`: lag, backlog, the oldest message, what waits, what was given up, which keys are blocked, and the relays
//! that are connected.

use std::io::Write;
use std::time::Duration;

use postrider_postgres::{Database, RelayPresence, Sample};
use serde::Serialize;
use uuid::Uuid;

use crate::cli::{Exit, Status};
use crate::config::{DatabaseConfig, MetricsConfig};
use crate::table::coarse;
use crate::wiring;

/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// What `status --json` prints.
#[derive(Debug, Serialize)]
struct Report {
    lag_seconds: f64,
    backlog: u64,
    /// Whether there are more than `backlog` says.
    backlog_capped: bool,
    oldest: Option<Oldest>,
    deferred: Deferred,
    dead_letters: u64,
    /// Whether there are more than `dead_letters` says.
    dead_letters_capped: bool,
    keys: Keys,
    relays: Vec<Relay>,
}

/// The ordering keys whose messages wait for an earlier one. Neither lag nor backlog shows these.
#[derive(Debug, Serialize)]
struct Keys {
    blocked: u64,
    /// Whether there are more than `blocked` says.
    blocked_capped: bool,
    longest_blocked_seconds: f64,
    parked_messages: u64,
}

/// How many messages wait for which cause, those that are due by now among them.
#[derive(Debug, Serialize)]
struct Deferred {
    retry: u64,
    retry_capped: bool,
    scheduled: u64,
    scheduled_capped: bool,
}

#[derive(Debug, Serialize)]
struct Oldest {
    seq: i64,
    id: Uuid,
    exchange: String,
    routing_key: String,
    age_seconds: f64,
}

#[derive(Debug, Serialize)]
struct Relay {
    name: String,
    pid: i32,
}

/// Prints the state once, or again and again.
///
/// # Errors
/// When the database cannot be reached or holds no outbox this program knows.
pub(crate) async fn status(
    config: &DatabaseConfig,
    metrics: &MetricsConfig,
    arguments: &Status,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let database = wiring::database_for_command(config)?;
    database.check_schema().await?;
    loop {
        let report = match measure(&database, u64::from(metrics.backlog_limit)).await {
            Ok(report) => report,
            // One watches most while something is wrong.
            Err(error) if arguments.watch => {
                writeln!(std::io::stderr(), "error: {error}")?;
                tokio::time::sleep(WATCH_INTERVAL).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if arguments.json {
            serde_json::to_writer(&mut *out, &report)?;
            writeln!(out)?;
        } else if arguments.watch {
            writeln!(out, "{}", report.line())?;
        } else {
            report.print(out)?;
        }
        out.flush()?;
        if !arguments.watch {
            let limit = arguments.max_lag.unwrap_or(Duration::MAX);
            return Ok(if report.lag_seconds > limit.as_secs_f64() {
                Exit::Limit
            } else {
                Exit::Success
            });
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

async fn measure(
    database: &Database,
    backlog_limit: u64,
) -> Result<Report, postrider_postgres::Error> {
    let sample = database.sample(backlog_limit).await?;
    let relays = database.relays().await?;
    Ok(Report::new(sample, relays))
}

impl Report {
    fn new(sample: Sample, relays: Vec<RelayPresence>) -> Self {
        Self {
            lag_seconds: sample.lag.as_secs_f64(),
            backlog: sample.backlog,
            backlog_capped: sample.backlog_capped,
            oldest: sample.oldest.map(|oldest| Oldest {
                seq: oldest.seq.0,
                id: oldest.id,
                exchange: oldest.exchange,
                routing_key: oldest.routing_key,
                age_seconds: oldest.age.as_secs_f64(),
            }),
            deferred: Deferred {
                retry: sample.deferred_retry.count,
                retry_capped: sample.deferred_retry.capped,
                scheduled: sample.deferred_scheduled.count,
                scheduled_capped: sample.deferred_scheduled.capped,
            },
            dead_letters: sample.dead_letters.count,
            dead_letters_capped: sample.dead_letters.capped,
            keys: Keys {
                blocked: sample.blocked.keys.count,
                blocked_capped: sample.blocked.keys.capped,
                longest_blocked_seconds: sample.blocked.longest.as_secs_f64(),
                parked_messages: sample.blocked.parked,
            },
            relays: relays
                .into_iter()
                .map(|relay| Relay {
                    name: relay.name,
                    pid: relay.pid,
                })
                .collect(),
        }
    }

    fn line(&self) -> String {
        format!(
            "lag {:.1} s  backlog {}  deferred {}  dead letters {}  blocked keys {}  relays {}",
            self.lag_seconds,
            number(self.backlog, self.backlog_capped),
            number(
                self.deferred.retry + self.deferred.scheduled,
                self.deferred.retry_capped || self.deferred.scheduled_capped
            ),
            number(self.dead_letters, self.dead_letters_capped),
            number(self.keys.blocked, self.keys.blocked_capped),
            self.relays.len()
        )
    }

    fn print(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "lag      {:.1} s", self.lag_seconds)?;
        writeln!(
            out,
            "backlog  {}",
            number(self.backlog, self.backlog_capped)
        )?;
        match &self.oldest {
            None => writeln!(out, "oldest   none: nothing waits to be published")?,
            Some(oldest) => writeln!(
                out,
                "oldest   {} (seq {}), for exchange {:?} with routing key {:?}",
                oldest.id, oldest.seq, oldest.exchange, oldest.routing_key
            )?,
        }
        writeln!(
            out,
            "deferred {} to be tried again, {} scheduled",
            number(self.deferred.retry, self.deferred.retry_capped),
            number(self.deferred.scheduled, self.deferred.scheduled_capped)
        )?;
        match self.dead_letters {
            0 => writeln!(out, "dead     none: nothing was given up")?,
            count => writeln!(
                out,
                "dead     {}: see `postrider dead-letters list`",
                number(count, self.dead_letters_capped)
            )?,
        }
        match self.keys.blocked {
            0 => writeln!(out, "keys     none is blocked")?,
            count => writeln!(
                out,
                "keys     {} blocked, the longest for {}, {} messages parked: see `postrider keys list`",
                number(count, self.keys.blocked_capped),
                coarse(
                    Duration::try_from_secs_f64(self.keys.longest_blocked_seconds)
                        .unwrap_or_default()
                ),
                self.keys.parked_messages
            )?,
        }
        if self.relays.is_empty() {
            writeln!(out, "relays   none: start one with `postrider run`")?;
        }
        for relay in &self.relays {
            writeln!(
                out,
                "relay    {} (database session {})",
                relay.name, relay.pid
            )?;
        }
        Ok(())
    }
}

fn number(count: u64, capped: bool) -> String {
    if capped {
        format!("more than {count}")
    } else {
        count.to_string()
    }
}
