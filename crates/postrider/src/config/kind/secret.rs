//! Secrets, and the names of files that hold one.

use std::path::PathBuf;

use secrecy::SecretString;

use super::{Given, Kind, expected, quoted};

/// What stands where a secret is.
const HIDDEN: &str = "(hidden)";

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
