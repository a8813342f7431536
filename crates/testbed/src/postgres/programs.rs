//! Where PostgreSQL is installed.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::place::Place;

/// The directory of `initdb` and `postgres`, as the place sees it.
pub(super) fn find_programs(place: &Place) -> Result<PathBuf> {
    let mut candidates = Vec::new();
    if *place == Place::Machine {
        candidates.extend(
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .collect::<Vec<_>>(),
        );
        if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
            candidates.push(PathBuf::from(
                String::from_utf8_lossy(&output.stdout).trim(),
            ));
        }
    }
    candidates.extend(
        place
            .versions("/usr/lib/postgresql", "")
            .into_iter()
            .map(|version| version.join("bin")),
    );
    candidates
        .into_iter()
        .find(|dir| {
            ["initdb", "postgres"]
                .iter()
                .all(|program| place.outside(&dir.join(program)).exists())
        })
        .with_context(|| {
            format!("no postgresql server found in {place:?}: install the package postgresql")
        })
}
