//! Messages a second to a queue, in interleaved rounds: the bare publisher, which is the broker's limit, the relay with
//! a full outbox, and a loop written by hand with the same.

mod summary;

use std::time::Duration;

use anyhow::{Context, Result};
use postrider_testbed::QueueKind;
use serde::Serialize;

use self::summary::{Line, summarise};
use crate::{
    bare,
    contender::{Contender, Loop},
    cpu::CpuTimes,
    drain::{self, Backlog},
    queue::{Queue, name_of},
    report::{grouped, sized},
    stage::{Installation, Stage},
};

/// The size of every payload, where no other is said.
pub(crate) const PAYLOAD_BYTES: usize = 256;

/// What publishes, in the order of the table. The bare ones are the broker's limit: whichever is the fastest.
const PUBLISHERS: [Publisher; 4] = [
    Publisher::Bare { channels: 1 },
    Publisher::Bare { channels: 2 },
    Publisher::By(Contender::Postrider),
    Publisher::By(Contender::Loop(Loop::Handwritten)),
];

const KINDS: [QueueKind; 2] = [QueueKind::Quorum, QueueKind::Classic];

/// How much to measure.
#[derive(Clone, Debug)]
pub(crate) struct ThroughputPlan {
    pub(crate) sizes: Vec<Size>,
}

/// How much to measure of one size.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Size {
    pub(crate) payload_bytes: u32,
    /// Of one measurement.
    pub(crate) messages: u32,
    pub(crate) rounds: u32,
}

/// One of the publishers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Publisher {
    /// One connection, so many channels, nothing but publishing.
    Bare { channels: u32 },
    /// From the outbox.
    By(Contender),
}

impl Publisher {
    fn name(self) -> String {
        match self {
            Self::Bare { channels: 1 } => "bare publisher, 1 channel".to_owned(),
            Self::Bare { channels } => format!("bare publisher, {channels} channels"),
            Self::By(contender) => contender.name().to_owned(),
        }
    }
}

/// What one measurement gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) elapsed: Duration,
    pub(crate) cpu_us_a_message: CpuTimes,
    /// Of the daemon or the loop.
    pub(crate) peak_memory_bytes: Option<u64>,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
struct Run {
    payload_bytes: u32,
    round: u32,
    queue: &'static str,
    publisher: String,
    seconds: f64,
    messages_a_second: f64,
    cpu_us_a_message: CpuTimes,
    peak_memory_bytes: Option<u64>,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Throughput {
    sizes: Vec<Size>,
    summary: Vec<Line>,
    runs: Vec<Run>,
}

/// Measures all publishers to both kinds of queue.
///
/// # Errors
/// A measurement fails, or a queue did not get each message once.
pub(crate) async fn measure(stage: &Stage, plan: &ThroughputPlan) -> Result<Throughput> {
    let installation = stage.install(&stage.binary).await?;
    // Once without being counted: the servers have just been started.
    if let Some(size) = plan.sizes.first() {
        let relay = Publisher::By(Contender::Postrider);
        run(stage, &installation, size, 0, QueueKind::Quorum, relay)
            .await
            .context("warming up")?;
    }
    let mut runs = Vec::new();
    for size in &plan.sizes {
        for round in 1..=size.rounds {
            for kind in KINDS {
                let mut publishers = PUBLISHERS;
                // What drifts during a run shall favour nobody.
                if round % 2 == 0 {
                    publishers.reverse();
                }
                for publisher in publishers {
                    let run = run(stage, &installation, size, round, kind, publisher)
                        .await
                        .with_context(|| {
                            format!("{} to a {} queue", publisher.name(), name_of(kind))
                        })?;
                    println!(
                        "{}, round {round} of {}: {:<7} {:<27} {:>8} messages/s",
                        sized(size.payload_bytes),
                        size.rounds,
                        run.queue,
                        run.publisher,
                        grouped(run.messages_a_second)
                    );
                    runs.push(run);
                }
            }
        }
    }
    println!();
    stage.remove(installation).await?;
    Ok(Throughput {
        sizes: plan.sizes.clone(),
        summary: summarise(&plan.sizes, &runs).context("a measurement is missing")?,
        runs,
    })
}

async fn run(
    stage: &Stage,
    installation: &Installation,
    size: &Size,
    round: u32,
    kind: QueueKind,
    publisher: Publisher,
) -> Result<Run> {
    let messages = size.messages;
    let payload = vec![b'x'; size.payload_bytes as usize];
    let queue = Queue::declare(&stage.control, kind).await?;
    let measured = match publisher {
        Publisher::Bare { channels } => {
            bare::publish(stage, &queue, &payload, messages, channels).await?
        }
        Publisher::By(contender) => {
            let backlog = Backlog {
                payload: &payload,
                good: messages,
                faulty: None,
            };
            drain::drain_by(contender, stage, installation, &queue, &backlog)
                .await?
                .measured
        }
    };
    queue.verify(messages).await?;
    queue.delete().await?;
    let seconds = measured.elapsed.as_secs_f64();
    Ok(Run {
        payload_bytes: size.payload_bytes,
        round,
        queue: name_of(kind),
        publisher: publisher.name(),
        seconds,
        messages_a_second: f64::from(messages) / seconds,
        cpu_us_a_message: measured.cpu_us_a_message,
        peak_memory_bytes: measured.peak_memory_bytes,
    })
}
