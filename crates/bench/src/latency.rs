//! From the commit of a message to its consumer, on an otherwise idle system, at several rates: the daemon with its
//! defaults, the daemon with polling alone, and at low rates a plain loop that always listens.
//!
//! Both ends read one monotonic clock, in one process.

mod summary;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use postrider_testbed::QueueKind;
use serde::Serialize;
use uuid::Uuid;

use self::summary::{Line, summarise};
use crate::{
    arrival::Arrivals,
    contender::{Contender, Loop},
    queue::Queue,
    report::grouped,
    schedule::{Commit, Schedule},
    stage::Stage,
    statistics::Percentiles,
};

const PAYLOAD_BYTES: usize = 256;

/// The first second's messages find cold caches and new connections; they are not counted.
const WARM_UP_SECONDS: u32 = 1;

/// One message at a time keeps up with no more than some hundreds a second.
const LOOP_RATE: u32 = 100;

/// How much to measure.
#[derive(Clone, Debug)]
pub(crate) struct LatencyPlan {
    pub(crate) rates: Vec<u32>,
    /// Of one measurement.
    pub(crate) seconds: u32,
    pub(crate) rounds: u32,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
struct Run {
    round: u32,
    rate: u32,
    relay: &'static str,
    /// How many were counted.
    messages: usize,
    /// Commits a second: less than the rate where the machine was too slow for it.
    reached_rate: f64,
    /// From the moment at which COMMIT had returned.
    after_commit_ms: Percentiles,
    /// From the moment at which COMMIT was sent: the database's own time is part of it.
    with_commit_ms: Percentiles,
    /// How long COMMIT took.
    commit_ms: Percentiles,
    /// How far behind their schedule the producers ever were.
    producer_late_ms_max: f64,
    /// Of one core, used by the relay meanwhile.
    relay_cpu_share: f64,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Latency {
    seconds: u32,
    rounds: u32,
    payload_bytes: usize,
    summary: Vec<Line>,
    runs: Vec<Run>,
}

/// What relays at which rate, in the order of the table.
fn cases(rates: &[u32]) -> Vec<(u32, Contender)> {
    let mut cases = Vec::new();
    for &rate in rates {
        cases.push((rate, Contender::Postrider));
        cases.push((rate, Contender::Polling));
        if rate <= LOOP_RATE {
            cases.push((rate, Contender::Loop(Loop::Listening)));
        }
    }
    cases
}

/// Measures with a quorum queue and one consumer.
///
/// # Errors
/// A message is lost or arrives twice, or a server or a relay fails.
pub(crate) async fn measure(stage: &Stage, plan: &LatencyPlan) -> Result<Latency> {
    let cases = cases(&plan.rates);
    let mut runs = Vec::new();
    for round in 1..=plan.rounds {
        let mut turns = cases.clone();
        // What drifts during a run shall favour nobody.
        if round % 2 == 0 {
            turns.reverse();
        }
        for (rate, contender) in turns {
            let run = run(stage, plan.seconds, round, rate, contender)
                .await
                .with_context(|| format!("{} at {rate} messages/s", contender.name()))?;
            println!(
                "round {round} of {}: {:>6} messages/s, {:<24} p50 {:.2} ms, p99 {:.2} ms",
                plan.rounds,
                grouped(f64::from(rate)),
                run.relay,
                run.after_commit_ms.p50,
                run.after_commit_ms.p99
            );
            runs.push(run);
        }
    }
    println!();
    Ok(Latency {
        seconds: plan.seconds,
        rounds: plan.rounds,
        payload_bytes: PAYLOAD_BYTES,
        summary: summarise(&cases, &runs).context("a measurement is missing")?,
        runs,
    })
}

/// What the daemon took at one rate, in milliseconds from the moment at which COMMIT had returned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OfDaemon {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Commits a second.
    pub(crate) reached_rate: f64,
    /// Of one core.
    pub(crate) relay_cpu_share: f64,
}

/// Measures the daemon once, with the settings of the run.
///
/// # Errors
/// As [`measure`].
pub(crate) async fn of_daemon(stage: &Stage, rate: u32, seconds: u32) -> Result<OfDaemon> {
    let run = run(stage, seconds, 1, rate, Contender::Postrider)
        .await
        .with_context(|| format!("at {rate} messages/s"))?;
    Ok(OfDaemon {
        p50_ms: run.after_commit_ms.p50,
        p99_ms: run.after_commit_ms.p99,
        reached_rate: run.reached_rate,
        relay_cpu_share: run.relay_cpu_share,
    })
}

async fn run(
    stage: &Stage,
    seconds: u32,
    round: u32,
    rate: u32,
    contender: Contender,
) -> Result<Run> {
    let queue = Queue::declare(&stage.control, QueueKind::Quorum).await?;
    let installation = stage.install(&stage.binary).await?;
    let relay = contender.start(stage, &installation).await?;
    let arrivals = Arrivals::of(stage, &queue.name).await?;
    // The relay has never seen a message, so it sleeps when the first one comes.
    stage.wait_until_quiet().await?;

    let cpu_before = relay.cpu_seconds()?;
    let began = Instant::now();
    let schedule = Schedule {
        queue: queue.name.clone(),
        payload_bytes: PAYLOAD_BYTES,
        rate,
        messages: rate * (seconds + WARM_UP_SECONDS),
    };
    let commits = schedule.produce(&installation).await?;
    let arrivals = arrivals
        .collect(&commits)
        .await
        .with_context(|| relay.log())?;
    let relay_cpu_share = (relay.cpu_seconds()? - cpu_before) / began.elapsed().as_secs_f64();
    contender.stop(relay).await?;
    queue.delete().await?;
    stage.remove(installation).await?;

    let counted = commits
        .get((rate * WARM_UP_SECONDS) as usize..)
        .unwrap_or_default();
    Ok(Run {
        round,
        rate,
        relay: contender.name(),
        messages: counted.len(),
        reached_rate: reached(counted),
        after_commit_ms: since(counted, &arrivals, |commit| commit.answered)?,
        with_commit_ms: since(counted, &arrivals, |commit| commit.sent)?,
        commit_ms: Percentiles::of(
            counted
                .iter()
                .map(|commit| milliseconds(commit.answered, commit.sent)),
        )
        .context("no message was counted")?,
        producer_late_ms_max: counted
            .iter()
            .map(|commit| commit.late)
            .max()
            .map_or(0.0, |late: Duration| late.as_secs_f64() * 1e3),
        relay_cpu_share,
    })
}

/// Commits a second, from the first to the last.
fn reached(commits: &[Commit]) -> f64 {
    let answers = || commits.iter().map(|commit| commit.answered);
    let Some((first, last)) = answers().min().zip(answers().max()) else {
        return 0.0;
    };
    commits.len().saturating_sub(1) as f64 / (last - first).as_secs_f64()
}

fn since(
    commits: &[Commit],
    arrivals: &HashMap<Uuid, Instant>,
    from: fn(&Commit) -> Instant,
) -> Result<Percentiles> {
    let arrived = |commit: &Commit| Some(milliseconds(*arrivals.get(&commit.id)?, from(commit)));
    Percentiles::of(commits.iter().filter_map(arrived)).context("no message was counted")
}

/// Signed: a message may be with its consumer before the producer has the answer to its COMMIT.
fn milliseconds(to: Instant, from: Instant) -> f64 {
    let forward = to.saturating_duration_since(from).as_secs_f64();
    let backward = from.saturating_duration_since(to).as_secs_f64();
    (forward - backward) * 1e3
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{milliseconds, reached};
    use crate::schedule::Commit;

    #[test]
    fn an_arrival_before_the_answer_counts_as_negative() {
        let now = Instant::now();
        let later = now + Duration::from_millis(2);
        assert_eq!(milliseconds(later, now), 2.0);
        assert_eq!(milliseconds(now, later), -2.0);
    }

    #[test]
    fn the_rate_that_was_reached_is_that_of_the_commits() {
        let began = Instant::now();
        let commit = |number: u32| Commit {
            number,
            id: uuid::Uuid::nil(),
            sent: began,
            answered: began + Duration::from_millis(20) * number,
            late: Duration::ZERO,
        };
        // One connection may answer before another that was due earlier.
        let commits: Vec<Commit> = [1, 0, 2, 4, 3].map(commit).into();
        assert_eq!(reached(&commits), 50.0);
        assert_eq!(reached(&[]), 0.0);
    }
}
