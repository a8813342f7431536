//! Waiting for a condition that nothing signals.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// Waits until `condition` is true, looking every 10 ms.
///
/// # Errors
/// `what` was not true within `deadline`.
pub async fn wait_until(
    deadline: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> bool,
) -> Result<()> {
    let end = Instant::now() + deadline;
    loop {
        if condition().await {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("waited {deadline:?} in vain for: {what}");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
