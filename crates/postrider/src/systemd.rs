//! The notify protocol of systemd: ready, reloading, status, watchdog, stopping. Does nothing without `NOTIFY_SOCKET`.

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

/// Tells systemd that the configuration is read again; [`ready`] says that this is over, however it ended.
pub(crate) fn reloading() {
    // Without the time, systemd would take a READY=1 that was sent before for the answer.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => debug!(%error, "systemd was not notified"),
    }
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, Write as _};
    use std::os::unix::net::UnixDatagram;
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicBool, Ordering};

    use postrider_relay::Metrics;
    use prometheus::Registry;

    use super::*;

    const STANDS_STILL_AFTER: Duration = Duration::from_millis(500);

    /// The environment belongs to the whole process, so the part that is notified about runs in one of its own.
    #[test]
    fn the_watchdog_is_fed_while_the_worker_turns_and_no_longer_once_it_stands_still() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "systemd::tests::notifies", "--ignored"])
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "150000")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        let hear = || {
            assert!(Instant::now() < deadline, "it is not as it should be");
            let mut buffer = [0; 4096];
            let bytes = socket.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..bytes]).trim().to_owned()
        };
        let fed = || while hear() != "WATCHDOG=1" {};
        for _ in 0..20 {
            fed();
        }
        let mut child_in = child.stdin.take().unwrap();
        writeln!(child_in, "stand still").unwrap();
        // A status comes as often as the watchdog would be fed.
        let mut hungry = 0;
        while hungry < 20 {
            hungry = match hear().as_str() {
                "WATCHDOG=1" => 0,
                _ => hungry + 1,
            };
        }
        writeln!(child_in, "turn").unwrap();
        fed();
        drop(child_in);
        assert!(child.wait().unwrap().success());
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "run by the test above, with a socket to notify"]
    async fn notifies() {
        let metrics = Arc::new(Metrics::register(&Registry::new(), "shop", 10).unwrap());
        let start = Instant::now();
        let progress = Arc::new(Progress::new(1, STANDS_STILL_AFTER, metrics, start));
        let turning = Arc::new(AtomicBool::new(true));
        let stop = CancellationToken::new();
        std::thread::spawn({
            let (turning, stop) = (Arc::clone(&turning), stop.clone());
            move || {
                for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                    turning.store(line == "turn", Ordering::Relaxed);
                }
                stop.cancel();
            }
        });
        let turns = async {
            loop {
                if turning.load(Ordering::Relaxed) {
                    progress.waiting(Instant::now());
                }
                tokio::time::sleep(STANDS_STILL_AFTER / 10).await;
            }
        };
        tokio::select! {
            () = turns => {}
            () = keep_notified(Arc::clone(&progress), stop) => {}
        }
    }
}
