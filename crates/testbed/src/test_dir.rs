//! A temporary directory that is removed, with the processes recorded in it, when its owner ends.
//!
//! Three nets, because statics are never dropped and SIGKILL runs no code:
//! 1. [`TestDir`]'s drop;
//! 2. a guardian: a shell that waits for the end of a pipe held by the owner alone, then kills and removes;
//! 3. [`sweep`] at each start, for machines where the guardian was killed as well. A directory belongs to a dead
//!    owner when its lock is free: the kernel drops locks at death, also across process id namespaces.

use std::{
    collections::HashSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use std::os::unix::fs::PermissionsExt;

use crate::process;

const PREFIX: &str = "postrider-testbed.";
const GUARDIAN: &str = include_str!("guardian.sh");

/// Where testbed directories are made.
fn base() -> PathBuf {
    let base = std::env::temp_dir();
    // The path of a Unix socket may have 107 bytes.
    if base.as_os_str().len() > 50 {
        PathBuf::from("/tmp")
    } else {
        base
    }
}

/// A directory `postrider-testbed.PID.NUMBER`, PID being the owner's.
#[derive(Debug)]
pub struct TestDir {
    path: PathBuf,
    // Held for as long as the owner lives.
    _lock: File,
    guardian: Child,
}

impl TestDir {
    /// Makes a directory, after a [`sweep`].
    ///
    /// # Errors
    /// The directory could not be made or its guardian not be started.
    pub fn create() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        sweep();
        let path = loop {
            let name = format!(
                "{PREFIX}{}.{}",
                std::process::id(),
                NUMBER.fetch_add(1, Ordering::Relaxed)
            );
            let path = base().join(name);
            match fs::create_dir(&path) {
                Ok(()) => break path,
                // Left by an owner that had the same id.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("could not make {}", path.display()));
                }
            }
        };
        let lock = File::create(path.join("lock")).context("could not make the lock file")?;
        lock.try_lock()
            .context("could not lock a fresh directory")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        fs::create_dir(path.join("pids"))?;
        fs::create_dir(path.join("ports"))?;
        let mut guardian = Command::new("sh");
        guardian
            .args(["-c", GUARDIAN, "testbed-guardian"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let guardian = process::spawn(guardian)?;
        Ok(Self {
            path,
            _lock: lock,
            guardian,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes a process that shall not outlive the directory.
    ///
    /// # Errors
    /// The note could not be written.
    pub fn record_process(&self, pid: i32) -> Result<()> {
        let ticks = process::start_ticks(pid).unwrap_or_default();
        fs::write(
            self.path.join("pids").join(pid.to_string()),
            ticks.to_string(),
        )
        .context("could not note a process id")
    }

    /// Reserves a port for as long as the directory lives, so that no other test run takes it while its server is
    /// down between two starts.
    ///
    /// # Errors
    /// The note could not be written.
    pub fn reserve_port(&self, port: u16) -> Result<()> {
        fs::write(self.path.join("ports").join(port.to_string()), "")
            .context("could not note a port")
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        drop(self.guardian.stdin.take());
        let _ = self.guardian.wait();
    }
}

/// Kills and removes what owners that are gone have left behind.
pub fn sweep() {
    for dir in directories() {
        let Ok(lock) = File::open(dir.join("lock")) else {
            // Being made just now, or another user's, or half removed.
            if is_older_than(&dir, Duration::from_secs(60)) && !dir.join("lock").exists() {
                let _ = fs::remove_dir_all(&dir);
            }
            continue;
        };
        // Between the creation of the lock file and its locking it is free: a young directory is left alone.
        if lock.try_lock().is_err() || !is_older_than(&dir.join("lock"), Duration::from_secs(2)) {
            continue;
        }
        let _ = Command::new("sh")
            .args(["-c", GUARDIAN, "testbed-sweep"])
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// Ports that servers of live directories hold, running or not.
pub(crate) fn reserved_ports() -> HashSet<u16> {
    directories()
        .iter()
        .filter_map(|dir| fs::read_dir(dir.join("ports")).ok())
        .flat_map(|ports| ports.flatten())
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn directories() -> Vec<PathBuf> {
    fs::read_dir(base())
        .map(|entries| {
            entries
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
                .map(|entry| entry.path())
                .collect()
        })
        .unwrap_or_default()
}

fn is_older_than(path: &Path, age: Duration) -> bool {
    fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|made| SystemTime::now().duration_since(made).ok())
        .is_some_and(|since| since > age)
}
