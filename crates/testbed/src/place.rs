//! Where the servers' programs come from: this machine's packages, or another Debian root directory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// In another root directory: a mount namespace of its own with /proc, /dev and the server's directory bound into
/// it. Everything is exec'ed, so that the process id stays that of the child we started.
const ENTER_ROOT: &str = r#"
set -e
root=$1 dir=$2
shift 2
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
case $dir in /tmp/*) mount -t tmpfs tmpfs "$root/tmp" ;; esac
mkdir -p "$root$dir"
mount --bind "$dir" "$root$dir"
exec chroot "$root" "$@"
"#;

/// A place that servers are run from.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub enum Place {
    /// The packages of this machine.
    Machine,
    /// A Debian root directory, entered by chroot (root only).
    Root(PathBuf),
}

/// The numeric ids to run a server as.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Place {
    /// `Root(DIR)` when the environment has `TESTBED_ROOT=DIR`, else this machine.
    ///
    /// # Errors
    /// `TESTBED_ROOT` names no directory, or we are not root.
    pub fn from_environment() -> Result<Self> {
        match std::env::var_os("TESTBED_ROOT").filter(|dir| !dir.is_empty()) {
            None => Ok(Self::Machine),
            Some(dir) => {
                let dir = fs::canonicalize(&dir)
                    .with_context(|| format!("TESTBED_ROOT={} is no directory", dir.display()))?;
                if !is_root() {
                    bail!("TESTBED_ROOT needs root: only root may mount and chroot");
                }
                Ok(Self::Root(dir))
            }
        }
    }

    /// The path as this process sees it, of a path inside the place.
    pub fn outside(&self, inside: &Path) -> PathBuf {
        match self {
            Self::Machine => inside.to_owned(),
            Self::Root(root) => root.join(inside.strip_prefix("/").unwrap_or(inside)),
        }
    }

    /// A command that runs `program` in this place with an empty environment but PATH, HOME (= `dir`) and a UTF-8
    /// locale, in the directory `dir`, and that the kernel kills when we die.
    pub fn command(&self, program: &Path, user: Option<User>, dir: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Self::Root(root) = self {
            command
                .args(["--", "unshare", "--mount", "--propagation", "private", "--"])
                .args(["sh", "-c", ENTER_ROOT, "testbed-enter-root"])
                .arg(root)
                .arg(dir)
                .args(["setpriv", "--pdeathsig", "KILL"]);
        }
        if let Some(user) = user {
            // A change of user clears the parent-death signal: setpriv sets it after that.
            command
                .arg(format!("--reuid={}", user.uid))
                .arg(format!("--regid={}", user.gid))
                .arg("--clear-groups");
        }
        command.arg("--").arg(program);
        let mut path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned();
        if let (Self::Machine, Ok(own)) = (self, std::env::var("PATH")) {
            path = format!("{own}:{path}");
        }
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", dir)
            .env("LANG", "C.UTF-8")
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .current_dir(dir);
        command
    }

    /// The directories matching `parent`/`prefix`*, by the number after the prefix, newest first.
    pub(crate) fn versions(&self, parent: &str, prefix: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.outside(Path::new(parent))) else {
            return Vec::new();
        };
        let mut found: Vec<(Vec<u32>, PathBuf)> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let version = name
                    .strip_prefix(prefix)?
                    .split('.')
                    .map(|part| part.parse().ok())
                    .collect::<Option<Vec<u32>>>()?;
                Some((version, Path::new(parent).join(name)))
            })
            .collect();
        found.sort();
        found.into_iter().rev().map(|(_, path)| path).collect()
    }

    /// The first of `names` in the place's user database.
    pub(crate) fn user(&self, names: &[&str]) -> Result<User> {
        let file = self.outside(Path::new("/etc/passwd"));
        let users = fs::read_to_string(&file)
            .with_context(|| format!("could not read {}", file.display()))?;
        for name in names {
            for line in users.lines() {
                let fields: Vec<&str> = line.split(':').collect();
                if let [user, _, uid, gid, ..] = fields[..]
                    && user == *name
                {
                    return Ok(User {
                        uid: uid.parse()?,
                        gid: gid.parse()?,
                    });
                }
            }
        }
        bail!("none of the users {names:?} is in {}", file.display())
    }
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
