//! A claim that starts at the head of the index: what each claim would cost without a floor.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use postrider_testbed::Client;

use crate::statistics::Spread;

/// As many rows as hand-written relays claim at once.
pub(crate) const ROWS: u32 = 500;

/// The settings of a relay's session that decide its plans.
const SESSION: &str =
    "SET plan_cache_mode = force_custom_plan; SET enable_seqscan = off; SET jit = off";

/// How long such a claim takes, in milliseconds: the median of `times`, after one that does not count. The rows stay.
///
/// # Errors
/// PostgreSQL refuses, or there are fewer rows than one claim locks.
pub(crate) async fn milliseconds(client: &Client, times: u32) -> Result<f64> {
    client
        .batch_execute(SESSION)
        .await
        .context("could not prepare the claiming session")?;
    let claim = client
        .prepare(&format!(
            "SELECT seq FROM outbox.messages ORDER BY seq LIMIT {ROWS} FOR UPDATE SKIP LOCKED"
        ))
        .await
        .context("could not prepare the claim")?;
    let mut taken = Vec::new();
    for _ in 0..=times {
        client.batch_execute("BEGIN").await?;
        let began = Instant::now();
        let rows = client.query(&claim, &[]).await.context("could not claim")?;
        taken.push(began.elapsed().as_secs_f64() * 1e3);
        client.batch_execute("ROLLBACK").await?;
        ensure!(
            rows.len() == ROWS as usize,
            "{} rows were claimed, not {ROWS}",
            rows.len()
        );
    }
    // The first one finds what nobody has looked at yet, and notes what it finds for the next.
    let spread = Spread::of(taken.into_iter().skip(1)).context("nothing was claimed")?;
    Ok(spread.median)
}
