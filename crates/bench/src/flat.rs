//! What rows already deleted, old transactions and a backlog cost the relay.
//!
//! Every condition is brought about anew in each round, in a database of its own, and everything is compared with the
//! empty table of the same round. The daemon has delivered messages in that condition before the time starts: it is
//! the cost of each message that is to be flat, not that of a start.

mod condition;
mod head_claim;

use std::{fmt, time::Duration};

use anyhow::{Context, Result, ensure};
use postrider_testbed::{Client, Daemon, QueueKind};
use serde::Serialize;

use self::condition::{Condition, EMPTY, FULL, Kind, SHORT};
use crate::{
    chart::{Chart, Scale, Series},
    daemon::{self, Sample},
    queue::Queue,
    report::grouped,
    stage::{self, Installation, Stage},
    statistics::Spread,
    throughput::PAYLOAD_BYTES,
};

/// Delivered before those that are measured are committed.
const WARM: u32 = 1_000;

/// How long the daemon then has for what it learns in the background, such as where its floor can be, before somebody
/// writes to the outbox again.
const WARMED_UP_FOR: Duration = Duration::from_secs(2);

/// Delivered of the same transaction or backlog before the time starts: by then all workers are at it.
const RUN_UP: u32 = 5_000;

/// Not awaited by the clock: with the last messages not all workers have something to do.
const RUN_OUT: u32 = 5_000;

/// A rate so low that something is wrong.
const LEAST_PER_SECOND: u32 = 200;

/// How long servers may take to come to rest beside a daemon, which may not let them.
const REST: Duration = Duration::from_secs(10);

/// How long the daemon may take to fall asleep before what it uses then is measured.
const FALLING_ASLEEP: Duration = Duration::from_secs(1);

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlatPlan {
    pub(crate) rounds: u32,
    pub(crate) short: bool,
}

impl FlatPlan {
    fn conditions(self) -> &'static [Condition] {
        if self.short { &SHORT } else { &FULL }
    }

    fn messages(self) -> u32 {
        if self.short { 50_000 } else { 100_000 }
    }

    fn head_claims(self) -> u32 {
        if self.short { 5 } else { 9 }
    }

    fn idle(self) -> Duration {
        Duration::from_secs(if self.short { 4 } else { 20 })
    }
}

/// Parts of one core.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Idle {
    daemon: f64,
    /// The daemon's own sessions: what else PostgreSQL does is not its doing.
    sessions: f64,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
struct Run {
    round: u32,
    condition: Condition,
    messages_a_second: f64,
    /// Of the daemon, while it drained.
    claim_ms_a_batch: f64,
    head_claim_ms: f64,
    /// Not where there is a backlog.
    idle: Option<Idle>,
}

/// What a condition gave, and how much that is of what the empty table gave in the same round.
#[derive(Clone, Debug, Serialize)]
struct Line {
    condition: Condition,
    messages_a_second: Spread,
    rate_ratio: Spread,
    claim_ms_a_batch: Spread,
    /// Of the speed, so that slower is less than 1.
    claim_ratio: Spread,
    head_claim_ms: Spread,
    head_claim_ratio: Spread,
    idle_daemon: Option<Spread>,
    idle_sessions: Option<Spread>,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Flat {
    rounds: u32,
    /// Of one measurement, to a quorum queue.
    messages: u32,
    payload_bytes: usize,
    head_claim_rows: u32,
    idle_seconds: u64,
    summary: Vec<Line>,
    runs: Vec<Run>,
}

/// Measures all conditions, round by round, in the opposite order in every second round.
///
/// # Errors
/// A measurement fails, or a queue did not get each message once.
pub(crate) async fn measure(stage: &Stage, plan: FlatPlan) -> Result<Flat> {
    println!("Measuring what deleted rows and a backlog cost.\n");
    let mut runs = Vec::new();
    // Once without being counted: the servers have just been started.
    let warm_up = FlatPlan {
        short: true,
        ..plan
    };
    measure_one(stage, warm_up, 0, EMPTY)
        .await
        .context("warming up")?;
    for round in 1..=plan.rounds {
        let mut conditions = plan.conditions().to_vec();
        if round.is_multiple_of(2) {
            conditions.reverse();
        }
        for condition in conditions {
            let run = measure_one(stage, plan, round, condition)
                .await
                .with_context(|| condition.name())?;
            println!(
                "round {round} of {}: {:<38} {:>8} messages/s",
                plan.rounds,
                condition.name(),
                grouped(run.messages_a_second)
            );
            runs.push(run);
        }
    }
    println!();
    Ok(Flat {
        rounds: plan.rounds,
        messages: plan.messages(),
        payload_bytes: PAYLOAD_BYTES,
        head_claim_rows: head_claim::ROWS,
        idle_seconds: plan.idle().as_secs(),
        summary: summarise(plan.conditions(), &runs),
        runs,
    })
}

async fn measure_one(
    stage: &Stage,
    plan: FlatPlan,
    round: u32,
    condition: Condition,
) -> Result<Run> {
    let installation = stage.install(&stage.binary).await?;
    let queue = Queue::declare(&stage.control, QueueKind::Quorum).await?;
    let kept = condition.bring_about(&installation, &queue.name).await?;
    let client = installation.database.client().await?;
    if condition.kind != Kind::Backlog {
        stage::insert(&client, &queue.name, &PAYLOAD, WARM).await?;
    }
    settle_servers(&client).await?;
    let head_claim_ms = head_claim::milliseconds(&client, plan.head_claims()).await?;
    stage.wait_until_quiet().await?;

    let daemon = daemon::start(stage, &installation).await?;
    let (drained, idle) = match condition.kind {
        Kind::Backlog => {
            let first = WARM + RUN_UP;
            let drained = between(&daemon, first, plan.messages(), condition.rows).await?;
            // Killed: there is no end of the backlog to wait for, and its messages are not looked at.
            daemon.kill().await?;
            (drained, None)
        }
        Kind::Empty | Kind::UnderSnapshot | Kind::UnderWriter => {
            daemon::until_published(&daemon, WARM, deadline(WARM)).await?;
            tokio::time::sleep(WARMED_UP_FOR).await;
            commit_messages(stage, &installation, &queue, plan).await?;
            let all = WARM + RUN_UP + plan.messages() + RUN_OUT;
            let drained = between(&daemon, WARM + RUN_UP, plan.messages(), all).await?;
            daemon::until_published(&daemon, all, deadline(RUN_OUT)).await?;
            let idle = measure_idle(&daemon, &client, plan.idle()).await?;
            daemon::stop(daemon).await?;
            queue.verify(all).await?;
            (drained, Some(idle))
        }
    };
    drop(kept);
    queue.delete().await?;
    stage.remove(installation).await?;
    let (earlier, later) = drained;
    let seconds = (later.at - earlier.at).as_secs_f64();
    Ok(Run {
        round,
        condition,
        messages_a_second: (later.published() - earlier.published()) / seconds,
        claim_ms_a_batch: later
            .claim_ms_since(&earlier)
            .context("the daemon claimed nothing")?,
        head_claim_ms,
        idle,
    })
}

const PAYLOAD: [u8; PAYLOAD_BYTES] = [b'x'; PAYLOAD_BYTES];

fn deadline(messages: u32) -> Duration {
    Duration::from_secs(60 + u64::from(messages / LEAST_PER_SECOND))
}

async fn settle_servers(client: &Client) -> Result<()> {
    client
        .batch_execute("ANALYZE outbox.messages; CHECKPOINT")
        .await
        .context("could not analyse the outbox and write it out")
}

/// Inserts what is drained and commits it once it is on disk.
async fn commit_messages(
    stage: &Stage,
    installation: &Installation,
    queue: &Queue,
    plan: FlatPlan,
) -> Result<()> {
    let writer = installation.database.client().await?;
    writer.batch_execute("BEGIN").await?;
    let messages = RUN_UP + plan.messages() + RUN_OUT;
    stage::insert(&writer, &queue.name, &PAYLOAD, messages).await?;
    let other = installation.database.client().await?;
    other.batch_execute("CHECKPOINT").await?;
    // A daemon that walks over everything with each poll never lets PostgreSQL rest.
    stage.come_to_rest(REST).await?;
    writer.batch_execute("COMMIT").await?;
    Ok(())
}

/// The counters when `first` messages were published, and when `messages` more were, of `all` that there are.
async fn between(daemon: &Daemon, first: u32, messages: u32, all: u32) -> Result<(Sample, Sample)> {
    let earlier = daemon::until_published(daemon, first, deadline(first)).await?;
    let begun_at = earlier.published() as u32;
    ensure!(
        begun_at + messages / 2 < all,
        "the daemon said too late how far it was: the machine is too busy to measure"
    );
    let last = all.min(begun_at + messages);
    let later = daemon::until_published(daemon, last, deadline(messages)).await?;
    Ok((earlier, later))
}

async fn measure_idle(daemon: &Daemon, client: &Client, length: Duration) -> Result<Idle> {
    tokio::time::sleep(FALLING_ASLEEP).await;
    let (daemon_before, sessions_before) = (daemon.cpu_seconds()?, daemon::sessions(client).await?);
    let began = std::time::Instant::now();
    tokio::time::sleep(length).await;
    let (daemon_after, sessions_after) = (daemon.cpu_seconds()?, daemon::sessions(client).await?);
    let seconds = began.elapsed().as_secs_f64();
    Ok(Idle {
        daemon: (daemon_after - daemon_before) / seconds,
        sessions: sessions_after.since(&sessions_before) / seconds,
    })
}

fn summarise(conditions: &[Condition], runs: &[Run]) -> Vec<Line> {
    let empty_of = |round: u32| {
        runs.iter()
            .find(|run| run.round == round && run.condition.kind == Kind::Empty)
    };
    let line = |condition: &Condition| {
        let own = || runs.iter().filter(|run| run.condition == *condition);
        let spread = |of: fn(&Run) -> f64| Spread::of(own().map(of));
        let ratio = |of: fn(&Run, &Run) -> f64| {
            Spread::of(own().filter_map(|run| Some(of(run, empty_of(run.round)?))))
        };
        let idle = |of: fn(Idle) -> f64| Spread::of(own().filter_map(|run| run.idle.map(of)));
        Some(Line {
            condition: *condition,
            messages_a_second: spread(|run| run.messages_a_second)?,
            rate_ratio: ratio(|run, empty| run.messages_a_second / empty.messages_a_second)?,
            claim_ms_a_batch: spread(|run| run.claim_ms_a_batch)?,
            claim_ratio: ratio(|run, empty| empty.claim_ms_a_batch / run.claim_ms_a_batch)?,
            head_claim_ms: spread(|run| run.head_claim_ms)?,
            head_claim_ratio: ratio(|run, empty| empty.head_claim_ms / run.head_claim_ms)?,
            idle_daemon: idle(|idle| idle.daemon),
            idle_sessions: idle(|idle| idle.sessions),
        })
    };
    conditions.iter().filter_map(line).collect()
}

impl Flat {
    /// What each condition leaves of the speed.
    pub(crate) fn chart(&self) -> Chart {
        let series = |name: &str, of: fn(&Line) -> Spread| Series {
            name: name.to_owned(),
            values: self.summary.iter().map(|line| Some(of(line))).collect(),
        };
        Chart {
            name: "flat",
            title:
                "Behind deleted rows that a snapshot (snap) or a writer keeps, and with a backlog"
                    .to_owned(),
            unit: "speed, of the empty outbox's".to_owned(),
            scale: Scale::Linear,
            labels: self
                .summary
                .iter()
                .map(|line| line.condition.label())
                .collect(),
            series: vec![
                series("draining", |line| line.rate_ratio),
                series("the daemon's claim", |line| line.claim_ratio),
                series("claim from the head", |line| line.head_claim_ratio),
            ],
        }
    }
}

impl fmt::Display for Flat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Flat cost: {} persistent messages of {} bytes to a quorum queue, by what stands before them; medians of {} \
             interleaved rounds (lowest to highest)\n",
            grouped(f64::from(self.messages)),
            self.payload_bytes,
            self.rounds
        )?;
        writeln!(
            f,
            "| outbox | messages/s | of the empty one | daemon's claim, ms | speed, of the empty one \
             | claim from the head, ms | speed, of the empty one | idle, % of a core: daemon | its sessions |"
        )?;
        writeln!(f, "|---|---:|---:|---:|---:|---:|---:|---:|---:|")?;
        for line in &self.summary {
            let ratio = |ratio: Spread| {
                ratio.written(|value| match value {
                    // What has fallen to nearly nothing is still some multiple.
                    low if low < 0.095 => format!("{low:.3}"),
                    value => format!("{value:.2}"),
                })
            };
            let ms = |ms: Spread| ms.written(|value| format!("{value:.1}"));
            let share = |share: Option<Spread>| {
                share.map_or_else(
                    || "-".to_owned(),
                    |share| share.written(|value| format!("{:.1}", value * 100.0)),
                )
            };
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                line.condition.name(),
                line.messages_a_second.written(grouped),
                ratio(line.rate_ratio),
                ms(line.claim_ms_a_batch),
                ratio(line.claim_ratio),
                ms(line.head_claim_ms),
                ratio(line.head_claim_ratio),
                share(line.idle_daemon),
                share(line.idle_sessions)
            )?;
        }
        writeln!(
            f,
            "\nA claim from the head takes the first {} rows by the primary key. Idle was looked at for {} s.",
            self.head_claim_rows, self.idle_seconds
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Condition, EMPTY, Kind, Run, summarise};

    const DEAD: Condition = Condition {
        kind: Kind::UnderSnapshot,
        rows: 100_000,
    };

    fn run(round: u32, condition: Condition, rate: f64, claim: f64) -> Run {
        Run {
            round,
            condition,
            messages_a_second: rate,
            claim_ms_a_batch: claim,
            head_claim_ms: claim,
            idle: None,
        }
    }

    #[test]
    fn each_condition_is_compared_with_the_empty_table_of_its_round() {
        let runs = [
            run(1, EMPTY, 100.0, 1.0),
            run(1, DEAD, 50.0, 4.0),
            run(2, DEAD, 100.0, 8.0),
            run(2, EMPTY, 200.0, 2.0),
        ];
        let lines = summarise(&[EMPTY, DEAD], &runs);
        let [empty, dead] = &lines[..] else {
            panic!("{lines:?}");
        };
        assert_eq!((empty.rate_ratio.min, empty.rate_ratio.max), (1.0, 1.0));
        assert_eq!((dead.rate_ratio.min, dead.rate_ratio.max), (0.5, 0.5));
        assert_eq!((dead.claim_ratio.min, dead.claim_ratio.max), (0.25, 0.25));
        assert!(dead.idle_daemon.is_none());
    }
}
