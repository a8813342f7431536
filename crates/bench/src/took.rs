//! How long a run and its parts took, so that the short form can be held to its ten minutes.

use std::{
    fmt,
    time::{Duration, Instant},
};

use serde::Serialize;

/// One part.
#[derive(Clone, Debug, Serialize)]
struct Part {
    name: &'static str,
    seconds: f64,
}

/// The clock of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Took {
    #[serde(skip)]
    last: Instant,
    parts: Vec<Part>,
}

impl Took {
    /// Starts it.
    pub(crate) fn from(began: Instant) -> Self {
        Self {
            last: began,
            parts: Vec::new(),
        }
    }

    /// What came since the last part was `name`.
    pub(crate) fn note(&mut self, name: &'static str) {
        let now = Instant::now();
        self.parts.push(Part {
            name,
            seconds: (now - self.last).as_secs_f64(),
        });
        self.last = now;
    }
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: f64 = self.parts.iter().map(|part| part.seconds).sum();
        let parts: Vec<String> = self
            .parts
            .iter()
            .map(|part| format!("{} {:.0} s", part.name, part.seconds))
            .collect();
        write!(f, "All of it took {}: {}.", written(all), parts.join(", "))
    }
}

fn written(seconds: f64) -> String {
    let whole = Duration::from_secs_f64(seconds.round()).as_secs();
    match (whole / 60, whole % 60) {
        (0, seconds) => format!("{seconds} s"),
        (minutes, seconds) => format!("{minutes} min {seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Part, Took, written};

    #[test]
    fn the_whole_is_the_sum_of_its_parts() {
        let part = |name, seconds| Part { name, seconds };
        let took = Took {
            last: std::time::Instant::now(),
            parts: vec![part("servers", 5.4), part("throughput", 90.4)],
        };
        let text = took.to_string();
        assert_eq!(
            text,
            "All of it took 1 min 36 s: servers 5 s, throughput 90 s."
        );
    }

    #[test]
    fn less_than_a_minute_is_written_in_seconds_alone() {
        assert_eq!(written(59.4), "59 s");
        assert_eq!(written(59.6), "1 min 0 s");
    }
}
