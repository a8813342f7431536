//! The demo applications of `docker-compose.yml`.
//!
//!     orders place      places orders in the database ORDERS_DATABASE_URL, ORDERS_RATE a second
//!     orders receive    receives them from the broker ORDERS_BROKER_URL
//!
//! They run until SIGTERM or SIGINT.

use std::process::ExitCode;

use anyhow::{Context, Result};
use postrider_testbed::orders;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let command = std::env::args().nth(1).unwrap_or_default();
    if !["place", "receive"].contains(&command.as_str()) {
        eprintln!("usage: orders place | receive");
        return Ok(ExitCode::from(2));
    }
    let report = |line: String| println!("{line}");
    // As the first process of a container it would not be ended by either without a handler.
    let mut terminations = signal(SignalKind::terminate())?;
    let mut interrupts = signal(SignalKind::interrupt())?;
    let work = async {
        if command == "receive" {
            let never = orders::receive(&variable("ORDERS_BROKER_URL")?, report).await;
            match never {}
        }
        let url = variable("ORDERS_DATABASE_URL")?;
        let rate = variable("ORDERS_RATE")?
            .parse()
            .ok()
            .filter(|rate| (0.001..=1_000.0).contains(rate))
            .context("ORDERS_RATE is no number from 0.001 to 1000")?;
        let never = orders::place(&url, rate, report).await;
        match never {}
    };
    tokio::select! {
        ended = work => ended,
        _ = terminations.recv() => Ok(ExitCode::SUCCESS),
        _ = interrupts.recv() => Ok(ExitCode::SUCCESS),
    }
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set"))
}
