//! SIGTERM and SIGINT: the first asks to stop, the second ends at once.

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
        let (name, _) = self.next().await;
        info!(
            event = "stopping",
            signal = name,
            "stopping: claiming nothing more, finishing what is in flight; a second signal ends at once"
        );
        crate::systemd::stopping();
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
