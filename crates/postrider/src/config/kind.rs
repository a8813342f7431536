//! The kinds of values: how each is written in TOML and in a variable, what is possible, how it is shown.
//!
//! Every kind parses what was given into a type that needs no further check. Messages name a wrong
//! value only for kinds without secrets, and not even then when it looks like a URL: somebody may
//! have set the wrong variable.

mod choice;
mod file_path;
mod header_name;
mod listen;
mod log_filter;
mod number;
mod secret;
mod size;
mod text;
mod time;

pub(crate) use choice::{OneOf, Switch};
pub(crate) use file_path::FilePath;
pub(crate) use header_name::Header;
pub(crate) use listen::Listen;
pub(crate) use log_filter::LogFilter;
pub(crate) use number::{Integer, Number};
pub(crate) use secret::{Secret, SecretPath, Secrets};
pub(crate) use size::Size;
pub(crate) use text::{Form, Text};
pub(crate) use time::Time;

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
