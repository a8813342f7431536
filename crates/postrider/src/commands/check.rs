//! `check`: a doctor. Looks at everything that the relay depends on, and says what is wrong and what to do.
//!
//! Facts are gathered here, bounded in time, and judged in [`verdict`]. Nothing is changed, in either server.

mod broker;
mod database;
mod finding;
mod verdict;

use std::io::Write;
use std::time::Duration;

use tokio::time::Instant;

use crate::cli::{Check, Exit};
use crate::config::{ConfigError, Loaded};
use crate::wiring;
use finding::Finding;

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long all questions to the database may take, and to connect to the brokers meanwhile.
const FIRST_HALF: Duration = Duration::from_secs(15);
/// How long all questions to the broker may take then.
const SECOND_HALF: Duration = Duration::from_secs(12);

/// How many exchanges are looked at, from each place that names some.
const EXCHANGES: u32 = 100;

/// Looks, prints what was found, and says how the program ends.
///
/// # Errors
/// When the configuration is not valid, or the output cannot be written. A server that is away is a finding.
pub(crate) async fn check(
    loaded: Result<Loaded, ConfigError>,
    arguments: &Check,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let configured = loaded.and_then(|mut loaded| {
        let warnings = std::mem::take(&mut loaded.warnings);
        let file = loaded.file.as_ref().map(|file| file.display().to_string());
        let mut exchanges: Vec<String> = loaded
            .settings
            .iter()
            .filter_map(|setting| setting.exchange.clone())
            .collect();
        exchanges.dedup();
        Ok((loaded.complete()?, warnings, file, exchanges))
    });
    let (config, warnings, file, exchanges) = match configured {
        Ok(configured) => configured,
        Err(error) if arguments.json => {
            let action = "correct it; `postrider check-config` looks at nothing else";
            let invalid = Finding::failure("configuration", error.to_string(), action);
            write(&[invalid], arguments, out)?;
            return Ok(Exit::InvalidConfiguration);
        }
        Err(error) => return Err(error.into()),
    };
    let mut findings = configuration(&warnings, file);
    let database = wiring::database_for_check(&config.database, PATIENCE)?;
    let settings = postrider_rabbitmq::Settings {
        connect_timeout: config.broker.connect_timeout.min(PATIENCE),
        ..wiring::broker_settings(&config.broker)
    };
    let deadline = Instant::now() + FIRST_HALF;
    let (outbox, nodes) = tokio::join!(
        database::examine(&database, &config, arguments.max_transaction_age, deadline),
        broker::connect(&settings, &config.broker),
    );
    findings.extend(outbox.findings);
    let deadline = Instant::now() + SECOND_HALF;
    let named = broker::Named {
        by_outbox: outbox.named,
        by_configuration: exchanges,
        unroutable: outbox.unroutable,
    };
    findings.extend(broker::examine(nodes, &settings, &config, named, deadline).await);
    write(&findings, arguments, out)?;
    Ok(finding::exit(&findings))
}

fn configuration(warnings: &[String], file: Option<String>) -> Vec<Finding> {
    const CHECK: &str = "configuration";
    if warnings.is_empty() {
        let what = file.unwrap_or_else(|| "the environment alone".to_owned());
        return vec![Finding::ok(CHECK, format!("{what} is valid"))];
    }
    warnings
        .iter()
        .map(|warning| Finding::warning(CHECK, warning, "correct it"))
        .collect()
}

fn write(findings: &[Finding], arguments: &Check, out: &mut dyn Write) -> anyhow::Result<()> {
    if arguments.json {
        serde_json::to_writer_pretty(&mut *out, findings)?;
        writeln!(out)?;
    } else {
        finding::print(findings, out)?;
    }
    Ok(())
}
