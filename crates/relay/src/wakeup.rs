//! Wake-ups: a hint that there is something to claim. The truth is the poll under it.
//!
//! A notification wakes one worker; a worker whose claim came back full wakes the next. The permit
//! of `Notify` closes the race between looking and going to sleep: a notification that arrives while
//! every worker is busy is kept, and the next idle one looks again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postrider_core::Backoff;
use postrider_postgres::{Database, Listener};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::shared::Shared;

/// Holds the session that listens (unless the settings say otherwise) and that stands for this relay among those
/// connected, and makes it again whenever it is lost, until `stop`.
pub(crate) async fn keep_listening(
    database: &Database,
    shared: &Shared,
    longest_wait: Duration,
    stop: &CancellationToken,
) {
    let Shared {
        settings,
        wakeup,
        frontiers,
        connections_scarce,
        ..
    } = shared;
    let mut backoff = Backoff::new(Duration::from_millis(100), longest_wait);
    let lost = AtomicBool::new(false);
    loop {
        let session = async {
            let mut listener = Listener::connect(database, &settings.name, settings.notify).await?;
            if lost.swap(false, Ordering::Relaxed) {
                info!(
                    event = "listener_back",
                    peer = "database",
                    "the listening session is back"
                );
            }
            // What was notified while nobody listened is found by one look.
            wakeup.notify_one();
            loop {
                listener.next().await?;
                backoff.reset();
                wakeup.notify_one();
                // What was notified may lie below the frontier: its transaction may have been open for long.
                frontiers.touch();
            }
        };
        let ended: Result<std::convert::Infallible, postrider_postgres::Error> = tokio::select! {
            () = stop.cancelled() => return,
            ended = session => ended,
            () = connections_scarce.notified() => {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(longest_wait) => continue,
                }
            }
        };
        let Err(error) = ended;
        let wait = backoff.next(rand::random());
        if !lost.swap(true, Ordering::Relaxed) {
            warn!(
                event = "listener_lost",
                peer = "database",
                %error,
                retry_in_s = wait.as_secs_f64(),
                "the listening session is lost; until it is back, rows are found by polling"
            );
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}
