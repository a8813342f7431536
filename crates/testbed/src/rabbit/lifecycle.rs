//! Stopping, killing and pausing a broker, and starting it again.

use std::{fs::File, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::RabbitServer;
use crate::process::{Process, tail};

/// How long a start may take on a busy machine; recovery of queues is part of it.
const START_DEADLINE: Duration = Duration::from_secs(180);

/// How long a stop may take.
const STOP_DEADLINE: Duration = Duration::from_secs(120);

impl RabbitServer {
    /// Whether the broker's process is there; a paused one is.
    pub fn is_running(&self) -> bool {
        match &self.own {
            Some(own) => own.broker.is_alive(),
            None => std::net::TcpStream::connect(("127.0.0.1", self.port())).is_ok(),
        }
    }

    /// Stops the broker in good order and waits for its end.
    ///
    /// # Errors
    /// It does not run, does not end within two minutes, or belongs to another process.
    pub async fn stop(&self) -> Result<()> {
        let process = self.own()?.broker.take()?;
        process.signal(Signal::TERM)?;
        process
            .wait_exit(STOP_DEADLINE)
            .await
            .context("the broker did not stop")?;
        Ok(())
    }

    /// Starts a stopped or killed broker on the same data and ports, and waits until it accepts connections.
    ///
    /// # Errors
    /// It runs already, does not come up, or belongs to another process.
    pub async fn start_again(&self) -> Result<()> {
        let own = self.own()?;
        ensure!(!self.is_running(), "the broker runs already");
        self.start_epmd()?;
        let output = File::options()
            .create(true)
            .append(true)
            .open(self.output_file())?;
        let mut command = self.command("rabbitmq-server");
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        own.broker.start(command, &own.dir)?;
        self.wait_until_ready().await
    }

    /// [`stop`](Self::stop) and [`start_again`](Self::start_again).
    ///
    /// # Errors
    /// Those of the two.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.start_again().await
    }

    /// Kills the broker and its children with SIGKILL.
    ///
    /// Before that, RabbitMQ's small on-disk registers (dets) are written out, so this is a little kinder than a
    /// crash. RabbitMQ (3.10.8 and 4.0.5 alike) writes the register of its quorum queues up to two seconds after a
    /// declaration; a kill in between leaves such a queue without a leader and with an empty log, confirmed messages
    /// gone. No relay can mend that, and a test which declares, publishes and kills within a second would blame it.
    /// The logs of the queues themselves are not touched. To kill without it, [`pause`](Self::pause) first: a paused
    /// broker writes nothing.
    ///
    /// # Errors
    /// It does not run, or belongs to another process.
    pub async fn kill(&self) -> Result<()> {
        let process = self.own()?.broker.take()?;
        // A paused broker does not answer, and is killed as it is.
        let _ = timeout(
            Duration::from_secs(2),
            self.eval("[dets:sync(T) || T <- dets:all()]."),
        )
        .await;
        process.kill().await
    }

    /// Stops the broker with SIGSTOP: connections stay open and nothing answers.
    ///
    /// # Errors
    /// It does not run, or belongs to another process.
    pub async fn pause(&self) -> Result<()> {
        self.own()?.broker.with(Process::pause)
    }

    /// Undoes [`pause`](Self::pause).
    ///
    /// # Errors
    /// It does not run, or belongs to another process.
    pub async fn resume(&self) -> Result<()> {
        self.own()?.broker.with(Process::resume)
    }

    /// The port mapper, in the foreground as our child: started by the broker it would outlive everything.
    fn start_epmd(&self) -> Result<()> {
        let own = self.own()?;
        if own.epmd.is_alive() {
            return Ok(());
        }
        let address = &self.address;
        let mut command = address
            .place
            .command(Path::new("epmd"), None, self.directory());
        command
            .args([
                "-port",
                &address.epmd_port.to_string(),
                "-address",
                "127.0.0.1",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        own.epmd.start(command, &own.dir)
    }

    async fn wait_until_ready(&self) -> Result<()> {
        let end = Instant::now() + START_DEADLINE;
        while !self.answers().await {
            if !self.is_running() {
                self.own()?.broker.clear();
                bail!("rabbitmq ended at its start:\n{}", tail(&self.log()));
            }
            if Instant::now() >= end {
                bail!(
                    "rabbitmq did not accept connections within {START_DEADLINE:?}:\n{}",
                    tail(&self.log())
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Whether it greets an AMQP client and has booted. (lapin would leak a thread for each refused connection.)
    async fn answers(&self) -> bool {
        let greet = async {
            ensure!(self.eval("rabbit:is_running().").await? == "true");
            let mut socket = TcpStream::connect(("127.0.0.1", self.port())).await?;
            socket.write_all(b"AMQP\x00\x00\x09\x01").await?;
            let frame_type = socket.read_u8().await?;
            ensure!(frame_type == 1, "not AMQP");
            Ok(())
        };
        matches!(timeout(Duration::from_secs(5), greet).await, Ok(Ok(())))
    }
}
