//! The notify protocol of systemd: ready, status, watchdog. Does nothing without `NOTIFY_SOCKET`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postrider_relay::Progress;
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How often the status line is renewed when no watchdog asks for more.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// Tells systemd that the service is up. Does not wait for the broker or the database: a peer that
/// is away is not mended by a restart.
pub(crate) fn ready() {
    send(&[NotifyState::Ready]);
}

/// Tells systemd that the service is shutting down.
pub(crate) fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Renews the status line, and feeds the watchdog for as long as the loop turns, until `stop`.
///
/// The watchdog is fed from the workers' progress and not by this timer alone: a worker that stands
/// still starves it, and systemd restarts the service.
pub(crate) async fn keep_notified(progress: Arc<Progress>, stop: CancellationToken) {
    let watchdog = sd_notify::watchdog_enabled();
    let interval = watchdog.map_or(STATUS_INTERVAL, |limit| (limit / 3).min(STATUS_INTERVAL));
    loop {
        let now = Instant::now();
        let summary = progress.summary(now);
        send(&[NotifyState::Status(&summary)]);
        if watchdog.is_some() && progress.stuck(now).is_none() {
            send(&[NotifyState::Watchdog]);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
    }
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "systemd was not notified");
    }
}
