//! Benchmarks of the real daemon on real servers of its own. Every figure is taken beside the limit it is compared
//! with, in the same run: rates of shared machines mean nothing alone. See `docs/benchmarks.md`.

mod bare;
mod compare;
mod cpu;
mod daemon;
mod drain;
mod duel;
mod latency;
mod queue;
mod report;
mod stage;
mod statistics;
mod throughput;
mod unroutable;
mod work;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    duel::DuelPlan,
    latency::LatencyPlan,
    report::Report,
    stage::{Setting, Stage},
    throughput::ThroughputPlan,
    unroutable::{Fault, Share},
};

/// Measures Postrider against the broker's own limit, on a private PostgreSQL and a private RabbitMQ.
#[derive(Debug, Parser)]
#[command(name = "postrider-bench", version, max_term_width = 100)]
struct Cli {
    /// What to measure [default: all]
    #[command(subcommand)]
    what: Option<What>,

    /// The postrider program, from a release build [default: the one beside this program]
    ///
    /// POSTRIDER_BIN names it as well.
    #[arg(long, global = true, value_name = "FILE")]
    daemon: Option<PathBuf>,

    /// A setting of the daemon for all runs, recorded in the results; may be repeated
    #[arg(long = "set", global = true, value_name = "POSTRIDER_NAME=VALUE")]
    settings: Vec<Setting>,

    /// All but latency: how often everything is measured [default: 3; compare, unroutable: 5; quick: 1]
    #[arg(long, global = true, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,

    /// All but latency: messages of one measurement [default: 200000; compare, unroutable: 100000; quick: 40000]
    #[arg(long, global = true, value_parser = clap::value_parser!(u32).range(1000..))]
    messages: Option<u32>,

    /// Latency: messages a second
    #[arg(long, global = true, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,

    /// Latency: for how long, in seconds [default: 30; quick: 10]
    #[arg(long, global = true, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,

    /// Fewer and shorter measurements: to see that it works, not to quote
    #[arg(long, global = true)]
    quick: bool,

    /// Write all results there, each measurement included
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What to measure.
#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Draining a full outbox, against a bare publisher with pipelined confirms
    Throughput,
    /// From commit to consumer, on an idle system
    Latency,
    /// Throughput and latency
    All,
    /// Draining a full outbox with an older daemon and with the current one, in turns
    ///
    /// Rate, and the CPU time that a message costs the daemon, PostgreSQL and the broker. Each daemon gets a database of
    /// its own, made anew and migrated by itself for every measurement; broker, queue kind and settings are the same, so
    /// --set takes only what both know.
    Compare {
        /// The postrider program to compare with, from a release build
        #[arg(long, value_name = "FILE")]
        before: PathBuf,
    },
    /// Draining a full outbox of good messages, without and with some among them that cannot be delivered, in turns
    ///
    /// The rate is that of the good messages, as many in both: until the last of them is confirmed, deleted and
    /// committed. The faulty ones lie evenly among them and are tried again meanwhile, by the daemon's settings.
    Unroutable {
        /// How many of all messages are faulty, as a part of 1
        #[arg(long, value_name = "PART", default_value = "0.01")]
        share: Share,
        /// What is wrong with them
        #[arg(long, value_enum, default_value = "unroutable")]
        fault: Fault,
    },
}

impl Cli {
    fn throughput(&self) -> ThroughputPlan {
        ThroughputPlan {
            rounds: self.rounds.unwrap_or(if self.quick { 1 } else { 3 }),
            messages: self
                .messages
                .unwrap_or(if self.quick { 40_000 } else { 200_000 }),
        }
    }

    fn duel(&self) -> DuelPlan {
        DuelPlan {
            rounds: self.rounds.unwrap_or(if self.quick { 1 } else { 5 }),
            messages: self
                .messages
                .unwrap_or(if self.quick { 40_000 } else { 100_000 }),
        }
    }

    fn latency(&self) -> LatencyPlan {
        LatencyPlan {
            rate: self.rate,
            seconds: self.seconds.unwrap_or(if self.quick { 10 } else { 30 }),
        }
    }

    fn daemon(&self) -> Result<PathBuf> {
        let named = self
            .daemon
            .clone()
            .or_else(|| std::env::var_os("POSTRIDER_BIN").map(PathBuf::from));
        let binary = match named {
            Some(binary) => binary,
            None => std::env::current_exe()
                .context("could not find out where this program is")?
                .with_file_name("postrider"),
        };
        ensure!(
            binary.is_file(),
            "there is no daemon at {}: build it with `cargo build --release --bins`, or name it with --daemon or \
             POSTRIDER_BIN",
            binary.display()
        );
        absolute(&binary)
    }
}

/// The file's path in any directory: the daemon is run in others.
fn absolute(binary: &Path) -> Result<PathBuf> {
    fs::canonicalize(binary).with_context(|| format!("could not look at {}", binary.display()))
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = tokio::select! {
        done = measure(&cli) => done,
        // Servers and daemon are stopped by their drops.
        signal = signalled() => match signal {
            Ok(signal) => return ExitCode::from(128 + signal),
            Err(error) => Err(error),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for SIGINT or SIGTERM; its number.
async fn signalled() -> Result<u8> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    Ok(tokio::select! {
        _ = interrupts.recv() => 2,
        _ = terminations.recv() => 15,
    })
}

async fn measure(cli: &Cli) -> Result<()> {
    let binary = cli.daemon()?;
    if cfg!(debug_assertions) {
        println!("This is a debug build: its figures say nothing.\n");
    }
    if let Some(file) = &cli.json {
        // Known before the measurements, not after them.
        fs::write(file, "").with_context(|| format!("could not write {}", file.display()))?;
    }
    let what = cli.what.clone().unwrap_or(What::All);
    // Known before the servers are there, too.
    let before = match &what {
        What::Compare { before } => Some(absolute(before)?),
        What::Throughput | What::Latency | What::All | What::Unroutable { .. } => None,
    };
    let stage = Stage::set_up(binary, cli.settings.clone()).await?;
    let mut report = Report::new(stage.describe().await?);
    println!("{}", report.setup);

    if let What::Throughput | What::All = what {
        let throughput = throughput::measure(&stage, cli.throughput()).await?;
        println!("{throughput}");
        report.throughput = Some(throughput);
    }
    if let What::Latency | What::All = what {
        let latency = latency::measure(&stage, cli.latency()).await?;
        println!("{latency}");
        report.latency = Some(latency);
    }
    if let Some(before) = &before {
        let comparison = compare::measure(&stage, before, cli.duel()).await?;
        println!("{comparison}");
        report.comparison = Some(comparison);
    }
    if let What::Unroutable { share, fault } = what {
        let unroutable = unroutable::measure(&stage, fault, share, cli.duel()).await?;
        println!("{unroutable}");
        report.unroutable = Some(unroutable);
    }
    if let Some(file) = &cli.json {
        let mut text = serde_json::to_string_pretty(&report)?;
        text.push('\n');
        fs::write(file, text).with_context(|| format!("could not write {}", file.display()))?;
        println!("All results are in {}.", file.display());
    }
    Ok(())
}
