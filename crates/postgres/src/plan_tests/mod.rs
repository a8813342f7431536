//! How the server executes the statements of the hot path, in the relay's own session.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod claim;
mod due;
mod ordered;
mod parked;
mod target;
mod watch;

use std::time::Duration;

use postrider_testbed::shared;

use crate::{Database, Settings};

/// As claims and the watch run, and what sessions are set to.
const MODES: [&str; 2] = ["force_generic_plan", "force_custom_plan"];

async fn outbox() -> (Database, postrider_testbed::Client, String) {
    let test = shared::database().await;
    let database = Database::new(Settings::new(&test.url)).unwrap();
    database.migrate(Duration::from_secs(60)).await.unwrap();
    (database, test.client().await.unwrap(), test.url)
}

/// A session with a snapshot that keeps what is deleted of the table from being removed, for as long as it lives.
async fn old_snapshot(url: &str, table: &str) -> postrider_testbed::Client {
    let report = postrider_testbed::Client::connect(url).await.unwrap();
    let begin =
        format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.{table}");
    report.batch_execute(&begin).await.unwrap();
    report
}

async fn plan(session: &tokio_postgres::Client, execute: &str) -> String {
    session
        .query(&format!("EXPLAIN {execute}"), &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get::<_, String>(0))
        .collect::<Vec<_>>()
        .join("\n")
}

/// All pages that a plan read, from its first line of buffers: that of the whole.
fn pages(analysed: &str) -> u64 {
    let (_, buffers) = analysed.split_once("Buffers: shared").unwrap();
    let buffers = buffers.lines().next().unwrap();
    let counts = buffers.split_whitespace().filter_map(|part| {
        let (kind, count) = part.split_once('=')?;
        ["hit", "read"].contains(&kind).then_some(count)
    });
    counts.map(|count| count.parse::<u64>().unwrap()).sum()
}
