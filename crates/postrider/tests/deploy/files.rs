//! Reading the repository's files.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A YAML file of one document, with anchors and merges resolved.
pub(crate) fn yaml<T: DeserializeOwned>(path: &str) -> T {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files of a directory whose names end so, sorted, as paths from the repository's root.
pub(crate) fn files(directory: &str, end: &str) -> Vec<String> {
    let mut files: Vec<String> = fs::read_dir(repository().join(directory))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(end))
        .map(|name| format!("{directory}/{name}"))
        .collect();
    files.sort();
    files
}

/// The texts of a JSON list.
pub(crate) fn texts(list: &Value) -> Vec<String> {
    list.as_array()
        .unwrap_or_else(|| panic!("{list} is no list"))
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}
