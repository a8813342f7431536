//! Stopping, killing and pausing a server, and starting it again.

use std::{
    fs::{self, File},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tokio::time::Instant;

use super::{PostgresServer, START_DEADLINE, StopMode};
use crate::process::{Process, run, tail};

/// How long a stop may take.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

impl PostgresServer {
    /// Whether the server's process is there; a paused one is.
    pub fn is_running(&self) -> bool {
        match &self.own {
            Some(own) => own.server.is_alive(),
            None => std::net::TcpStream::connect(("127.0.0.1", self.port())).is_ok(),
        }
    }

    /// Stops the server and waits for its end.
    ///
    /// # Errors
    /// It does not run, does not end within a minute, or belongs to another process.
    pub async fn stop(&self, mode: StopMode) -> Result<()> {
        let process = self.own()?.server.take()?;
        process.signal(match mode {
            StopMode::Smart => Signal::TERM,
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        })?;
        process
            .wait_exit(STOP_DEADLINE)
            .await
            .with_context(|| format!("postgresql did not stop ({mode:?})"))?;
        Ok(())
    }

    /// Starts a stopped or killed server on the same data and port, and waits until it accepts connections.
    ///
    /// # Errors
    /// It runs already, does not come up, or belongs to another process.
    pub async fn start_again(&self) -> Result<()> {
        let own = self.own()?;
        ensure!(!self.is_running(), "postgresql runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        let mut command =
            own.place
                .command(&own.programs.join("postgres"), own.user, self.directory());
        command
            .arg("-D")
            .arg(self.data_dir())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        own.server.start(command, &own.dir)?;
        self.wait_until_ready().await
    }

    /// [`stop`](Self::stop) and [`start_again`](Self::start_again).
    ///
    /// # Errors
    /// Those of the two.
    pub async fn restart(&self, mode: StopMode) -> Result<()> {
        self.stop(mode).await?;
        self.start_again().await
    }

    /// Restarts the server as one that has given all ids of transactions so many times: those that follow are of this epoch.
    ///
    /// # Errors
    /// Those of [`restart`](Self::restart); there is no `pg_resetwal` beside the server's program, or it fails.
    pub async fn restart_in_epoch(&self, epoch: u32) -> Result<()> {
        self.stop(StopMode::Fast).await?;
        let own = self.own()?;
        let program = own.programs.join("pg_resetwal");
        let mut command = own.place.command(&program, own.user, self.directory());
        command.args(["--epoch", &epoch.to_string(), "--pgdata"]);
        command.arg(self.data_dir());
        let log = self.directory().join("pg_resetwal.log");
        let (succeeded, output) = run(command, &log, STOP_DEADLINE).await?;
        ensure!(succeeded, "pg_resetwal failed:\n{output}");
        self.start_again().await
    }

    /// Restarts the server as a standby of nobody: it answers, and takes no writes until
    /// [`promote`](Self::promote), as what is left of a primary whose failover is not finished.
    ///
    /// # Errors
    /// Those of [`restart`](Self::restart).
    pub async fn restart_as_standby(&self) -> Result<()> {
        self.stop(StopMode::Fast).await?;
        fs::write(self.data_dir().join("standby.signal"), "")?;
        self.start_again().await
    }

    /// Makes a standby take writes, and returns when it does.
    ///
    /// # Errors
    /// The server is not there, or no standby.
    pub async fn promote(&self) -> Result<()> {
        let client = self.client("postgres").await?;
        let promoted = client.query_one("SELECT pg_promote(true, 120)", &[]).await;
        ensure!(
            promoted.context("could not promote")?.get::<_, bool>(0),
            "the server was not promoted within two minutes"
        );
        Ok(())
    }

    /// Kills the postmaster and all of its children with SIGKILL: a crash of the whole server.
    ///
    /// # Errors
    /// It does not run, or belongs to another process.
    pub async fn kill(&self) -> Result<()> {
        self.own()?.server.take()?.kill().await
    }

    /// Stops all of its processes with SIGSTOP: connections stay open and nothing answers.
    ///
    /// # Errors
    /// It does not run, or belongs to another process.
    pub async fn pause(&self) -> Result<()> {
        self.own()?.server.with(Process::pause)
    }

    /// Undoes [`pause`](Self::pause).
    ///
    /// # Errors
    /// It does not run, or belongs to another process.
    pub async fn resume(&self) -> Result<()> {
        self.own()?.server.with(Process::resume)
    }

    async fn wait_until_ready(&self) -> Result<()> {
        let end = Instant::now() + START_DEADLINE;
        loop {
            let attempt =
                tokio::time::timeout(Duration::from_secs(5), self.client("postgres")).await;
            if let Ok(Ok(_)) = attempt
                && self.is_running()
            {
                return Ok(());
            }
            if !self.is_running() {
                self.own()?.server.clear();
                bail!("postgresql ended at its start:\n{}", tail(&self.log()));
            }
            if Instant::now() >= end {
                bail!(
                    "postgresql did not accept connections within {START_DEADLINE:?}:\n{}",
                    tail(&self.log())
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// An error, unless this process may hurt the server.
    pub(crate) fn ensure_own(&self) -> Result<()> {
        self.own().map(|_| ())
    }
}
