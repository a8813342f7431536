//! What messages that cannot be delivered cost the others: a backlog of good messages, and one with as many good ones
//! and faulty ones among them.

use std::{fmt, str::FromStr};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use postrider_testbed::QueueKind;
use serde::Serialize;

use crate::{
    drain::{self, Backlog, Faulty},
    duel::{Duel, DuelPlan, Side, Turn},
    queue::Queue,
    report::grouped,
    stage::Stage,
    throughput::PAYLOAD_BYTES,
};

/// What is wrong with the faulty messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// No queue takes them: the broker returns them
    Unroutable,
    /// Their exchange does not exist
    MissingExchange,
}

impl Fault {
    fn of(self, messages: u32) -> Faulty {
        match self {
            Self::Unroutable => Faulty {
                messages,
                exchange: "",
                routing_key: "bench-no-such-queue",
            },
            Self::MissingExchange => Faulty {
                messages,
                exchange: "bench-no-such-exchange",
                routing_key: "bench",
            },
        }
    }
}

/// A part of a whole, above 0 and at most a half.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Share(f64);

impl Share {
    /// So many messages beside `good` ones are this share of all. At least one.
    fn beside(self, good: u32) -> u32 {
        ((f64::from(good) * self.0 / (1.0 - self.0)).round() as u32).max(1)
    }
}

impl FromStr for Share {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let share: f64 = text.parse().context("a share is a number, such as 0.01")?;
        ensure!(
            share > 0.0 && share <= 0.5,
            "a share is above 0 and at most 0.5"
        );
        Ok(Self(share))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Unroutable {
    fault: Fault,
    share: Share,
    faulty_messages: u32,
    duel: Duel,
}

/// Measures the good messages without and with faulty ones among them, each time in a database made anew.
///
/// # Errors
/// A measurement fails, a good message did not arrive, was deferred or was given up on, or one arrived more than
/// once where there were no others.
pub(crate) async fn measure(
    stage: &Stage,
    fault: Fault,
    share: Share,
    plan: DuelPlan,
) -> Result<Unroutable> {
    let payload = vec![b'x'; PAYLOAD_BYTES];
    let faulty = fault.of(share.beside(plan.messages));
    let turn = async |side| {
        let installation = stage.install(&stage.binary).await?;
        let queue = Queue::declare(&stage.control, QueueKind::Quorum).await?;
        let backlog = Backlog {
            payload: &payload,
            good: plan.messages,
            faulty: match side {
                Side::First => None,
                Side::Second => Some(faulty),
            },
        };
        let drained = drain::drain(stage, &installation, &queue, &backlog).await?;
        let repeats = match side {
            Side::First => {
                queue.verify(plan.messages).await?;
                0
            }
            Side::Second => queue.beyond(plan.messages).await?,
        };
        queue.delete().await?;
        stage.remove(installation).await?;
        Ok(Turn { drained, repeats })
    };
    Ok(Unroutable {
        fault,
        share,
        faulty_messages: faulty.messages,
        duel: Duel::fight(plan, ["good only", "with faulty"], turn).await?,
    })
}

impl fmt::Display for Unroutable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.fault {
            Fault::Unroutable => "that no queue takes",
            Fault::MissingExchange => "to an exchange that does not exist",
        };
        write!(
            f,
            "Good messages beside {} ({} %) {what}: {}",
            grouped(f64::from(self.faulty_messages)),
            self.share.0 * 100.0,
            self.duel
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Share;

    #[test]
    fn a_share_is_of_all_messages_not_of_the_good_ones() {
        let beside = |share: &str, good| share.parse::<Share>().unwrap().beside(good);
        assert_eq!(beside("0.01", 99_000), 1_000);
        assert_eq!(beside("0.01", 100_000), 1_010);
        assert_eq!(beside("0.5", 100), 100);
        assert_eq!(beside("0.000001", 1_000), 1);
    }

    #[test]
    fn a_share_is_a_number_above_0_and_at_most_a_half() {
        for text in ["0", "-0.1", "0.51", "1", "nan", "inf", "1%", ""] {
            assert!(text.parse::<Share>().is_err(), "{text:?}");
        }
    }
}
