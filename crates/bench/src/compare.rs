//! Whether a change costs something: the same backlog, drained by an older daemon and by the current one.

use std::{fmt, path::Path};

use anyhow::Result;
use postrider_testbed::QueueKind;
use serde::Serialize;

use crate::{
    drain::{self, Backlog},
    duel::{Duel, DuelPlan, Side, Turn},
    queue::Queue,
    stage::{Stage, version_of},
    throughput::PAYLOAD_BYTES,
};

/// The result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    /// The version of the older daemon; that of the other is in the setup.
    before: String,
    duel: Duel,
}

/// Measures both daemons, each in a database that it has migrated itself, anew for every measurement.
///
/// # Errors
/// A measurement fails, or a queue did not get each message once.
pub(crate) async fn measure(stage: &Stage, before: &Path, plan: DuelPlan) -> Result<Comparison> {
    let payload = vec![b'x'; PAYLOAD_BYTES];
    let turn = async |side| {
        let binary = match side {
            Side::First => before,
            Side::Second => &stage.binary,
        };
        let installation = stage.install(binary).await?;
        let queue = Queue::declare(&stage.control, QueueKind::Quorum).await?;
        let backlog = Backlog {
            payload: &payload,
            good: plan.messages,
            faulty: None,
        };
        let drained = drain::drain(stage, &installation, &queue, &backlog).await?;
        queue.verify(plan.messages).await?;
        queue.delete().await?;
        stage.remove(installation).await?;
        Ok(Turn {
            drained,
            repeats: 0,
        })
    };
    Ok(Comparison {
        before: version_of(before)?,
        duel: Duel::fight(plan, ["before", "after"], turn).await?,
    })
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Comparison with {}: {}", self.before, self.duel)
    }
}
