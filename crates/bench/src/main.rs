//! Benchmarks of the real daemon on real servers of its own. Every figure is taken beside the limit it is compared
//! with, in the same run: rates of shared machines mean nothing alone. See `docs/benchmarks.md`.

mod arrival;
mod bare;
mod chart;
mod cli;
mod compare;
mod contender;
mod cpu;
mod daemon;
mod deliveries;
mod drain;
mod duel;
mod flat;
mod fleet;
mod handwritten;
mod latency;
mod listening;
mod memory;
mod ordered;
mod producers;
mod queue;
mod relays;
mod report;
mod schedule;
mod stage;
mod statistics;
mod sweep;
mod throughput;
mod took;
mod unroutable;
mod work;

use std::{process::ExitCode, time::Instant};

use anyhow::Result;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::{Cli, What, absolute},
    report::Report,
    stage::Stage,
    took::Took,
};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = tokio::select! {
        done = run(&cli) => done,
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

async fn run(cli: &Cli) -> Result<()> {
    match cli.what() {
        What::Loop { which } => which.run().await,
        what => measure(cli, &what).await,
    }
}

async fn measure(cli: &Cli, what: &What) -> Result<()> {
    let binary = cli.daemon()?;
    if cfg!(debug_assertions) {
        println!("This is a debug build: its figures say nothing.\n");
    }
    // Known before the servers are there.
    let before = match what {
        What::Compare { before } => Some(absolute(before)?),
        _ => None,
    };
    let sweep = cli.sweep()?;
    let took = Took::from(Instant::now());
    let mut stage = Stage::set_up(binary, cli.settings.clone()).await?;
    let mut report = Report::new(stage.describe().await?, took);
    println!("{}", report.setup);
    // Whether it can be written is known before the measurements, not after them.
    report.save(cli, "servers")?;

    if what.includes(&What::Throughput) {
        let throughput = throughput::measure(&stage, &cli.throughput()).await?;
        println!("{throughput}");
        report.throughput = Some(throughput);
        report.save(cli, "throughput")?;
    }
    if what.includes(&What::Latency) {
        let latency = latency::measure(&stage, &cli.latency()).await?;
        println!("{latency}");
        report.latency = Some(latency);
        report.save(cli, "latency")?;
    }
    if what.includes(&What::Producers) {
        let producers = producers::measure(&stage, cli.producers()).await?;
        println!("{producers}");
        report.producers = Some(producers);
        report.save(cli, "producers")?;
    }
    if what.includes(&What::Flat) {
        let flat = flat::measure(&stage, cli.flat()).await?;
        println!("{flat}");
        report.flat = Some(flat);
        report.save(cli, "flat")?;
    }
    if what.includes(&What::Relays) {
        let relays = relays::measure(&stage, cli.relays()).await?;
        println!("{relays}");
        report.relays = Some(relays);
        report.save(cli, "relays")?;
    }
    if what.includes(&What::Memory) {
        let memory = memory::measure(&stage, cli.memory()).await?;
        println!("{memory}");
        report.memory = Some(memory);
        report.save(cli, "memory")?;
    }
    if what.includes(&What::Ordered) {
        let ordered = ordered::measure(&stage, cli.ordered()).await?;
        println!("{ordered}");
        report.ordered = Some(ordered);
        report.save(cli, "ordered")?;
    }
    if let Some(before) = &before {
        let comparison = compare::measure(&stage, before, cli.duel()).await?;
        println!("{comparison}");
        report.comparison = Some(comparison);
        report.save(cli, "comparison")?;
    }
    if let What::Unroutable { share, fault } = what {
        let unroutable = unroutable::measure(&stage, *fault, *share, cli.duel()).await?;
        println!("{unroutable}");
        report.unroutable = Some(unroutable);
        report.save(cli, "unroutable")?;
    }
    if let Some(plan) = &sweep {
        let sweep = sweep::measure(&mut stage, plan).await?;
        println!("{sweep}");
        report.sweep = Some(sweep);
        report.save(cli, "sweep")?;
    }
    println!("{}", report.took);
    if let Some(file) = &cli.json {
        println!("All results are in {}.", file.display());
    }
    if let Some(directory) = &cli.plots {
        println!("They are drawn in {}.", directory.display());
    }
    Ok(())
}
