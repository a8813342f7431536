//! Where RabbitMQ is installed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::place::Place;

/// The directory of `rabbitmq-server` and `rabbitmqctl`, as the place sees it. Not the wrappers of that name in the
/// path: Debian's insist on the user rabbitmq and its home.
pub(super) fn find_programs(place: &Place) -> Result<PathBuf> {
    let mut candidates = vec![PathBuf::from("/usr/lib/rabbitmq/bin")];
    for parent in ["/usr/lib/rabbitmq/lib", "/usr/local/lib/rabbitmq/lib"] {
        candidates.extend(
            place
                .versions(parent, "rabbitmq_server-")
                .into_iter()
                .map(|version| version.join("sbin")),
        );
    }
    candidates.push(PathBuf::from("/opt/rabbitmq/sbin"));
    if *place == Place::Machine {
        candidates.extend(
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .filter_map(|dir| fs::canonicalize(dir.join("rabbitmq-server")).ok())
                .filter_map(|script| script.parent().map(Path::to_owned)),
        );
    }
    candidates
        .into_iter()
        .find(|dir| {
            // Every real script lives beside the environment it sources.
            ["rabbitmq-server", "rabbitmqctl", "rabbitmq-env"]
                .iter()
                .all(|program| fs::symlink_metadata(place.outside(&dir.join(program))).is_ok())
        })
        .with_context(|| {
            format!("no rabbitmq server found in {place:?}: install the package rabbitmq-server")
        })
}
