//! What is logged.

use tracing_subscriber::EnvFilter;

use super::{Given, Kind, echo, expected, quoted};

/// Directives of tracing's `EnvFilter`, such as `info` or `info,postrider_relay=debug`.
pub(crate) struct LogFilter;

impl Kind for LogFilter {
    type Value = String;

    fn parse(&self, given: &Given) -> Result<String, String> {
        let text = given.text().ok_or_else(|| expected("a string", given))?;
        let wrong = || {
            format!(
                "{} is not a log filter: write off, error, warn, info, debug or trace, optionally followed by \
                 exceptions, such as \"info,postrider_relay=debug\"",
                echo(text)
            )
        };
        // EnvFilter takes a misspelt level for the name of a module and then logs nothing at all.
        let misspelt_level = text.split(',').any(|directive| {
            !directive.contains(['=', '['])
                && !["off", "error", "warn", "info", "debug", "trace"]
                    .contains(&directive.trim().to_ascii_lowercase().as_str())
        });
        if misspelt_level || EnvFilter::builder().parse(text).is_err() {
            return Err(wrong());
        }
        Ok(text.to_owned())
    }

    fn show(&self, value: &String) -> String {
        quoted(value)
    }
}
