//! What a claim's rows are for: to be sent, parked, or not needed any more.

use std::collections::{HashMap, HashSet};

use crate::{MOST_MOVED_BYTES, Message, Payload, Seq};

/// One row of a claimed lane, as a snapshot under the lane's lock showed it.
#[expect(
    clippy::large_enum_variant,
    reason = "most rows are free, and a box for each would cost more than the others waste"
)]
#[derive(Debug, Clone)]
pub enum OrderedRow {
    /// Locked, and its key is free.
    Free(Message),
    /// Locked, and its key is blocked.
    Blocked {
        /// Its place.
        seq: Seq,
        /// Its key.
        key: String,
        /// The size of its payload, which is not fetched.
        bytes: u64,
    },
    /// It is there and cannot be had: someone else has locked it, it is left out, or there is no room for its bytes.
    Held {
        /// Its key.
        key: String,
    },
}

impl OrderedRow {
    /// Of one that may be taken.
    #[must_use]
    pub fn seq(&self) -> Option<Seq> {
        match self {
            Self::Free(message) => Some(message.seq),
            Self::Blocked { seq, .. } => Some(*seq),
            Self::Held { .. } => None,
        }
    }

    fn key(&self) -> Option<&str> {
        match self {
            Self::Free(message) => message.key(),
            Self::Blocked { key, .. } | Self::Held { key } => Some(key),
        }
    }
}

/// What becomes of the rows of an ordered claim.
#[derive(Debug, Clone, Default)]
pub struct OrderedPlan {
    /// To be published, those of one key in the order of their `seq`.
    pub send: Vec<Message>,
    /// To be parked behind the head of their key.
    pub park: Vec<Seq>,
    /// Of a message to be sent, those that it stands for: they leave when, and only when, it is delivered.
    pub superseded: HashMap<Seq, Vec<Seq>>,
    /// Rows were left where they are: there is more of their keys.
    pub held: bool,
}

impl OrderedPlan {
    /// Plans rows, of which those of each key come in the order of their `seq`. `one_by_one`: messages that must not stand for others, nor be stood
    /// for: what may have been sent already, and what failed when it stood for others.
    ///
    /// Of each key the rows are taken up to the first that is held. Those of a blocked key are parked, or held where their bytes are too many for
    /// one transaction. Of the others, messages next
    /// to each other that are all marked [`supersede`](crate::Ordered::supersede) and go to one exchange and routing key
    /// are one message: the newest. A payload that is too large to be sent stands for nobody.
    #[must_use]
    pub fn new(rows: Vec<OrderedRow>, one_by_one: &HashSet<Seq>) -> Self {
        let mut plan = Self {
            send: Vec::with_capacity(rows.len()),
            ..Self::default()
        };
        let mut held: HashSet<String> = HashSet::new();
        // Of each key whose last message so far may be superseded, the position of that in `send`.
        let mut last: HashMap<String, usize> = HashMap::new();
        let mut parked_bytes: u64 = 0;
        for row in rows {
            if row.key().is_some_and(|key| held.contains(key)) {
                continue;
            }
            match row {
                OrderedRow::Held { key } => {
                    held.insert(key);
                }
                OrderedRow::Blocked { key, .. } if parked_bytes >= MOST_MOVED_BYTES => {
                    held.insert(key);
                }
                OrderedRow::Blocked { seq, bytes, .. } => {
                    parked_bytes = parked_bytes.saturating_add(bytes);
                    plan.park.push(seq);
                }
                OrderedRow::Free(message) => plan.take(message, &mut last, one_by_one),
            }
        }
        plan.held = !held.is_empty();
        plan
    }

    fn take(
        &mut self,
        message: Message,
        last: &mut HashMap<String, usize>,
        one_by_one: &HashSet<Seq>,
    ) {
        let Some(ordered) = &message.ordered else {
            self.send.push(message);
            return;
        };
        // Most messages are not marked so, and most batches have none that is.
        let before = if last.is_empty() {
            None
        } else {
            last.remove(&ordered.key)
        };
        if !ordered.supersede {
            self.send.push(message);
            return;
        }
        let key = ordered.key.clone();
        if let Some(position) = before
            && let Some(place) = self.send.get_mut(position)
            && stands_for(&message, place, one_by_one)
        {
            let mut gone = self.superseded.remove(&place.seq).unwrap_or_default();
            gone.push(place.seq);
            self.superseded.insert(message.seq, gone);
            *place = message;
            last.insert(key, position);
            return;
        }
        last.insert(key, self.send.len());
        self.send.push(message);
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.send.is_empty() && self.park.is_empty()
    }
}

/// Whether `newer`, the next of its key, makes `older` needless.
fn stands_for(newer: &Message, older: &Message, one_by_one: &HashSet<Seq>) -> bool {
    let may_be_superseded = |message: &Message| {
        message
            .ordered
            .as_ref()
            .is_some_and(|ordered| ordered.supersede)
            && message.attempts == 0
            && matches!(message.payload, Payload::Fetched(_))
            && !one_by_one.contains(&message.seq)
    };
    may_be_superseded(newer)
        && may_be_superseded(older)
        && newer.exchange == older.exchange
        && newer.routing_key == older.routing_key
}

#[cfg(test)]
mod tests;
