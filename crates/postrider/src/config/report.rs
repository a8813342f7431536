//! What is wrong with a configuration, all of it at once, and never with a secret in it.
//!
//! A problem carries only text written here, names of keys, and values of keys that hold no secret:
//! no line of the file is ever echoed, because the line with the mistake may be the one with the
//! password. The place (file and line, or variable) is what leads the operator there.

use std::fmt;

use super::source::Source;

/// One thing that is wrong, where it is, and what can be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Where it was said, `None` when nobody said anything (a required key is missing).
    pub(crate) at: Option<Source>,
    /// Which key, written as people look for it: `[relay] workers`.
    pub(crate) key: Option<String>,
    /// What is wrong.
    pub(crate) message: String,
    /// Lines that say what would be right.
    pub(crate) hints: Vec<String>,
}

impl Problem {
    /// A problem at a place, about no key in particular.
    pub(crate) fn at(source: Source, message: impl Into<String>) -> Self {
        Self {
            at: Some(source),
            key: None,
            message: message.into(),
            hints: Vec::new(),
        }
    }

    /// A problem with what was said about a key.
    pub(crate) fn with_key(
        source: Source,
        key: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            at: Some(source),
            key: Some(key.into()),
            message: message.into(),
            hints: Vec::new(),
        }
    }

    /// Adds a line that says what would be right.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.at, &self.key) {
            (Some(at), Some(key)) => write!(f, "{at}: {key}: {}", self.message)?,
            (Some(at), None) => write!(f, "{at}: {}", self.message)?,
            (None, Some(key)) => write!(f, "{key}: {}", self.message)?,
            (None, None) => f.write_str(&self.message)?,
        }
        for hint in &self.hints {
            write!(f, "\n    {hint}")?;
        }
        Ok(())
    }
}

/// Every problem of one configuration; the program ends with 78 on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    /// The problems in the order in which people read: the file from top to bottom, then the rest.
    pub(crate) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| match &problem.at {
            Some(Source::File { line, .. }) => (0, *line),
            Some(_) => (1, 0),
            None => (2, 0),
        });
        problems.dedup();
        Self { problems }
    }

    /// The problems, in reading order.
    #[cfg(test)]
    pub(crate) fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => f.write_str("invalid configuration")?,
            n => write!(f, "invalid configuration: {n} problems")?,
        }
        for problem in &self.problems {
            write!(f, "\n{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
