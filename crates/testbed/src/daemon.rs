//! The real daemon as a child process: its log, signals, HTTP, metrics, memory and time.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::{Instant, timeout},
};

use crate::{exposition, ports::free_port, process, process::Process, test_dir::TestDir};

/// How to run the daemon.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// The program; in an integration test of its crate `env!("CARGO_BIN_EXE_postrider")`.
    pub binary: PathBuf,
    /// Arguments; `["run"]` by default.
    pub args: Vec<String>,
    /// The text of a configuration file, given as `--config FILE` before the arguments.
    pub config: Option<String>,
    /// Environment variables on top of this process's own, whose `POSTRIDER_*` are left out.
    pub env: Vec<(String, String)>,
    /// Where the daemon shall serve HTTP, set as `POSTRIDER_HTTP_LISTEN`; a free port when not given.
    pub http: Option<SocketAddr>,
}

impl DaemonOptions {
    /// `run` without a configuration file.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            args: vec!["run".into()],
            config: None,
            env: Vec::new(),
            http: None,
        }
    }

    /// With this configuration file.
    pub fn config(mut self, text: impl Into<String>) -> Self {
        self.config = Some(text.into());
        self
    }

    /// With this environment variable.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// With one more argument.
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.args.push(argument.into());
        self
    }
}

/// A running daemon; dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    // Before `_dir`, so that it is dropped before the directory is removed.
    process: Process,
    _dir: TestDir,
    http: SocketAddr,
    lines: Arc<Mutex<Vec<String>>>,
    line_count: watch::Receiver<usize>,
}

impl Daemon {
    /// Starts the program. It may not be ready yet: wait for what the test needs.
    ///
    /// # Errors
    /// The program cannot be started.
    pub async fn start(options: DaemonOptions) -> Result<Self> {
        let dir = TestDir::create()?;
        let http = match options.http {
            Some(address) => address,
            None => SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)),
        };
        if !options.binary.exists() {
            bail!("no program {}: build it first", options.binary.display());
        }
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&options.binary);
        if let Some(text) = &options.config {
            let file = dir.path().join("postrider.toml");
            fs::write(&file, text)?;
            command.arg("--config").arg(file);
        }
        command.args(&options.args);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("POSTRIDER_") {
                command.env_remove(name);
            }
        }
        command
            .env("POSTRIDER_HTTP_LISTEN", http.to_string())
            .envs(options.env)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = process::spawn(command)?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (count, line_count) = watch::channel(0);
        let count = Arc::new(count);
        let stdout = child.stdout.take().context("no standard output")?;
        let stderr = child.stderr.take().context("no standard error")?;
        collect_lines(stdout, &lines, &count);
        collect_lines(stderr, &lines, &count);
        let process = Process::from(child);
        dir.record_process(process.pid())?;
        Ok(Self {
            process,
            _dir: dir,
            http,
            lines,
            line_count,
        })
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Where it serves HTTP.
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// Standard output and standard error so far, line by line.
    pub fn log_lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// [`log_lines`](Self::log_lines) as one text.
    pub fn log(&self) -> String {
        self.log_lines().join("\n")
    }

    /// Waits for a line that contains `text`, from the start of the log on; the line.
    ///
    /// # Errors
    /// There was none within `deadline`, or the daemon ended without one: the error holds the end of the log.
    pub async fn wait_for_log(&self, text: &str, deadline: Duration) -> Result<String> {
        self.wait_for_log_after(0, text, deadline).await
    }

    /// [`wait_for_log`](Self::wait_for_log), not looking at the first `skip` lines: take
    /// `log_lines().len()` before what shall make the daemon write the line.
    ///
    /// # Errors
    /// As [`wait_for_log`](Self::wait_for_log).
    pub async fn wait_for_log_after(
        &self,
        skip: usize,
        text: &str,
        deadline: Duration,
    ) -> Result<String> {
        let mut count = self.line_count.clone();
        let end = Instant::now() + deadline;
        let mut seen = skip;
        loop {
            // Marked as seen before looking: a line that comes meanwhile wakes the wait below.
            count.mark_unchanged();
            {
                let lines = self.lines.lock().unwrap();
                if let Some(line) = lines.iter().skip(seen).find(|line| line.contains(text)) {
                    return Ok(line.clone());
                }
                seen = seen.max(lines.len());
            }
            match tokio::time::timeout_at(end, count.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => bail!(
                    "the daemon ended without logging {text:?}:\n{}",
                    self.tail()
                ),
                Err(_) => bail!(
                    "the daemon did not log {text:?} within {deadline:?}:\n{}",
                    self.tail()
                ),
            }
        }
    }

    fn tail(&self) -> String {
        crate::process::tail(&self.log())
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// It has ended.
    pub fn sigterm(&self) -> Result<()> {
        self.process.signal(Signal::TERM)
    }

    /// Sends SIGINT.
    ///
    /// # Errors
    /// It has ended.
    pub fn sigint(&self) -> Result<()> {
        self.process.signal(Signal::INT)
    }

    /// Sends SIGHUP.
    ///
    /// # Errors
    /// It has ended.
    pub fn sighup(&self) -> Result<()> {
        self.process.signal(Signal::HUP)
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// It does not go away.
    pub async fn kill(&self) -> Result<()> {
        self.process.kill().await
    }

    /// Stops it with SIGSTOP.
    ///
    /// # Errors
    /// It has ended.
    pub fn pause(&self) -> Result<()> {
        self.process.pause()
    }

    /// Lets it go on with SIGCONT.
    ///
    /// # Errors
    /// It has ended.
    pub fn resume(&self) -> Result<()> {
        self.process.resume()
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        self.process.is_alive()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It was still running after `deadline`: the error holds the end of the log.
    pub async fn wait_exit(&self, deadline: Duration) -> Result<ExitStatus> {
        self.process
            .wait_exit(deadline)
            .await
            .with_context(|| format!("the daemon's log ends with:\n{}", self.tail()))
    }

    /// Where its admin port is.
    pub fn http_address(&self) -> SocketAddr {
        self.http
    }

    /// A GET request; status and body.
    ///
    /// # Errors
    /// No answer within ten seconds, or it is no HTTP.
    pub async fn http(&self, path: &str) -> Result<(u16, String)> {
        timeout(Duration::from_secs(10), get(self.http, path))
            .await
            .with_context(|| format!("no answer to GET {path}"))?
    }

    /// The value of a metric whose labels include `labels`: the first such series. `None` when there is none, or no
    /// answer.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let (status, text) = self.http("/metrics").await.ok()?;
        (status == 200).then(|| exposition::value(&text, name, labels))?
    }

    /// Waits until a metric is there and as wanted; its value.
    ///
    /// # Errors
    /// It was not within `deadline`, or the daemon ended.
    pub async fn wait_for_metric(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        wanted: impl Fn(f64) -> bool,
        deadline: Duration,
    ) -> Result<f64> {
        let end = Instant::now() + deadline;
        let mut last = None;
        loop {
            if let Some(value) = self.metric(name, labels).await {
                if wanted(value) {
                    return Ok(value);
                }
                last = Some(value);
            }
            if !self.is_running() {
                bail!(
                    "the daemon ended while {name}{labels:?} was awaited:\n{}",
                    self.tail()
                );
            }
            if Instant::now() >= end {
                bail!(
                    "{name}{labels:?} (last seen: {last:?}) was not as wanted within {deadline:?}:\n{}",
                    self.tail()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Resident memory now, in bytes.
    ///
    /// # Errors
    /// It has ended.
    pub fn rss_bytes(&self) -> Result<u64> {
        self.status_kib("VmRSS:")
    }

    /// The most resident memory it ever had, in bytes.
    ///
    /// # Errors
    /// It has ended.
    pub fn peak_rss_bytes(&self) -> Result<u64> {
        self.status_kib("VmHWM:")
    }

    fn status_kib(&self, key: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .context("the daemon has ended")?;
        let kib: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .and_then(|rest| rest.split_whitespace().next())
            .with_context(|| format!("the daemon has ended: no {key} in its status"))?
            .parse()?;
        Ok(kib * 1024)
    }

    /// User and system time used so far, in seconds.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let fields = process::stat(self.pid()).context("the daemon has ended")?;
        let ticks: u64 = [11, 12]
            .iter()
            .filter_map(|field| fields.get(*field)?.parse::<u64>().ok())
            .sum();
        // USER_HZ is 100 on every architecture that Debian has.
        Ok(ticks as f64 / 100.0)
    }
}

fn collect_lines(
    from: impl Read + Send + 'static,
    lines: &Arc<Mutex<Vec<String>>>,
    count: &Arc<watch::Sender<usize>>,
) {
    let (lines, count) = (Arc::clone(lines), Arc::clone(count));
    // A thread, not a task: the pipe must be emptied also while a test's runtime is busy. It ends with the daemon.
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            lines.lock().unwrap().push(line);
            count.send_modify(|count| *count += 1);
        }
    });
}

async fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut socket = TcpStream::connect(address).await?;
    // 1.0: the answer ends with the connection and is not chunked.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer is no HTTP")?;
    let status = head
        .split_whitespace()
        .nth(1)
        .context("the answer has no status")?
        .parse()?;
    Ok((status, body.to_owned()))
}
