//! The name of a file that is no secret.

use std::path::PathBuf;

use super::{Given, Kind, expected, quoted};

/// The name of a file, shown as it is.
pub(crate) struct FilePath;

impl Kind for FilePath {
    type Value = PathBuf;

    fn parse(&self, given: &Given) -> Result<PathBuf, String> {
        let text = given.text().ok_or_else(|| expected("a string", given))?;
        if text.is_empty() {
            return Err("must not be empty: name a file".to_owned());
        }
        // Somebody may have put the content where the name belongs: a key must not get into the log.
        if text.contains("://") || text.contains('\n') || text.contains("-----BEGIN") {
            return Err("expected the name of a file, found something else".to_owned());
        }
        Ok(PathBuf::from(text))
    }

    fn show(&self, value: &PathBuf) -> String {
        quoted(&value.display().to_string())
    }
}
