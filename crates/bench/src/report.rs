//! What is printed first and written to the file: the figures, and what they belong to.

use std::fmt;

use serde::Serialize;

use crate::{
    compare::Comparison, latency::Latency, stage::Setting, throughput::Throughput,
    unroutable::Unroutable,
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
    pub(crate) comparison: Option<Comparison>,
    pub(crate) unroutable: Option<Unroutable>,
}

impl Report {
    pub(crate) fn new(setup: Setup) -> Self {
        Self {
            setup,
            throughput: None,
            latency: None,
            comparison: None,
            unroutable: None,
        }
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

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(grouped(0.0), "0");
        assert_eq!(grouped(999.4), "999");
        assert_eq!(grouped(1_000.0), "1,000");
        assert_eq!(grouped(1_234_567.0), "1,234,567");
    }
}
