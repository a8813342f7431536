//! `config show`: what is in effect, and where each value comes from.

use std::io::{self, Write};

use crate::config::{Loaded, Setting, exchange_heading};

/// Comments start here when the values leave room for it.
const COMMENT_COLUMN: usize = 44;

/// Prints the effective configuration as TOML, each value with its origin in a comment. No secret is in it:
/// a password is shown as `***`.
///
/// # Errors
/// When writing failed.
pub(crate) fn config_show(loaded: &Loaded, out: &mut impl Write) -> io::Result<()> {
    match &loaded.file {
        Some(file) => writeln!(out, "# file: {}", file.display())?,
        None => writeln!(out, "# file: none")?,
    }
    for warning in &loaded.warnings {
        writeln!(out, "# warning: {warning}")?;
    }
    let mut section = None;
    for Setting {
        name,
        exchange,
        value,
        source,
    } in &loaded.settings
    {
        if section != Some((name.section, exchange)) {
            match exchange {
                None => writeln!(out, "\n[{}]", name.section)?,
                Some(exchange) => writeln!(out, "\n{}", exchange_heading(exchange))?,
            }
            section = Some((name.section, exchange));
        }
        let line = format!("{} = {value}", name.key);
        writeln!(out, "{line:<COMMENT_COLUMN$} # {source}")?;
    }
    Ok(())
}
