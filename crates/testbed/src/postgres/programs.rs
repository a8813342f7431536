//! Where PostgreSQL is installed.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::place::Place;

/// The directory of `initdb` and `postgres`, as the place sees it. Where they are links, the one that they lead to: the other programs are
/// there.
pub(super) fn find_programs(place: &Place) -> Result<PathBuf> {
    let mut candidates = Vec::new();
    if *place == Place::Machine {
        candidates.extend(
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .map(|dir| behind_links(&dir).unwrap_or(dir))
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

fn behind_links(dir: &Path) -> Option<PathBuf> {
    let program = dir.join("postgres").canonicalize().ok()?;
    program.parent().map(Path::to_owned)
}
