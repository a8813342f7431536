//! Runs a command with a private PostgreSQL and RabbitMQ: `with-servers cargo test`.
//!
//! Its exit code is the command's (128 + signal when that was killed). SIGINT and SIGTERM are passed on to the
//! command; the servers are stopped in any case.

use std::{os::unix::process::ExitStatusExt, process::ExitCode};

use anyhow::{Context, Result, bail};
use postrider_testbed::{PostgresOptions, PostgresServer, RabbitOptions, RabbitServer, shared};
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        bail!("usage: with-servers COMMAND [ARGUMENT...]");
    };
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;

    let start = async {
        tokio::try_join!(
            PostgresServer::start(PostgresOptions::default()),
            RabbitServer::start(RabbitOptions::with_logins_by_certificate())
        )
    };
    let (postgres, rabbit) = tokio::select! {
        servers = start => servers?,
        _ = interrupts.recv() => return Ok(ExitCode::from(130)),
        _ = terminations.recv() => return Ok(ExitCode::from(143)),
    };

    // Forked by the main thread, whose death the kernel tells the command.
    let mut command = tokio::process::Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(&program)
        .args(arguments)
        .envs(shared::environment(&postgres, &rabbit)?)
        .spawn()
        .with_context(|| format!("could not run {}", program.display()))?;
    let pid = command
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw)
        .context("the command has no process id")?;
    let status = loop {
        tokio::select! {
            status = command.wait() => break status?,
            // A terminal sends it to the command as well; a second one does no harm.
            _ = interrupts.recv() => { let _ = kill_process(pid, Signal::INT); }
            _ = terminations.recv() => { let _ = kill_process(pid, Signal::TERM); }
        }
    };
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
