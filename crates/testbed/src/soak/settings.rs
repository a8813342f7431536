//! What the environment says about the soak.

use std::{path::PathBuf, time::Duration};

const DEFAULT_SECONDS: u64 = 120;
const SECONDS: std::ops::RangeInclusive<u64> = 20..=86_400;

/// How to run the soak.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) seconds: u64,
    /// The relays' program.
    pub(crate) binary: PathBuf,
    /// Print the plan and do nothing.
    pub(crate) plan_only: bool,
}

impl Settings {
    /// Reads `SOAK_SECONDS`, `SOAK_SEED` and `POSTRIDER_BIN`, and the argument `--plan`.
    pub(crate) fn from_environment() -> Result<Self, String> {
        let program = std::env::current_exe()
            .map_err(|error| format!("could not find the soak's own program: {error}"))?;
        let wanted = std::env::var_os("POSTRIDER_BIN")
            .filter(|path| !path.is_empty())
            .map_or_else(|| program.with_file_name("postrider"), PathBuf::from);
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let read = Self::from_variables(
            |name| std::env::var(name).ok().filter(|value| !value.is_empty()),
            &arguments,
            wanted,
        )?;
        if read.plan_only {
            return Ok(read);
        }
        let binary = read.binary.canonicalize().map_err(|error| {
            format!(
                "no daemon at {} ({error}): run `make soak`, or name one in POSTRIDER_BIN",
                read.binary.display()
            )
        })?;
        Ok(Self { binary, ..read })
    }

    fn from_variables(
        variable: impl Fn(&str) -> Option<String>,
        arguments: &[String],
        binary: PathBuf,
    ) -> Result<Self, String> {
        let plan_only = match arguments {
            [] => false,
            [only] if only == "--plan" => true,
            _ => return Err("the only argument there is: --plan, to print the plan".into()),
        };
        let number = |name: &str, wanted: &str| match variable(name) {
            None => Ok(None),
            Some(text) => match text.trim().parse::<u64>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(format!("{name}={text:?}: write {wanted}")),
            },
        };
        let range = format!(
            "a whole number of seconds from {} to {}",
            SECONDS.start(),
            SECONDS.end()
        );
        let seconds = number("SOAK_SECONDS", &range)?.unwrap_or(DEFAULT_SECONDS);
        if !SECONDS.contains(&seconds) {
            return Err(format!("SOAK_SECONDS={seconds}: write {range}"));
        }
        // Short enough to be typed.
        let seed = number("SOAK_SEED", "a whole number")?
            .unwrap_or_else(|| u64::from(rand::random::<u32>()));
        Ok(Self {
            seed,
            seconds,
            binary,
            plan_only,
        })
    }

    pub(crate) fn length(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)], arguments: &[&str]) -> Result<Settings, String> {
        Settings::from_variables(
            |name| {
                variables
                    .iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| (*value).to_owned())
            },
            &arguments
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            "/bin/sh".into(),
        )
    }

    #[test]
    fn seed_and_length_are_taken_as_they_are_given() {
        let settings = read(&[("SOAK_SECONDS", "60"), ("SOAK_SEED", "7")], &["--plan"]).unwrap();
        assert_eq!((settings.seed, settings.seconds), (7, 60));
        assert!(settings.plan_only);
    }

    #[test]
    fn what_is_no_number_or_out_of_range_is_refused() {
        for (name, text) in [
            ("SOAK_SECONDS", "19"),
            ("SOAK_SECONDS", "1m"),
            ("SOAK_SEED", "x"),
            ("SOAK_SEED", "-1"),
        ] {
            let problem = read(&[(name, text)], &[]).unwrap_err();
            assert!(problem.contains(name), "{problem}");
        }
        assert!(read(&[], &["--help"]).is_err());
    }
}
