//! `check-config`: whether `run` would accept the configuration.

use std::io::{self, Write};

use crate::config::{ConfigError, Loaded};

/// Says on `out` what was found to be right. Warnings go to `err`.
///
/// # Errors
/// The outer one when writing failed; the inner one holds every problem of the configuration.
pub(crate) fn check_config(
    loaded: Result<Loaded, ConfigError>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Result<(), ConfigError>> {
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => return Ok(Err(error)),
    };
    for warning in &loaded.warnings {
        writeln!(err, "warning: {warning}")?;
    }
    let what = match &loaded.file {
        Some(file) => file.display().to_string(),
        None => "the configuration in the environment (no file was read)".to_owned(),
    };
    match loaded.complete() {
        Ok(_) => writeln!(out, "{what} is valid").map(Ok),
        Err(error) => Ok(Err(error)),
    }
}
