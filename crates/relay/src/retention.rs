//! Deletes dead letters that are older than the retention, in small transactions.

use std::time::Duration;

use postrider_core::jittered;
use postrider_postgres::Database;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::shared::Shared;

/// How often to look.
const INTERVAL: Duration = Duration::from_secs(60);
/// How many dead letters one transaction deletes at most.
const BATCH: u32 = 1_000;

/// Purges once a minute, where there is a retention, until `stop`.
pub(crate) async fn keep_purging(database: &Database, shared: &Shared, stop: &CancellationToken) {
    let mut live = shared.live.subscribe();
    loop {
        let Some(retention) = live.get().dead_letter_retention else {
            tokio::select! {
                () = stop.cancelled() => return,
                () = live.changed() => continue,
            }
        };
        let purged = tokio::select! {
            () = stop.cancelled() => return,
            purged = database.purge_dead_letters(retention, BATCH) => purged,
        };
        match purged {
            Ok(0) => {}
            Ok(messages) => {
                info!(
                    event = "dead_letters_purged",
                    messages, "deleted dead letters past their retention"
                );
                continue;
            }
            Err(error) => warn!(
                event = "dead_letters_not_purged",
                %error,
                "dead letters past their retention could not be deleted"
            ),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = live.changed() => {}
            () = tokio::time::sleep(jittered(INTERVAL, rand::random())) => {}
        }
    }
}
