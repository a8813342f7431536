//! Child processes that cannot outlive this one, and signals to whole trees of them.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, OnceLock, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

type Order = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts `command` from a thread that lives as long as the process, in a process group of its own.
///
/// The kernel sends the parent-death signal when the *thread* that forked ends: a test's own thread ends with the
/// test, a server's must not.
///
/// # Errors
/// The program could not be started.
pub fn spawn(mut command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::Builder::new()
            .name("testbed-spawner".into())
            .spawn(move || {
                for (mut command, reply) in inbox {
                    let _ = reply.send(command.spawn());
                }
            })
            .expect("start the spawner thread");
        orders
    });
    // A terminal's Ctrl-C goes to the foreground group: the servers must stay until their owner has ended.
    command.process_group(0);
    let shown = format!("{command:?}");
    let (reply, answer) = mpsc::channel();
    spawner
        .send((command, reply))
        .map_err(|_| anyhow!("the spawner thread is gone"))?;
    answer
        .recv()
        .context("the spawner thread is gone")?
        .with_context(|| format!("could not start {shown}"))
}

/// A child process, killed with everything below it on drop.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    child: Mutex<Child>,
}

impl Process {
    /// Starts `command` as [`spawn`] does.
    ///
    /// # Errors
    /// The program could not be started.
    pub fn start(command: Command) -> Result<Self> {
        let child = spawn(command)?;
        Ok(Self::from(child))
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its exit status, once it has ended.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().ok().flatten()
    }

    /// Whether it has not ended. A stopped (paused) process is alive.
    pub fn is_alive(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Sends one signal to this process alone.
    ///
    /// # Errors
    /// The process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Asked first: an id that was reaped may belong to someone else by now.
        if !self.is_alive() {
            bail!("process {} has ended", self.pid);
        }
        signal_pid(self.pid, signal)
    }

    /// Sends SIGSTOP to this process and everything below it.
    ///
    /// # Errors
    /// The process has ended.
    pub fn pause(&self) -> Result<()> {
        // Parents first, so that none can fork a child that is missed.
        self.signal(Signal::STOP)?;
        stop_below(self.pid);
        Ok(())
    }

    /// Sends SIGCONT to this process and everything below it.
    ///
    /// # Errors
    /// The process has ended.
    pub fn resume(&self) -> Result<()> {
        for pid in descendants(self.pid).into_iter().rev() {
            let _ = signal_pid(pid, Signal::CONT);
        }
        self.signal(Signal::CONT)
    }

    /// Kills this process and everything below it with SIGKILL and waits until all of them are gone.
    ///
    /// # Errors
    /// A descendant was still there after ten seconds.
    pub async fn kill(&self) -> Result<()> {
        let killed = self.kill_now();
        crate::wait_until(
            Duration::from_secs(10),
            "killed processes to be gone",
            async || !killed.iter().any(|pid| is_running(*pid)),
        )
        .await
    }

    fn kill_now(&self) -> Vec<i32> {
        if !self.is_alive() {
            return Vec::new();
        }
        let _ = self.pause();
        let below = descendants(self.pid);
        let _ = signal_pid(self.pid, Signal::KILL);
        for pid in &below {
            let _ = signal_pid(*pid, Signal::KILL);
        }
        let _ = self.child.lock().unwrap().wait();
        below
    }

    /// Waits until the process has ended by itself.
    ///
    /// # Errors
    /// It was still running after `deadline`.
    pub async fn wait_exit(&self, deadline: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.exit_status() {
                return Ok(status);
            }
            if Instant::now() >= end {
                bail!("process {} did not end within {deadline:?}", self.pid);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl From<Child> for Process {
    fn from(child: Child) -> Self {
        Self {
            pid: i32::try_from(child.id()).expect("a process id fits"),
            child: Mutex::new(child),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_now();
    }
}

fn signal_pid(pid: i32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid).context("0 is not a process")?;
    kill_process(pid, signal).with_context(|| format!("could not signal process {pid:?}"))
}

fn stop_below(pid: i32) {
    for child in children(pid) {
        let _ = signal_pid(child, Signal::STOP);
        stop_below(child);
    }
}

/// All processes below `pid`, parents before their children.
fn descendants(pid: i32) -> Vec<i32> {
    let mut all = Vec::new();
    for child in children(pid) {
        all.push(child);
        all.extend(descendants(child));
    }
    all
}

fn children(pid: i32) -> Vec<i32> {
    // A child is listed under the thread that forked it.
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Whether a process of that id exists and is no zombie (in a container nobody may reap orphans).
fn is_running(pid: i32) -> bool {
    stat(pid).is_some_and(|fields| {
        fields
            .first()
            .is_some_and(|state| state != "Z" && state != "X")
    })
}

/// When the process was started, in clock ticks since boot: with the id it names one process for ever.
pub fn start_ticks(pid: i32) -> Option<u64> {
    stat(pid)?.get(19)?.parse().ok()
}

/// The fields of /proc/PID/stat from the third (state) on.
pub(crate) fn stat(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and may hold anything, parentheses too.
    let (_, fields) = stat.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// Runs a command to its end; its success and what it printed.
pub(crate) async fn run(
    mut command: Command,
    log: &Path,
    deadline: Duration,
) -> Result<(bool, String)> {
    let file = File::create(log)?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let process = Process::start(command)?;
    let status = process.wait_exit(deadline).await?;
    let output = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    Ok((status.success(), output))
}

/// The last lines of a log, for an error.
pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
