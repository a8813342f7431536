//! Open writers that the beginnings of lanes have passed.
//!
//! A transaction that has written a message and stays open will put it, when it commits, in front of all that was delivered
//! meanwhile. Order rests on finding it then: its key's next message is written by a transaction that waited for this one, so whatever
//! shows the next shows it too, and a claim that began above it would send the next alone. A lane that began below it for as long as it
//! is open would be safe, and walked over from there by every claim, dead rows and all: 0.45 of the rate behind 200,000 of them.
//!
//! So a lane begins above it, and the claim asks the snapshot with which it reads the rows whether any writer that was passed has ended in it
//! (`pg_visible_in_snapshot`). If so, it begins where the lowest of those may have written. One statement, one snapshot: a
//! row is shown if and only if its writer is shown to have ended.
//!
//! # What may be passed
//!
//! After a look at the writers, whatever a later snapshot does not show yet is at or above the look's `next`, or of a writer that the look
//! showed ([`Floor`]). Of those, the ones that two looks have shown are passed, as the frontier does: they are open for long. The others bound
//! the beginning: they end soon, and each that does would send a claim back. So does one whose id the look did not show: it has written
//! nothing yet, or was just ending.

use std::collections::HashMap;
use std::sync::Arc;

use crate::{Floor, Seq, TransactionId, Writer};

/// An open writer that beginnings have passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PassedWriter {
    /// Its id; subtransactions end with it.
    pub transaction: TransactionId,
    /// All it has written is at or above this; `None` is anywhere.
    pub since: Option<Seq>,
}

/// How far lanes may begin, by what was known of the writers before the snapshot of a claim was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passable {
    /// Nothing appears below it but what the passed ones have written.
    pub(super) below: Option<Seq>,
    pub(super) passed: Arc<[PassedWriter]>,
}

impl Passable {
    /// By the newest look, and the ids that it showed.
    #[must_use]
    pub fn new(floor: &Floor<Seq>, ids: &HashMap<Writer, TransactionId>) -> Self {
        let mut below = floor.fresh();
        let mut passed = Vec::new();
        for (writer, since) in floor.old_writers() {
            match ids.get(&writer) {
                Some(&transaction) => passed.push(PassedWriter { transaction, since }),
                None => below = below.min(since),
            }
        }
        Self {
            below,
            passed: passed.into(),
        }
    }
}
