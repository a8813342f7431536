//! The header table of a message.

use serde_json::{Map, Value};

/// A JSON object, kept as its text until it is published.
///
/// Taken apart, headers can be many times as large as their text: 64 KiB of `[1, 1, …]` become about
/// 1 MiB. So a batch holds texts, and one message at a time is taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Box<str>);

impl Headers {
    /// The headers with this text, which shall be a JSON object.
    #[must_use]
    pub fn from_json(text: &str) -> Self {
        match text {
            "{}" => Self::default(),
            text => Self(text.into()),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their text, a JSON object: for who looks for one entry and leaves the others alone.
    #[must_use]
    pub fn as_json(&self) -> &str {
        if self.is_empty() { "{}" } else { &self.0 }
    }

    /// The entries, with their JSON types.
    ///
    /// # Errors
    /// When the text is no JSON object, or nested too deeply to be read safely.
    pub fn parse(&self) -> Result<Map<String, Value>, serde_json::Error> {
        if self.is_empty() {
            return Ok(Map::new());
        }
        serde_json::from_str(&self.0)
    }
}

impl From<&Map<String, Value>> for Headers {
    fn from(entries: &Map<String, Value>) -> Self {
        if entries.is_empty() {
            return Self::default();
        }
        Self(Value::Object(entries.clone()).to_string().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_were_and_an_empty_object_is_none() {
        assert!(Headers::from_json("{}").is_empty());
        assert!(Headers::default().parse().unwrap().is_empty());
        assert_eq!(Headers::default().as_json(), "{}");
        let headers = Headers::from_json(r#"{"a": [1, 2.0, null]}"#);
        assert!(!headers.is_empty());
        let entries = headers.parse().unwrap();
        assert_eq!(entries["a"][1], Value::from(2.0));
        assert_eq!(Headers::from(&entries).parse().unwrap(), entries);
    }

    #[test]
    fn what_is_no_object_is_an_error_and_not_a_panic() {
        assert!(Headers::from_json("[1]").parse().is_err());
        assert!(Headers::from_json(&"[".repeat(100_000)).parse().is_err());
    }
}
