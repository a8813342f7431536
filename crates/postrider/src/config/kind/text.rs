//! Text on one line.

use super::{Given, Kind, echo, expected, quoted};

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
