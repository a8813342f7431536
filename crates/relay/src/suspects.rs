//! Messages one of which made the broker end a connection.
//!
//! Some errors concern the connection, not a channel (a frame error, an internal one), and name no message. The
//! batch comes again, with the culprit in it, and would end connection after connection. So what was in
//! flight then is published one by one, on a connection of its own, until the culprit is found.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};

use postrider_core::{Failure, Message, Outcome, Reason, Scope, Seq};

/// How many are remembered; what is forgotten ends one connection more before it is suspected again.
const CAPACITY: usize = 20_000;
/// How many of one batch are published singly; the others wait for a later batch.
pub(crate) const MOST_AT_ONCE: usize = 100;

#[derive(Debug, Default)]
pub(crate) struct Suspects(Mutex<HashSet<Seq>>);

impl Suspects {
    /// Puts those under suspicion last, and says how many there are.
    pub(crate) fn put_last(&self, messages: &mut [Message]) -> usize {
        let suspects = self.seqs();
        if suspects.is_empty() {
            return 0;
        }
        messages.sort_by_key(|message| suspects.contains(&message.seq));
        let first = messages.partition_point(|message| !suspects.contains(&message.seq));
        messages.len() - first
    }

    /// Suspects, of messages published together, those that the outcomes say may be at fault, and acquits those
    /// of whom more is known. `floor`: below it nothing is left but what is deferred or parked. Where there is no room, that is forgotten first: what
    /// another relay has published since nobody else acquits.
    pub(crate) fn observe<'a>(
        &self,
        published: impl Iterator<Item = (&'a Message, &'a Outcome)>,
        floor: Option<Seq>,
    ) {
        let mut suspects = self.seqs();
        if suspects.len() >= CAPACITY {
            suspects.retain(|known| floor.is_none_or(|floor| *known >= floor));
        }
        for (message, outcome) in published {
            match outcome {
                Outcome::Failed(failure) if is_suspect(failure) => {
                    if suspects.len() < CAPACITY {
                        suspects.insert(message.seq);
                    }
                }
                Outcome::Failed(failure) if failure.scope == Scope::Broker => {}
                Outcome::HeldBack => {}
                Outcome::Failed(_) | Outcome::Confirmed => {
                    if !suspects.is_empty() {
                        suspects.remove(&message.seq);
                    }
                }
            }
        }
    }

    fn seqs(&self) -> MutexGuard<'_, HashSet<Seq>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// What to say of a message that was published alone on its own connection.
pub(crate) fn convicted(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Failed(failure) if is_suspect(&failure) => Failure::new(
            Reason::NotEncodable,
            format!(
                "the broker ends the connection over this message: {}",
                failure.detail
            ),
        )
        .into(),
        outcome => outcome,
    }
}

fn is_suspect(failure: &Failure) -> bool {
    (failure.reason, failure.scope) == (Reason::ConnectionLost, Scope::Message)
}
