//! What is shown: plain lines on standard output.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use super::plan::Plan;

/// Standard output, with the time since the start. That nobody reads it any more stops nothing.
#[derive(Debug)]
pub(crate) struct Screen {
    started: Instant,
}

impl Screen {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
        }
    }

    /// From here on, times are counted anew.
    pub(crate) fn start(&mut self) {
        self.started = Instant::now();
    }

    pub(crate) fn line(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}");
        let _ = out.flush();
    }

    /// Something that happened now.
    pub(crate) fn event(&self, text: &str) {
        self.line(&format!("{} {text}", seconds(self.started.elapsed())));
    }

    pub(crate) fn plan(&self, plan: &Plan) {
        self.line(&format!(
            "seed {}, {} seconds, {} faults:",
            plan.seed,
            plan.seconds,
            plan.faults.len()
        ));
        for planned in &plan.faults {
            self.line(&format!(
                "{}  for {:>5.1} s  {}",
                seconds(planned.at()),
                planned.length().as_secs_f64(),
                planned.fault
            ));
        }
    }
}

fn seconds(time: Duration) -> String {
    format!("{:>8.1} s", time.as_secs_f64())
}
