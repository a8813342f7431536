//! What is printed first and written to the file: the figures, and what they belong to.

use std::{fmt, fs};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    chart::Chart, cli::Cli, compare::Comparison, flat::Flat, latency::Latency, memory::Memory,
    ordered::Ordered, producers::Producers, relays::Relays, stage::Setting, sweep::Sweep,
    throughput::Throughput, took::Took, unroutable::Unroutable,
};

/// From here on something else on the machine spoils the figures.
const BUSY_CORES: f64 = 0.1;

/// The machine, the servers and the daemon of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Setup {
    pub(crate) daemon: String,
    pub(crate) daemon_settings: Vec<Setting>,
    pub(crate) debug_build: bool,
    pub(crate) postgresql: String,
    pub(crate) rabbitmq: String,
    pub(crate) cores: usize,
    pub(crate) processor: String,
    /// What others used of the machine before anything was started.
    pub(crate) busy_cores_before: f64,
    pub(crate) measured_at_unix_seconds: u64,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) setup: Setup,
    pub(crate) throughput: Option<Throughput>,
    pub(crate) latency: Option<Latency>,
    pub(crate) producers: Option<Producers>,
    pub(crate) flat: Option<Flat>,
    pub(crate) relays: Option<Relays>,
    pub(crate) memory: Option<Memory>,
    pub(crate) ordered: Option<Ordered>,
    pub(crate) comparison: Option<Comparison>,
    pub(crate) unroutable: Option<Unroutable>,
    pub(crate) sweep: Option<Sweep>,
    pub(crate) took: Took,
}

impl Report {
    pub(crate) fn new(setup: Setup, took: Took) -> Self {
        Self {
            setup,
            throughput: None,
            latency: None,
            producers: None,
            flat: None,
            relays: None,
            memory: None,
            ordered: None,
            comparison: None,
            unroutable: None,
            sweep: None,
            took,
        }
    }

    /// Notes how long the part took that has just ended, and writes and draws what there is so far, if the command line
    /// says where: an error in a later part loses nothing of the earlier ones.
    ///
    /// # Errors
    /// It cannot be written there.
    pub(crate) fn save(&mut self, cli: &Cli, part: &'static str) -> Result<()> {
        self.took.note(part);
        if let Some(file) = &cli.json {
            let mut text = serde_json::to_string_pretty(self)?;
            text.push('\n');
            fs::write(file, text).with_context(|| format!("could not write {}", file.display()))?;
        }
        if let Some(directory) = &cli.plots {
            for chart in self.charts() {
                chart.save(directory)?;
            }
        }
        Ok(())
    }

    fn charts(&self) -> Vec<Chart> {
        let mut charts = Vec::new();
        charts.extend(self.throughput.iter().map(Throughput::chart));
        charts.extend(self.latency.iter().map(Latency::chart));
        charts.extend(self.producers.iter().map(Producers::chart));
        charts.extend(self.flat.iter().map(Flat::chart));
        charts.extend(self.relays.iter().map(Relays::chart));
        charts.extend(self.memory.iter().map(Memory::chart));
        charts.extend(self.ordered.iter().flat_map(Ordered::charts));
        charts
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}, PostgreSQL {}, RabbitMQ {}, all on {} cores of {}",
            self.daemon, self.postgresql, self.rabbitmq, self.cores, self.processor
        )?;
        for setting in &self.daemon_settings {
            writeln!(f, "with {}={}", setting.name, setting.value)?;
        }
        if self.busy_cores_before > BUSY_CORES {
            writeln!(
                f,
                "\nThe machine is busy with something else ({:.1} cores): these figures say little.",
                self.busy_cores_before
            )?;
        }
        Ok(())
    }
}

/// A whole number with its thousands set apart.
pub(crate) fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in the largest unit that divides it.
pub(crate) fn sized(bytes: u32) -> String {
    if bytes > 0 && bytes.is_multiple_of(1024) {
        format!("{} KiB", bytes / 1024)
    } else {
        format!("{bytes} B")
    }
}

#[cfg(test)]
mod tests {
    use super::{grouped, sized};

    #[test]
    fn a_size_is_not_rounded() {
        assert_eq!(sized(256), "256 B");
        assert_eq!(sized(4_096), "4 KiB");
        assert_eq!(sized(4_097), "4097 B");
        assert_eq!(sized(0), "0 B");
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(grouped(0.0), "0");
        assert_eq!(grouped(999.4), "999");
        assert_eq!(grouped(1_000.0), "1,000");
        assert_eq!(grouped(1_234_567.0), "1,234,567");
    }
}
