//! SIGTERM and SIGINT: the first asks to stop, the second ends at once. SIGHUP: read the configuration again.

use std::io::IsTerminal as _;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The signals that stop the daemon, caught from the moment this is made.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches the signals; to be called before anything that has to be stopped in order.
    ///
    /// # Errors
    /// When the system refuses the handlers.
    pub(crate) fn catch() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Cancels `stop` at the first signal, and ends the process at the second, with the exit code
    /// that shells give to a process killed by it. What was in flight is rolled back by the server.
    pub(crate) async fn obey(mut self, stop: CancellationToken) {
        tokio::select! {
            (name, _) = self.next() => say_stopping(name),
            // Something else has said so already.
            () = stop.cancelled() => {}
        }
        stop.cancel();
        let (name, code) = self.next().await;
        warn!(
            event = "killed",
            signal = name,
            "second signal: ending at once"
        );
        std::process::exit(code);
    }

    async fn next(&mut self) -> (&'static str, i32) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", 128 + 15),
            _ = self.interrupt.recv() => ("SIGINT", 128 + 2),
        }
    }
}

fn say_stopping(signal: &str) {
    info!(
        event = "stopping",
        signal,
        "stopping: claiming nothing more, finishing what is in flight; a second signal ends at once"
    );
    crate::systemd::stopping();
}

/// SIGHUP, caught from the moment this is made. Those that come faster than they are asked for count as one.
pub(crate) struct Hangups {
    signal: Signal,
    in_terminal: bool,
}

impl Hangups {
    /// Catches the signal: nothing that comes from here on ends the process.
    ///
    /// # Errors
    /// When the system refuses the handler.
    pub(crate) fn catch() -> std::io::Result<Self> {
        Ok(Self {
            signal: signal(SignalKind::hangup())?,
            in_terminal: std::io::stderr().is_terminal(),
        })
    }

    /// Waits for the next that asks to read the configuration again, until `stop`; `None` then.
    ///
    /// The terminal that the daemon was started in sends the same signal when it is closed: nobody would see the daemon
    /// any more, so that one cancels `stop`.
    pub(crate) async fn next(&mut self, stop: &CancellationToken) -> Option<()> {
        tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            received = self.signal.recv() => received?,
        }
        if self.in_terminal && !std::io::stderr().is_terminal() {
            say_stopping("SIGHUP");
            stop.cancel();
            return None;
        }
        Some(())
    }
}
