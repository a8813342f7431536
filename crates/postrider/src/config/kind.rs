//! The kinds of values: how each is written in TOML and in a variable, what is possible, how it is shown.
//!
//! Every kind parses what was given into a type that needs no further check. Messages name a wrong
//! value only for kinds without secrets, and not even then when it looks like a URL: somebody may
//! have set the wrong variable.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use tracing_subscriber::EnvFilter;

/// A value as somebody wrote it. No `Debug`: it may be a secret.
#[derive(Clone, PartialEq)]
pub(crate) enum Given {
    /// A TOML string.
    Text(String),
    /// A TOML integer, as far as it fits.
    Integer(i128),
    /// A TOML float.
    Float(f64),
    /// A TOML boolean.
    Boolean(bool),
    /// A TOML array.
    List(Vec<Given>),
    /// Any other TOML value: its type's name.
    Other(&'static str),
    /// An environment variable or a default: text that says its type by its form.
    Variable(String),
}

impl Given {
    fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Variable(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::List(_) => "an array",
            Self::Other(name) => name,
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Variable(text) => Some(text),
            _ => None,
        }
    }
}

/// How a key's value is written, and what it becomes.
pub(crate) trait Kind {
    /// The validated type.
    type Value;

    /// Parses, or says what is wrong and what is possible.
    fn parse(&self, given: &Given) -> Result<Self::Value, String>;

    /// The value as `config show` prints it: TOML, without a secret.
    fn show(&self, value: &Self::Value) -> String;
}

fn expected(what: &str, given: &Given) -> String {
    format!("expected {what}, found {}", given.type_name())
}

/// A TOML string literal of the text.
pub(crate) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// The text of a wrong value for a message, unless it might hold a password or fill the screen.
fn echo(text: &str) -> String {
    if text.contains("://") || text.contains('@') || text.chars().count() > 60 {
        "this value".to_owned()
    } else {
        format!("`{}`", text.escape_debug())
    }
}

/// Text on one line, within a limit.
pub(crate) struct Text {
    pub(crate) max_bytes: usize,
    pub(crate) form: Form,
}

/// What a text may look like.
pub(crate) enum Form {
    /// Anything without control characters.
    Line,
    /// Printable ASCII: PostgreSQL replaces anything else in an `application_name`.
    Ascii,
    /// An unquoted SQL identifier in lower case, so that it means the same with and without quotes.
    Identifier,
}

impl Kind for Text {
    type Value = String;

    fn parse(&self, given: &Given) -> Result<String, String> {
        let text = given.text().ok_or_else(|| expected("a string", given))?;
        if text.is_empty() {
            return Err("must not be empty".to_owned());
        }
        if text.len() > self.max_bytes {
            return Err(format!(
                "has {} bytes, at most {} are possible",
                text.len(),
                self.max_bytes
            ));
        }
        match self.form {
            Form::Line if text.chars().any(char::is_control) => {
                Err("must not contain control characters or line breaks".to_owned())
            }
            Form::Ascii if !text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) => {
                Err("must be printable ASCII".to_owned())
            }
            Form::Identifier if !is_identifier(text) => Err(format!(
                "{} is not a plain SQL identifier: lower case letters, digits and `_`, not a digit first, \
                 and not beginning with `pg_`",
                echo(text)
            )),
            Form::Line | Form::Ascii | Form::Identifier => Ok(text.to_owned()),
        }
    }

    fn show(&self, value: &String) -> String {
        quoted(value)
    }
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && !text.starts_with("pg_")
}

/// A whole number within bounds.
pub(crate) struct Integer {
    pub(crate) min: u32,
    pub(crate) max: u32,
}

impl Kind for Integer {
    type Value = u32;

    fn parse(&self, given: &Given) -> Result<u32, String> {
        let Self { min, max } = *self;
        let number = match given {
            Given::Integer(number) => *number,
            Given::Variable(text) => text.parse().map_err(|_| {
                format!(
                    "{} is not a whole number: {min} to {max} is possible",
                    echo(text)
                )
            })?,
            Given::Text(_)
            | Given::Float(_)
            | Given::Boolean(_)
            | Given::List(_)
            | Given::Other(_) => {
                return Err(expected("an integer (without quotes)", given));
            }
        };
        u32::try_from(number)
            .ok()
            .filter(|n| (min..=max).contains(n))
            .ok_or_else(|| format!("{number} is out of range: {min} to {max} is possible"))
    }

    fn show(&self, value: &u32) -> String {
        value.to_string()
    }
}

/// A number within bounds, whole or not.
pub(crate) struct Number {
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Kind for Number {
    type Value = f64;

    fn parse(&self, given: &Given) -> Result<f64, String> {
        let Self { min, max } = *self;
        let (number, said) = match given {
            // Further from zero than any bound, where an f64 could not hold it exactly.
            Given::Integer(number) => (
                i32::try_from(*number).map_or(f64::INFINITY, f64::from),
                number.to_string(),
            ),
            Given::Float(number) => (*number, number.to_string()),
            Given::Variable(text) => {
                let number = text.trim().parse().map_err(|_| {
                    format!("{} is not a number: {min} to {max} is possible", echo(text))
                })?;
                (number, text.clone())
            }
            Given::Text(_) | Given::Boolean(_) | Given::List(_) | Given::Other(_) => {
                return Err(expected("a number (without quotes)", given));
            }
        };
        if (min..=max).contains(&number) {
            Ok(number)
        } else {
            Err(format!(
                "{} is out of range: {min} to {max} is possible",
                echo(&said)
            ))
        }
    }

    fn show(&self, value: &f64) -> String {
        // With its decimal point: without it TOML would take it for an integer.
        format!("{value:?}")
    }
}

/// On or off.
pub(crate) struct Switch;

impl Kind for Switch {
    type Value = bool;

    fn parse(&self, given: &Given) -> Result<bool, String> {
        match given {
            Given::Boolean(on) => Ok(*on),
            Given::Variable(text) => match text.as_str() {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(format!("{} is neither `true` nor `false`", echo(text))),
            },
            Given::Text(_)
            | Given::Integer(_)
            | Given::Float(_)
            | Given::List(_)
            | Given::Other(_) => Err(expected("true or false (without quotes)", given)),
        }
    }

    fn show(&self, value: &bool) -> String {
        value.to_string()
    }
}

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

/// A number of bytes.
pub(crate) struct Size {
    pub(crate) min: u64,
    pub(crate) max: u64,
}

impl Kind for Size {
    type Value = u64;

    fn parse(&self, given: &Given) -> Result<u64, String> {
        let (bytes, said) = match given {
            Given::Integer(number) => (
                u64::try_from(*number).map_err(|_| self.out_of_range(&number.to_string()))?,
                number.to_string(),
            ),
            Given::Text(text) | Given::Variable(text) => (
                text.trim()
                    .parse::<bytesize::ByteSize>()
                    .map_err(|_| {
                        format!(
                            "{} is not a size: write a number of bytes, \"8MiB\" or \"8MB\"",
                            echo(text)
                        )
                    })?
                    .as_u64(),
                text.clone(),
            ),
            Given::Float(_) | Given::Boolean(_) | Given::List(_) | Given::Other(_) => {
                return Err(expected(
                    "a size: a number of bytes, \"8MiB\" or \"8MB\"",
                    given,
                ));
            }
        };
        if (self.min..=self.max).contains(&bytes) {
            Ok(bytes)
        } else {
            Err(self.out_of_range(&said))
        }
    }

    fn show(&self, value: &u64) -> String {
        let shown = show_size(*value);
        if shown.bytes().all(|b| b.is_ascii_digit()) {
            shown
        } else {
            quoted(&shown)
        }
    }
}

impl Size {
    fn out_of_range(&self, said: &str) -> String {
        format!(
            "{} is out of range: {} to {} is possible",
            echo(said),
            in_bytes(self.min),
            in_bytes(self.max)
        )
    }
}

/// The size in the largest unit that divides it, so that nothing is rounded.
fn show_size(bytes: u64) -> String {
    for (unit, name) in [
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
        (1_000_000_000, "GB"),
        (1_000_000, "MB"),
        (1_000, "kB"),
    ] {
        if bytes != 0 && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    bytes.to_string()
}

fn in_bytes(bytes: u64) -> String {
    match bytes {
        1 => "1 byte".to_owned(),
        _ => show_size(bytes),
    }
}

/// One of a few words.
pub(crate) struct OneOf<T: 'static>(pub(crate) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Kind for OneOf<T> {
    type Value = T;

    fn parse(&self, given: &Given) -> Result<T, String> {
        let text = given.text().ok_or_else(|| expected("a string", given))?;
        self.0
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let names: Vec<_> = self.0.iter().map(|(name, _)| quoted(name)).collect();
                format!("{} is not one of {}", echo(text), names.join(", "))
            })
    }

    fn show(&self, value: &T) -> String {
        self.0
            .iter()
            .find(|(_, candidate)| candidate == value)
            .map_or_else(String::new, |(name, _)| quoted(name))
    }
}

/// An address to listen on, or `off`.
pub(crate) struct Listen;

impl Kind for Listen {
    type Value = Option<SocketAddr>;

    fn parse(&self, given: &Given) -> Result<Option<SocketAddr>, String> {
        let text = given
            .text()
            .ok_or_else(|| expected("an address such as \"127.0.0.1:7617\", or \"off\"", given))?;
        if text == "off" {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| {
            format!(
                "{} is not an IP address with a port, such as \"127.0.0.1:7617\", \"0.0.0.0:7617\" or \
                 \"[::]:7617\", nor \"off\"",
                echo(text)
            )
        })
    }

    fn show(&self, value: &Option<SocketAddr>) -> String {
        quoted(&value.map_or_else(|| "off".to_owned(), |address| address.to_string()))
    }
}

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

/// A secret: nothing of it is ever shown.
pub(crate) struct Secret;

impl Kind for Secret {
    type Value = SecretString;

    fn parse(&self, given: &Given) -> Result<SecretString, String> {
        let text = given.text().ok_or_else(|| expected("a string", given))?;
        if text.is_empty() {
            return Err("must not be empty".to_owned());
        }
        Ok(SecretString::from(text))
    }

    fn show(&self, _: &SecretString) -> String {
        HIDDEN.to_owned()
    }
}

/// What stands where a secret is.
pub(crate) const HIDDEN: &str = "(hidden)";

/// Several secrets: an array in the file, commas between them in a variable.
pub(crate) struct Secrets;

impl Kind for Secrets {
    type Value = Vec<SecretString>;

    fn parse(&self, given: &Given) -> Result<Vec<SecretString>, String> {
        let parts: Vec<&str> = match given {
            Given::List(items) => items
                .iter()
                .map(|item| {
                    item.text()
                        .ok_or_else(|| expected("an array of strings, and in it a string", item))
                })
                .collect::<Result<_, _>>()?,
            Given::Variable(text) => text.split(',').map(str::trim).collect(),
            Given::Text(_)
            | Given::Integer(_)
            | Given::Float(_)
            | Given::Boolean(_)
            | Given::Other(_) => {
                return Err(expected("an array of strings", given));
            }
        };
        if parts.is_empty() {
            return Err("must not be empty: name at least one".to_owned());
        }
        if parts.iter().any(|part| part.is_empty()) {
            return Err("must not hold an empty string".to_owned());
        }
        Ok(parts.into_iter().map(SecretString::from).collect())
    }

    fn show(&self, _: &Vec<SecretString>) -> String {
        HIDDEN.to_owned()
    }
}

/// The name of a file that holds a secret.
pub(crate) struct SecretPath;

impl Kind for SecretPath {
    type Value = PathBuf;

    fn parse(&self, given: &Given) -> Result<PathBuf, String> {
        let text = given.text().ok_or_else(|| expected("a string", given))?;
        if text.is_empty() {
            return Err("must not be empty: name a file".to_owned());
        }
        // Whoever mistakes this key for the secret itself must not find it in the log.
        if text.contains("://") {
            return Err("expected the name of a file that holds the URL, found a URL".to_owned());
        }
        Ok(PathBuf::from(text))
    }

    fn show(&self, value: &PathBuf) -> String {
        quoted(&value.display().to_string())
    }
}
