//! The name of the schema that holds the outbox.

use std::fmt;

use crate::error::Error;

/// The name of the schema that holds the outbox: lower-case letters, digits and underscores, not
/// starting with a digit, at most 48 bytes; `outbox` unless configured.
///
/// Only such names are accepted, so that the name can stand in SQL without quotes. 48 bytes, because
/// the wake-up channel is named after the schema and PostgreSQL ends names at 63.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Schema(String);

impl Schema {
    /// Checks the name.
    ///
    /// # Errors
    /// [`Error::SchemaName`] when it is not such a name.
    pub fn new(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        let starts_well = name
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let all_allowed = name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if starts_well && all_allowed && name.len() <= 48 && !name.starts_with("pg_") {
            Ok(Self(name))
        } else {
            Err(Error::SchemaName(name))
        }
    }

    /// The name, safe to stand unquoted in SQL once qualified: `{schema}.messages`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The channel the insert trigger notifies on.
    #[must_use]
    pub fn wakeup_channel(&self) -> String {
        format!("postrider_{}", self.0)
    }
}

impl Default for Schema {
    fn default() -> Self {
        Self("outbox".to_owned())
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
