//! What a setting of the daemon is worth: the same measurement with one value after the other, in turns.
//!
//! The defaults are chosen by this. Each figure that is compared is compared with one of the values, in the same round.

mod summary;

use anyhow::{Context, Result};
use clap::ValueEnum;
use postrider_testbed::QueueKind;
use serde::Serialize;

use self::summary::{Line, summarise};
use crate::{
    drain::{self, Backlog},
    latency, producers,
    queue::Queue,
    report::{grouped, sized},
    stage::{Setting, Stage},
};

/// What is measured with each value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Subject {
    /// Draining a full outbox to a quorum queue, of messages of 256 bytes or of --payload
    Throughput,
    /// From commit to consumer, at each --rate
    Latency,
    /// Transactions of 8 clients as fast as they can, with the daemon on the same cores and without
    Producers,
}

/// What to measure.
#[derive(Clone, Debug)]
pub(crate) struct SweepPlan {
    /// The variable of the setting.
    pub(crate) key: String,
    pub(crate) values: Vec<String>,
    /// The value that the others are compared with: one of them.
    pub(crate) against: String,
    pub(crate) subject: Subject,
    pub(crate) rounds: u32,
    /// Throughput: the size of a message, and how many of one measurement.
    pub(crate) payload_bytes: u32,
    pub(crate) messages: u32,
    /// Latency: messages a second.
    pub(crate) rates: Vec<u32>,
    /// Latency, producers: of one measurement.
    pub(crate) seconds: u32,
}

/// One figure of a measurement.
#[derive(Clone, Debug, Serialize)]
struct Figure {
    quantity: String,
    value: f64,
    /// How many digits it is written with after the point.
    #[serde(skip)]
    digits: usize,
    /// Whether its ratio to that of another value has a column of its own.
    #[serde(skip)]
    compared: bool,
}

impl Figure {
    fn plain(quantity: impl Into<String>, value: f64, digits: usize) -> Self {
        Self {
            quantity: quantity.into(),
            value,
            digits,
            compared: false,
        }
    }

    fn compared(quantity: impl Into<String>, value: f64, digits: usize) -> Self {
        Self {
            compared: true,
            ..Self::plain(quantity, value, digits)
        }
    }
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
struct Run {
    round: u32,
    value: String,
    figures: Vec<Figure>,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sweep {
    key: String,
    subject: Subject,
    against: String,
    rounds: u32,
    /// What was measured, in words.
    what: String,
    summary: Vec<Line>,
    runs: Vec<Run>,
}

/// Measures all values, round by round, in the opposite order in every second round.
///
/// # Errors
/// The daemon does not take a value, or a measurement fails.
pub(crate) async fn measure(stage: &mut Stage, plan: &SweepPlan) -> Result<Sweep> {
    println!("Measuring with values of {}.\n", plan.key);
    if plan.subject == Subject::Throughput {
        // Once without being counted: the servers have just been started.
        throughput(stage, plan).await.context("warming up")?;
    }
    let mut runs = Vec::new();
    for round in 1..=plan.rounds {
        let mut values = plan.values.clone();
        if round.is_multiple_of(2) {
            values.reverse();
        }
        for value in values {
            let setting: Setting = format!("{}={value}", plan.key).parse()?;
            // After those of the command line, so that it is the one that counts.
            stage.settings.push(setting);
            let figures = one(stage, plan).await;
            stage.settings.pop();
            let figures = figures.with_context(|| format!("with {}={value}", plan.key))?;
            let told: Vec<String> = figures
                .iter()
                .filter(|figure| figure.compared)
                .map(|figure| format!("{} {:.2$}", figure.quantity, figure.value, figure.digits))
                .collect();
            println!(
                "round {round} of {}: {value}: {}",
                plan.rounds,
                told.join("; ")
            );
            runs.push(Run {
                round,
                value,
                figures,
            });
        }
    }
    println!();
    Ok(Sweep {
        key: plan.key.clone(),
        subject: plan.subject,
        against: plan.against.clone(),
        rounds: plan.rounds,
        what: what(plan),
        summary: summarise(&plan.values, &plan.against, &runs),
        runs,
    })
}

fn what(plan: &SweepPlan) -> String {
    match plan.subject {
        Subject::Throughput => format!(
            "{} persistent messages of {} drained to a quorum queue",
            grouped(f64::from(plan.messages)),
            sized(plan.payload_bytes)
        ),
        Subject::Latency => format!(
            "from COMMIT answered to the consumer of a quorum queue, for {} s each",
            plan.seconds
        ),
        Subject::Producers => format!(
            "transactions of 8 clients as fast as they can for {} s each",
            plan.seconds
        ),
    }
}

async fn one(stage: &Stage, plan: &SweepPlan) -> Result<Vec<Figure>> {
    match plan.subject {
        Subject::Throughput => throughput(stage, plan).await,
        Subject::Latency => {
            let mut figures = Vec::new();
            for rate in &plan.rates {
                figures.extend(at_rate(stage, *rate, plan.seconds).await?);
            }
            Ok(figures)
        }
        Subject::Producers => beside_producers(stage, plan.seconds).await,
    }
}

async fn throughput(stage: &Stage, plan: &SweepPlan) -> Result<Vec<Figure>> {
    let messages = plan.messages;
    let installation = stage.install(&stage.binary).await?;
    let queue = Queue::declare(&stage.control, QueueKind::Quorum).await?;
    let backlog = Backlog {
        payload: &vec![b'x'; plan.payload_bytes as usize],
        good: messages,
        faulty: None,
    };
    let measured = drain::drain(stage, &installation, &queue, &backlog)
        .await?
        .measured;
    queue.verify(messages).await?;
    queue.delete().await?;
    stage.remove(installation).await?;
    let cpu = measured.cpu_us_a_message;
    let peak = measured
        .peak_memory_bytes
        .context("the daemon's peak memory was not taken")?;
    let rate = f64::from(messages) / measured.elapsed.as_secs_f64();
    Ok(vec![
        Figure::compared("messages/s", rate, 0),
        Figure::plain("CPU µs/message: daemon", cpu.publisher, 1),
        Figure::plain("PostgreSQL", cpu.postgres, 1),
        Figure::plain("broker", cpu.broker, 1),
        Figure::compared("all three", cpu.all(), 1),
        Figure::plain("peak memory, MiB", peak as f64 / (1024.0 * 1024.0), 1),
    ])
}

async fn at_rate(stage: &Stage, rate: u32, seconds: u32) -> Result<Vec<Figure>> {
    let latency = latency::of_daemon(stage, rate, seconds).await?;
    let at = format!("at {}/s", grouped(f64::from(rate)));
    Ok(vec![
        Figure::compared(format!("p50 {at}, ms"), latency.p50_ms, 2),
        Figure::compared(format!("p99 {at}, ms"), latency.p99_ms, 2),
        Figure::plain(
            format!("CPU of the relay {at}, %"),
            latency.relay_cpu_share * 100.0,
            1,
        ),
        Figure::plain(format!("reached {at}"), latency.reached_rate, 0),
    ])
}

async fn beside_producers(stage: &Stage, seconds: u32) -> Result<Vec<Figure>> {
    let beside = producers::beside_daemon(stage, seconds).await?;
    Ok(vec![
        Figure::compared("transactions/s", beside.transactions_a_second, 0),
        Figure::plain(
            "of no relay",
            beside.transactions_a_second / beside.without_a_second,
            2,
        ),
        Figure::plain(
            "CPU µs/transaction: producers' PostgreSQL",
            beside.producing_us,
            1,
        ),
        Figure::plain("daemon's sessions", beside.relaying_us, 1),
        Figure::plain("daemon", beside.daemon_us, 1),
        Figure::plain("broker", beside.broker_us, 1),
    ])
}
