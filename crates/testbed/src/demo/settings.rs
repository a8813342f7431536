//! What the environment says about the demo.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

const DEFAULT_SECONDS: u64 = 30;
const SECONDS: std::ops::RangeInclusive<u64> = 5..=3600;

/// The servers to run on.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Servers {
    /// Private ones, started for the demo.
    Private,
    /// Somebody's own. The URLs hold passwords: never shown, and so there is no Debug.
    Given { database: String, broker: String },
}

/// How to run the demo.
pub(crate) struct Settings {
    /// For how long the shop sells.
    pub(crate) length: Duration,
    pub(crate) servers: Servers,
    /// The daemon's program.
    pub(crate) binary: PathBuf,
}

impl Settings {
    /// Reads `DEMO_SECONDS`, `POSTRIDER_DATABASE_URL`, `POSTRIDER_BROKER_URL` and `POSTRIDER_BIN`.
    pub(crate) fn from_environment() -> Result<Self, String> {
        let program = std::env::current_exe()
            .map_err(|error| format!("could not find the demo's own program: {error}"))?;
        let beside = program.with_file_name("postrider");
        Self::from_variables(
            |name| std::env::var(name).ok().filter(|value| !value.is_empty()),
            &beside,
        )
    }

    fn from_variables(
        variable: impl Fn(&str) -> Option<String>,
        beside: &Path,
    ) -> Result<Self, String> {
        let seconds = match variable("DEMO_SECONDS") {
            None => DEFAULT_SECONDS,
            Some(text) => text
                .trim()
                .parse()
                .ok()
                .filter(|seconds| SECONDS.contains(seconds))
                .ok_or_else(|| {
                    format!(
                        "DEMO_SECONDS={text:?}: write a whole number of seconds from {} to {}",
                        SECONDS.start(),
                        SECONDS.end()
                    )
                })?,
        };
        let servers = match (
            variable("POSTRIDER_DATABASE_URL"),
            variable("POSTRIDER_BROKER_URL"),
        ) {
            (None, None) => Servers::Private,
            (Some(database), Some(broker)) => Servers::Given { database, broker },
            (database, _) => {
                let (there, missing) = if database.is_some() {
                    ("POSTRIDER_DATABASE_URL", "POSTRIDER_BROKER_URL")
                } else {
                    ("POSTRIDER_BROKER_URL", "POSTRIDER_DATABASE_URL")
                };
                return Err(format!(
                    "{there} is set and {missing} is not: set both to run on servers of your own, or neither for private ones"
                ));
            }
        };
        let wanted = variable("POSTRIDER_BIN").map_or_else(|| beside.to_owned(), PathBuf::from);
        let binary = wanted.canonicalize().map_err(|error| {
            format!(
                "no daemon at {} ({error}): run `make demo`, or `cargo build --release -p postrider`, or name one in POSTRIDER_BIN",
                wanted.display()
            )
        })?;
        Ok(Self {
            length: Duration::from_secs(seconds),
            servers,
            binary,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::from_variables(
            |name| {
                variables
                    .iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| (*value).to_owned())
            },
            Path::new("/bin/sh"),
        )
    }

    #[test]
    fn without_any_variable_it_runs_half_a_minute_on_private_servers() {
        let settings = read(&[]).ok().unwrap();
        assert_eq!(settings.length, Duration::from_secs(30));
        assert!(settings.servers == Servers::Private);
    }

    #[test]
    fn a_length_that_is_no_number_or_out_of_range_is_refused() {
        for text in ["4", "3601", "-5", "10s", "1.5"] {
            let problem = read(&[("DEMO_SECONDS", text)]).err().unwrap();
            assert!(problem.contains("from 5 to 3600"), "{problem}");
        }
        for text in ["5", "3600"] {
            assert!(read(&[("DEMO_SECONDS", text)]).is_ok());
        }
    }

    #[test]
    fn one_url_without_the_other_is_refused_and_never_shown() {
        for name in ["POSTRIDER_DATABASE_URL", "POSTRIDER_BROKER_URL"] {
            let problem = read(&[(name, "amqp://me:hunter2@mq")]).err().unwrap();
            assert!(problem.contains("set both"), "{problem}");
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_refused() {
        let problem = read(&[("POSTRIDER_BIN", "/no/such/program")])
            .err()
            .unwrap();
        assert!(problem.contains("/no/such/program"), "{problem}");
    }
}
