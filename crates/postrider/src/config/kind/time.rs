//! Lengths of time.

use std::time::Duration;

use super::{Given, Kind, echo, expected, quoted};

/// A length of time, written with its unit.
pub(crate) struct Time {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
    /// Whether the protocol that takes it counts in whole seconds.
    pub(crate) whole_seconds: bool,
}

impl Kind for Time {
    type Value = Duration;

    fn parse(&self, given: &Given) -> Result<Duration, String> {
        let text = match given {
            Given::Text(text) | Given::Variable(text) => text.trim(),
            Given::Integer(number) => return Err(lacks_unit(&number.to_string())),
            Given::Float(number) => return Err(lacks_unit(&number.to_string())),
            Given::Boolean(_) | Given::List(_) | Given::Other(_) => {
                return Err(expected("a duration such as \"30s\"", given));
            }
        };
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(lacks_unit(text));
        }
        let time = humantime::parse_duration(text).map_err(|_| {
            format!(
                "{} is not a duration: write a number with its unit, such as \"250ms\", \"30s\" or \"5min\"",
                echo(text)
            )
        })?;
        if !(self.min..=self.max).contains(&time) {
            return Err(format!(
                "{} is out of range: \"{}\" to \"{}\" is possible",
                echo(text),
                show_time(self.min),
                show_time(self.max)
            ));
        }
        if self.whole_seconds && time.subsec_nanos() != 0 {
            return Err(format!("{} is not a whole number of seconds", echo(text)));
        }
        Ok(time)
    }

    fn show(&self, value: &Duration) -> String {
        quoted(&show_time(*value))
    }
}

fn lacks_unit(number: &str) -> String {
    format!(
        "a duration is a string with its unit, and a bare number has none: write \"{number}s\" or \"{number}ms\""
    )
}

fn show_time(time: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    // As people write them: humantime's months have 30.44 days, so that 60 days would become a month
    // and a broken rest, and its `m` is for minutes.
    match time.as_secs() {
        days if time.subsec_nanos() == 0 && days > DAY && days.is_multiple_of(DAY) => {
            format!("{}days", days / DAY)
        }
        minutes
            if time.subsec_nanos() == 0
                && minutes < HOUR
                && minutes > 0
                && minutes.is_multiple_of(MINUTE) =>
        {
            format!("{}min", minutes / MINUTE)
        }
        _ => humantime::format_duration(time)
            .to_string()
            .replace(' ', ""),
    }
}
