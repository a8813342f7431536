//! What order by key costs: a backlog drained to a quorum queue, without keys and with few and many, behind a key that is
//! blocked, by several relays, and behind deleted rows that an old snapshot keeps.
//!
//! All cases take turns, and are compared within a round: with messages without a key, and with a thousand keys.

mod case;
mod measurement;
mod summary;

use anyhow::{Context, Result};
use serde::Serialize;

pub(crate) use self::case::{Case, cases};
use self::{
    measurement::Run,
    summary::{Line, summarise},
};
use crate::{report::grouped, stage::Stage, throughput::PAYLOAD_BYTES};

/// How much to measure.
#[derive(Clone, Debug)]
pub(crate) struct OrderedPlan {
    pub(crate) rounds: u32,
    pub(crate) cases: Vec<Case>,
    /// Of one measurement, but for those of a single key.
    pub(crate) messages: u32,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ordered {
    rounds: u32,
    messages: u32,
    payload_bytes: usize,
    summary: Vec<Line>,
    runs: Vec<Run>,
}

/// Measures all cases, round by round, in the opposite order in every second round.
///
/// # Errors
/// A measurement fails, a message is missing, or one of a key came for the first time after a later one. One that was
/// delivered twice is counted.
pub(crate) async fn measure(stage: &Stage, plan: OrderedPlan) -> Result<Ordered> {
    println!("Measuring order by key.\n");
    // Once without being counted: the servers have just been started.
    measurement::measure(stage, 0, case::REFERENCE, plan.messages / 4)
        .await
        .context("warming up")?;
    let mut runs = Vec::new();
    for round in 1..=plan.rounds {
        let mut cases = plan.cases.clone();
        if round.is_multiple_of(2) {
            cases.reverse();
        }
        for case in cases {
            let run = measurement::measure(stage, round, case, case.messages(plan.messages))
                .await
                .with_context(|| case.name())?;
            println!(
                "round {round} of {}: {:<52} {:>8} messages/s",
                plan.rounds,
                case.name(),
                grouped(run.messages_a_second)
            );
            runs.push(run);
        }
    }
    println!();
    Ok(Ordered {
        rounds: plan.rounds,
        messages: plan.messages,
        payload_bytes: PAYLOAD_BYTES,
        summary: summarise(&plan.cases, &runs),
        runs,
    })
}
