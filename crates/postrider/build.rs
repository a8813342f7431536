//! Tells the program which commit it was built from, for `--version` and the metric `postrider_build_info`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Set where there is no repository: a container build, a distribution's package.
const OVERRIDE: &str = "POSTRIDER_BUILD_REVISION";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let given = std::env::var(OVERRIDE)
        .ok()
        .map(|revision| revision.trim().to_owned())
        .filter(|revision| !revision.is_empty());
    let revision = given.or_else(revision_of_checkout);
    println!(
        "cargo::rustc-env={OVERRIDE}={}",
        revision.as_deref().unwrap_or("unknown")
    );
}

/// The commit of the repository this crate belongs to; not of another one around an unpacked archive.
fn revision_of_checkout() -> Option<String> {
    let crate_directory = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?);
    let workspace = crate_directory.parent()?.parent()?.canonicalize().ok()?;
    let root = PathBuf::from(git(&workspace, &["rev-parse", "--show-toplevel"])?);
    if root.canonicalize().ok()? != workspace {
        return None;
    }
    // HEAD moves on a checkout, a file under refs/heads on a commit. Cargo runs this again whenever
    // a path named here does not exist, so only those that do are named.
    for name in ["HEAD", "refs/heads"] {
        let path = workspace.join(git(&workspace, &["rev-parse", "--git-path", name])?);
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    git(&workspace, &["rev-parse", "--short=12", "HEAD"])
}

fn git(directory: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(directory)
        .args(arguments)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
