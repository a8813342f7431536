//! `status`: lag, backlog, the oldest message, and the relays that are connected.

use std::io::Write;
use std::time::Duration;

use postrider_postgres::{Database, RelayPresence, Sample};
use serde::Serialize;
use uuid::Uuid;

use crate::cli::{Exit, Status};
use crate::config::{DatabaseConfig, MetricsConfig};
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
    relays: Vec<Relay>,
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
            relays: relays
                .into_iter()
                .map(|relay| Relay {
                    name: relay.name,
                    pid: relay.pid,
                })
                .collect(),
        }
    }

    fn backlog_text(&self) -> String {
        if self.backlog_capped {
            format!("more than {}", self.backlog)
        } else {
            self.backlog.to_string()
        }
    }

    fn line(&self) -> String {
        format!(
            "lag {:.1} s  backlog {}  relays {}",
            self.lag_seconds,
            self.backlog_text(),
            self.relays.len()
        )
    }

    fn print(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "lag      {:.1} s", self.lag_seconds)?;
        writeln!(out, "backlog  {}", self.backlog_text())?;
        match &self.oldest {
            None => writeln!(out, "oldest   none: nothing waits to be published")?,
            Some(oldest) => writeln!(
                out,
                "oldest   {} (seq {}), for exchange {:?} with routing key {:?}",
                oldest.id, oldest.seq, oldest.exchange, oldest.routing_key
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
