//! What is kept of a run that failed.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use postrider_testbed::Client;

use super::{fault::RELAYS, plan::Plan, scene::Scene};

/// Writes the logs of relays and servers, the outbox's rows and what the audit misses into a new directory.
pub(crate) async fn keep(scene: &Scene, plan: &Plan) -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!(
        "postrider-soak-{}-{}",
        plan.seed,
        std::process::id()
    ));
    // Not into what is there: another user may have laid a link of that name.
    fs::create_dir(&dir).with_context(|| format!("could not make {}", dir.display()))?;
    for number in 1..=RELAYS {
        let log = scene.relay(number).await?.log();
        write(&dir, &format!("relay-{number}.log"), &log.join("\n"))?;
    }
    write(&dir, "postgres.log", &scene.stage.postgres.log())?;
    write(&dir, "rabbit.log", &scene.stage.rabbit.log())?;
    let report = scene.traffic.audit.report();
    let lists = [("lost", &report.lost), ("phantom", &report.phantom)];
    let ids: String = lists
        .iter()
        .flat_map(|(what, ids)| ids.iter().map(move |id| format!("{what} {id}\n")))
        .collect();
    let order = scene.traffic.audit.order();
    write(&dir, "audit.txt", &format!("{report}\n{ids}\n{order:#?}"))?;
    for (table, by) in [
        ("messages", "seq"),
        ("deferred", "seq"),
        ("dead_letters", "seq"),
        ("parked", "seq"),
        ("blocked_keys", "ordering_key"),
    ] {
        let rows = rows(scene, table, by).await;
        write(
            &dir,
            &format!("{table}.txt"),
            &rows.unwrap_or_else(|error| format!("{error:#}")),
        )?;
    }
    Ok(dir)
}

fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    let mut file = fs::File::create_new(dir.join(name))?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("could not write {name}"))
}

async fn rows(scene: &Scene, table: &str, by: &str) -> Result<String> {
    let rows = Client::connect(&scene.stage.database.url)
        .await?
        .query(
            &format!(
                "SELECT (to_jsonb(t) - 'payload')::text FROM outbox.{table} AS t ORDER BY {by} LIMIT 10000"
            ),
            &[],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| format!("{}\n", row.get::<_, &str>(0)))
        .collect())
}
