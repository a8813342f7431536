//! Peak memory against backlog and payload.
//!
//! What the daemon holds is bounded by its settings: neither more messages nor larger ones may show in its memory,
//! but for the part that grows from a row to a full batch.

use std::{fmt, process::Command};

use anyhow::{Context, Result, ensure};
use postrider_testbed::QueueKind;
use serde::Serialize;

use crate::{
    chart::{Chart, Scale, Series},
    daemon,
    drain::{self, Backlog},
    queue::Queue,
    report::grouped,
    stage::Stage,
    statistics::Spread,
};

const KIB: u32 = 1_024;
const MIB: u32 = 1_024 * KIB;

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryPlan {
    pub(crate) rounds: u32,
    pub(crate) short: bool,
}

/// What lies in the outbox when the daemon begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Load {
    messages: u32,
    payload_bytes: u32,
}

const fn load(messages: u32, payload_bytes: u32) -> Load {
    Load {
        messages,
        payload_bytes,
    }
}

/// The first is what the others are compared with; the last three hold as many bytes each.
const FULL: [Load; 5] = [
    load(10_000, 256),
    load(100_000, 256),
    load(1_000_000, 256),
    load(1_000_000 / 256, 64 * KIB),
    load(1_000_000 / 4_096, MIB),
];

const SHORT: [Load; 4] = [
    load(10_000, 256),
    load(200_000, 256),
    load(200_000 / 256, 64 * KIB),
    load(200_000 / 4_096, MIB),
];

impl MemoryPlan {
    fn loads(self) -> &'static [Load] {
        if self.short { &SHORT } else { &FULL }
    }
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
struct Run {
    round: u32,
    load: Load,
    peak_memory_bytes: u64,
}

/// What a load gave.
#[derive(Clone, Debug, Serialize)]
struct Line {
    load: Load,
    peak_memory_bytes: Spread,
    /// Of the peak with the first load in the same round.
    ratio: Spread,
}

/// What the daemon's settings allow to be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Bound {
    workers: u64,
    batch_bytes: u64,
    max_message_bytes: u64,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Memory {
    rounds: u32,
    bound: Bound,
    /// Of the daemon that has seen no message.
    idle_peak_memory_bytes: u64,
    summary: Vec<Line>,
    runs: Vec<Run>,
}

/// Drains each load, round by round, by a daemon of its own.
///
/// # Errors
/// A measurement fails, or a queue did not get each message once.
pub(crate) async fn measure(stage: &Stage, plan: MemoryPlan) -> Result<Memory> {
    println!("Measuring the peak memory.\n");
    let bound = Bound::of(stage)?;
    let idle_peak_memory_bytes = idle(stage).await?;
    let mut runs = Vec::new();
    for round in 1..=plan.rounds {
        for load in plan.loads() {
            let peak_memory_bytes = measure_one(stage, *load)
                .await
                .with_context(|| load.to_string())?;
            println!(
                "round {round} of {}: {:<30} {:>6.1} MiB",
                plan.rounds,
                load.to_string(),
                mib(peak_memory_bytes as f64)
            );
            runs.push(Run {
                round,
                load: *load,
                peak_memory_bytes,
            });
        }
    }
    println!();
    Ok(Memory {
        rounds: plan.rounds,
        bound,
        idle_peak_memory_bytes,
        summary: summarise(plan.loads(), &runs),
        runs,
    })
}

async fn idle(stage: &Stage) -> Result<u64> {
    let installation = stage.install(&stage.binary).await?;
    let daemon = daemon::start(stage, &installation).await?;
    let peak = daemon.peak_rss_bytes()?;
    daemon::stop(daemon).await?;
    stage.remove(installation).await?;
    Ok(peak)
}

async fn measure_one(stage: &Stage, load: Load) -> Result<u64> {
    let payload = vec![b'x'; load.payload_bytes as usize];
    let installation = stage.install(&stage.binary).await?;
    let queue = Queue::declare(&stage.control, QueueKind::Quorum).await?;
    let backlog = Backlog {
        payload: &payload,
        good: load.messages,
        faulty: None,
    };
    let drained = drain::drain(stage, &installation, &queue, &backlog).await?;
    queue.verify(load.messages).await?;
    queue.delete().await?;
    stage.remove(installation).await?;
    drained
        .measured
        .peak_memory_bytes
        .context("the daemon's peak memory was not taken")
}

impl Bound {
    /// What the daemon itself says that it would run with.
    ///
    /// # Errors
    /// It does not say, or not so that it is understood.
    fn of(stage: &Stage) -> Result<Self> {
        let settings = stage.settings.iter();
        let output = Command::new(&stage.binary)
            // An empty file, so that the machine's own configuration is not read.
            .args(["--config", "/dev/null", "config", "show"])
            .env("POSTRIDER_DATABASE_URL", "postgres://localhost")
            .env("POSTRIDER_BROKER_URL", "amqp://localhost")
            .envs(settings.map(|setting| (&setting.name, &setting.value)))
            .output()
            .with_context(|| format!("could not run {}", stage.binary.display()))?;
        ensure!(
            output.status.success(),
            "`postrider config show` failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self::read(&String::from_utf8_lossy(&output.stdout))
    }

    fn read(shown: &str) -> Result<Self> {
        let value = |key: &str| {
            shown
                .lines()
                .filter_map(|line| line.split_once(" = "))
                .find(|(name, _)| *name == key)
                .and_then(|(_, rest)| bytes(rest.split('#').next()?.trim().trim_matches('"')))
                .with_context(|| format!("`postrider config show` says nothing of {key}"))
        };
        Ok(Self {
            workers: value("workers")?,
            batch_bytes: value("batch_bytes")?,
            max_message_bytes: value("max_message_bytes")?,
        })
    }

    /// Payloads and headers in memory at once, as the configuration's own text promises it; nothing that is measured
    /// here is returned by the broker.
    fn in_bytes(self) -> u64 {
        self.workers * (self.batch_bytes + self.max_message_bytes)
    }
}

/// A size as the configuration writes it.
fn bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 6] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
    ];
    UNITS
        .iter()
        .find_map(|(unit, size)| Some(text.strip_suffix(unit)?.trim().parse::<u64>().ok()? * size))
        .or_else(|| text.parse().ok())
}

fn summarise(loads: &[Load], runs: &[Run]) -> Vec<Line> {
    let first = |round: u32| {
        let of_round = runs.iter().find(|run| run.round == round);
        of_round.map(|run| run.peak_memory_bytes as f64)
    };
    let line = |load: &Load| {
        let own = || runs.iter().filter(|run| run.load == *load);
        Some(Line {
            load: *load,
            peak_memory_bytes: Spread::of(own().map(|run| run.peak_memory_bytes as f64))?,
            ratio: Spread::of(
                own().filter_map(|run| Some(run.peak_memory_bytes as f64 / first(run.round)?)),
            )?,
        })
    };
    loads.iter().filter_map(line).collect()
}

impl Memory {
    /// The peaks.
    pub(crate) fn chart(&self) -> Chart {
        let in_mib = |bytes: Spread| Spread::of([bytes.min, bytes.median, bytes.max].map(mib));
        let peaks = self.summary.iter().map(|line| line.peak_memory_bytes);
        Chart {
            name: "memory",
            title: "Peak memory of the daemon, by what it drained".to_owned(),
            unit: "MiB".to_owned(),
            scale: Scale::Linear,
            labels: self
                .summary
                .iter()
                .map(|line| line.load.to_string())
                .collect(),
            series: vec![Series {
                name: "postrider".to_owned(),
                values: peaks.map(in_mib).collect(),
            }],
        }
    }
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(MIB)
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = match self.payload_bytes {
            bytes if bytes % MIB == 0 => format!("{} MiB", bytes / MIB),
            bytes if bytes % KIB == 0 => format!("{} KiB", bytes / KIB),
            bytes => format!("{bytes} bytes"),
        };
        write!(f, "{} of {size}", grouped(f64::from(self.messages)))
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Memory: the daemon's peak resident size after draining a backlog to a quorum queue, medians of {} interleaved \
             rounds (lowest to highest)\n",
            self.rounds
        )?;
        writeln!(
            f,
            "| backlog | in all, MiB | peak memory, MiB | of the first |"
        )?;
        writeln!(f, "|---|---:|---:|---:|")?;
        for line in &self.summary {
            writeln!(
                f,
                "| {} | {:.0} | {} | {} |",
                line.load,
                mib(f64::from(line.load.messages) * f64::from(line.load.payload_bytes)),
                line.peak_memory_bytes
                    .written(|bytes| format!("{:.1}", mib(bytes))),
                line.ratio.written(|ratio| format!("{ratio:.2}"))
            )?;
        }
        writeln!(
            f,
            "\nIt began with {:.1} MiB; the settings bound what is in flight to {} workers of {:.1} + {:.1} MiB, {:.1} MiB \
             in all.",
            mib(self.idle_peak_memory_bytes as f64),
            self.bound.workers,
            mib(self.bound.batch_bytes as f64),
            mib(self.bound.max_message_bytes as f64),
            mib(self.bound.in_bytes() as f64)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Bound, FULL, KIB, MIB, Run, SHORT, load, summarise};

    #[test]
    fn the_loads_that_are_compared_by_payload_hold_as_many_bytes() {
        for loads in [&FULL[2..], &SHORT[1..]] {
            let bytes =
                |load: &super::Load| f64::from(load.messages) * f64::from(load.payload_bytes);
            let most = loads.iter().map(bytes).fold(0.0, f64::max);
            assert!(
                loads.iter().all(|load| bytes(load) > 0.97 * most),
                "{loads:?}"
            );
        }
    }

    #[test]
    fn the_bound_is_read_from_what_the_daemon_shows() {
        let shown = "[relay]\nworkers = 2      # default\nbatch_bytes = \"4MiB\"    # default\n\
                     max_message_bytes = 17 # POSTRIDER_RELAY_MAX_MESSAGE_BYTES\n";
        let bound = Bound::read(shown).unwrap();
        assert_eq!(bound.in_bytes(), 2 * (4 * 1_048_576 + 17));
        assert!(Bound::read("workers = 2 # default\n").is_err());
    }

    #[test]
    fn loads_are_compared_with_the_first_of_their_round() {
        let run = |round, load, peak_memory_bytes| Run {
            round,
            load,
            peak_memory_bytes,
        };
        let [small, large] = [load(1, 256), load(2, 256)];
        let runs = [
            run(1, small, 10),
            run(1, large, 20),
            run(2, small, 100),
            run(2, large, 200),
        ];
        let lines = summarise(&[small, large], &runs);
        assert_eq!(lines[0].ratio.max, 1.0);
        assert_eq!((lines[1].ratio.min, lines[1].ratio.max), (2.0, 2.0));
    }

    #[test]
    fn a_payload_is_written_in_its_largest_unit() {
        assert_eq!(load(1_000, 64 * KIB).to_string(), "1,000 of 64 KiB");
        assert_eq!(load(1, MIB).to_string(), "1 of 1 MiB");
        assert_eq!(load(1, 256).to_string(), "1 of 256 bytes");
    }
}
