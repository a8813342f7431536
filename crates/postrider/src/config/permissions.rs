//! Who may read or change a file.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// What there is to say of a file with a secret that others than its owner and its group get at; `None` where they do not.
///
/// By the mode of the file alone, not by the directories above it. Credentials of systemd, and secrets as the manifests for
/// Kubernetes mount them, are closed to others.
pub(crate) fn open_to_everybody(path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    (mode & 0o007 != 0).then(|| {
        format!(
            "every user of this machine may read or change {} (mode {:03o})",
            path.display(),
            mode & 0o777
        )
    })
}
