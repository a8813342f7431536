//! What a package of the program holds, as far as it can be seen without building one (`make test-package` does).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod assets;
mod man;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn postrider(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_postrider"))
        .args(arguments)
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output
}

/// The manual pages of all commands and of the configuration file.
fn pages() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    // In one that is not there yet.
    let pages = directory.path().join("man");
    postrider(&["man", "--dir", pages.to_str().unwrap()]);
    directory
}

/// The names of the files in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
