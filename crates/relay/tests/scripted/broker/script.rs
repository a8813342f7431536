//! What each message meets, and what waits for an answer.

use std::collections::{HashMap, HashSet, VecDeque};

use postrider_core::{Message, Reason, Scope};
use uuid::Uuid;

use super::{Batch, Route};
use crate::fate::Fate;

#[derive(Debug, Default)]
pub(super) struct Script {
    /// Of each message, for its next publishes.
    pub(super) fates: HashMap<Uuid, VecDeque<Fate>>,
    /// Of each message, for every publish after those.
    pub(super) always: HashMap<Uuid, Fate>,
    /// Messages that end every connection they are sent on.
    pub(super) culprits: HashSet<Uuid>,
    pub(super) refusing: HashMap<String, Reason>,
    pub(super) full: HashSet<Route>,
    pub(super) stuck: HashSet<Route>,
    /// Published, and neither taken nor answered.
    pub(super) waiting: Vec<Waiting>,
    pub(super) batches: Vec<Batch>,
    /// How long the broker is away after the script ended a connection.
    pub(super) away_ms: u64,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) ticket: u64,
    pub(super) generation: u64,
    pub(super) id: Uuid,
    /// Answered when this route is no longer stuck.
    pub(super) stuck: Option<Route>,
    /// Answered on command, or not at all.
    pub(super) commanded: bool,
}

/// What a message meets.
pub(super) enum Drawn {
    Fate(Fate),
    Culprit,
    Stuck(Route),
    /// Not the broker's attention: the connection ended before.
    NotReached,
    /// Not sent: an earlier message of its key was not confirmed.
    HeldBack,
}

impl Drawn {
    /// Whether the next message of its key may be sent.
    pub(super) fn is_confirmed(&self) -> bool {
        match self {
            Self::Fate(Fate::Confirmed { .. } | Fate::Alarm { .. }) => true,
            Self::Fate(
                Fate::TakenThenLost | Fate::Lost | Fate::Late { .. } | Fate::Refused(..),
            )
            | Self::Culprit
            | Self::Stuck(_)
            | Self::NotReached
            | Self::HeldBack => false,
        }
    }

    pub(super) fn ends_connection(&self) -> bool {
        matches!(
            self,
            Self::Culprit | Self::Fate(Fate::TakenThenLost | Fate::Lost)
        )
    }
}

impl Script {
    pub(super) fn draw(&mut self, message: &Message) -> Drawn {
        let route = (message.exchange.clone(), message.routing_key.clone());
        if self.culprits.contains(&message.id) {
            return Drawn::Culprit;
        }
        if let Some(reason) = self.refusing.get(&message.exchange) {
            return Drawn::Fate(Fate::Refused(*reason, Scope::Exchange));
        }
        let always = self.always.get(&message.id).copied();
        // What is refused by itself does not come to a queue.
        let comes_to_queue = !matches!(always, Some(Fate::Refused(_, Scope::Message)));
        if comes_to_queue && self.stuck.contains(&route) {
            return Drawn::Stuck(route);
        }
        if comes_to_queue && self.full.contains(&route) {
            return Drawn::Fate(Fate::NACKED);
        }
        let fate = self
            .fates
            .get_mut(&message.id)
            .and_then(VecDeque::pop_front);
        Drawn::Fate(fate.or(always).unwrap_or(Fate::CONFIRMED))
    }

    pub(super) fn take_waiting(&mut self, which: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        self.waiting
            .extract_if(.., |waiting| which(waiting))
            .collect()
    }
}
