//! The breakers: which exchanges and routes are suspended, when each is probed, and which of their
//! messages are charged.
//!
//! A message of a suspended target is not published: it is deferred, so that it neither holds up the
//! channel it would share with others nor loses its attempts to a fault that is not its own. One message
//! of the target is tried now and then, by a prober with a channel of its own; when it gets through, the
//! target is resumed.
//!
//! # Who pays
//! A backlog must not become dead letters because its exchange was missing for an hour. Yet a message to
//! an exchange that never existed must not wait for ever without anybody being told. So at most one
//! message of a suspended exchange is charged at a time, at the pace of the retry policy: one that came
//! due by its own time, while no other was charged within that one's wait. A lone message therefore takes
//! its attempts and its way to the dead letters as if there were no breaker. A queue that does not
//! answer charges nobody. Nor does a refusal by several exchanges at once with no confirm since: that is
//! an outage of the broker, or of the relay's permissions there.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::{
    Backoff, Charge, Disposition, Failure, Message, Origin, Outcome, Reason, RetryPolicy, Scope,
    Target, UnroutablePolicies,
};

/// How many exchanges and routes can be suspended at the same time. Past it, messages that fail are
/// charged each by itself.
const CAPACITY: usize = 1_000;
/// After how many batches in a row with a nack and no confirm a route is suspended. A queue that is
/// merely near its limit takes some of each batch.
const NACKED_BATCHES: u32 = 3;
/// How many exchanges that are refused at once, with no confirm since, are an outage.
const REFUSED_AT_ONCE: usize = 2;

/// The breakers of one relay, fed with the outcomes of its workers and of its prober. In memory only:
/// after a restart each target is found out once more.
#[derive(Debug)]
pub struct Routes {
    retry: RetryPolicy,
    unroutable: UnroutablePolicies,
    suspended: HashMap<Target, Suspension>,
    /// Batches in a row with a nack and no confirm.
    nacked: HashMap<Target, u32>,
    confirmed_at: Option<Instant>,
}

/// Why and since when a target is suspended.
#[derive(Debug, Clone)]
pub struct Suspension {
    /// The reason.
    pub reason: Reason,
    /// What the broker or the relay said when it was suspended.
    pub detail: String,
    /// Since when.
    pub since: Instant,
    backoff: Backoff,
    next_probe: Instant,
    next_charge: Instant,
    found_nothing: bool,
}

/// Whether a message that failed was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// For its own sake.
    ForItself,
    /// To find out about a suspended target, for all that wait for it.
    AsProbe,
    /// Not at all: it was withheld, because its target was suspended when it was claimed.
    No,
}

impl Routes {
    /// No target waits longer for its next probe: traffic that could flow again waits for it.
    pub const LONGEST_PROBE: Duration = Duration::from_secs(30);

    /// Nothing is suspended yet. Probes begin after `initial_delay` of the retry policy, and the waits between
    /// them grow to `max_delay`, but not above [`Self::LONGEST_PROBE`].
    #[must_use]
    pub fn new(retry: RetryPolicy, unroutable: UnroutablePolicies) -> Self {
        Self {
            retry,
            unroutable,
            suspended: HashMap::new(),
            nacked: HashMap::new(),
            confirmed_at: None,
        }
    }

    /// Decides by another policy from now on. What is suspended already is probed after the waits it began with.
    pub fn decide_by(&mut self, retry: RetryPolicy, unroutable: UnroutablePolicies) {
        self.retry = retry;
        self.unroutable = unroutable;
    }

    /// Whether nothing is suspended: then no message has to be asked about.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.suspended.is_empty()
    }

    /// The failure of a message that is not to be sent now, because its exchange or its route is suspended.
    #[must_use]
    pub fn withheld(&self, message: &Message) -> Option<Failure> {
        let (target, suspension) = self.of(message)?;
        let scope = match target {
            Target::Exchange(_) => Scope::Exchange,
            Target::Route { .. } => Scope::Route,
        };
        let detail = format!("not sent, {target} is suspended: {}", suspension.detail);
        Some(Failure::new(suspension.reason, detail).with_scope(scope))
    }

    /// Takes note of a batch that was published, and returns what is suspended for it that was not before.
    /// `random` gives numbers from 0 to 1 for the jitter of the probes.
    pub fn observe<'a>(
        &mut self,
        batch: impl Iterator<Item = (&'a Message, &'a Outcome)> + Clone,
        now: Instant,
        mut random: impl FnMut() -> f64,
    ) -> Vec<(Target, Suspension)> {
        let mut opened = Vec::new();
        let mut nacked: HashMap<Target, &Failure> = HashMap::new();
        for (message, outcome) in batch.clone() {
            let failure = match outcome {
                Outcome::Confirmed => {
                    self.confirmed_at = Some(now);
                    continue;
                }
                Outcome::HeldBack => continue,
                Outcome::Failed(failure) => failure,
            };
            let target = match (failure.scope, failure.reason) {
                (Scope::Message | Scope::Broker, _) => continue,
                (Scope::Exchange, _) => Target::Exchange(message.exchange.clone()),
                (Scope::Route, Reason::Nacked) => {
                    nacked.insert(route_of(message), failure);
                    continue;
                }
                (Scope::Route, _) => route_of(message),
            };
            opened.extend(self.suspend(target, failure, now, &mut random));
        }
        if !self.nacked.is_empty() || !nacked.is_empty() {
            for (message, outcome) in batch {
                if *outcome == Outcome::Confirmed {
                    let route = route_of(message);
                    nacked.remove(&route);
                    self.nacked.remove(&route);
                }
            }
        }
        for (route, failure) in nacked {
            let known = self.nacked.get(&route).copied();
            let batches = known.unwrap_or(0).saturating_add(1);
            if batches >= NACKED_BATCHES {
                self.nacked.remove(&route);
                opened.extend(self.suspend(route, failure, now, &mut random));
            } else if known.is_some() || self.nacked.len() < CAPACITY {
                self.nacked.insert(route, batches);
            }
        }
        opened
    }

    /// The suspended target whose resumption is to let go of a message that failed, if it is deferred. `None` when
    /// it waits for its own time alone.
    ///
    /// Of a message that was withheld also when the target is suspended no longer: its row was locked while
    /// the target was resumed, and nobody has let go of it.
    #[must_use]
    pub fn awaited(&self, message: &Message, failure: &Failure, sent: Sent) -> Option<Target> {
        let of_failure = match failure.scope {
            Scope::Message | Scope::Broker => return None,
            Scope::Exchange => Target::Exchange(message.exchange.clone()),
            Scope::Route => route_of(message),
        };
        match (self.of(message), sent) {
            (Some((target, _)), _) => Some(target),
            (None, Sent::No) => Some(of_failure),
            (None, Sent::ForItself | Sent::AsProbe) => None,
        }
    }

    /// Decides what becomes of a message that failed or was withheld.
    pub fn dispose(
        &mut self,
        message: &Message,
        failure: &Failure,
        sent: Sent,
        now: Instant,
        random: f64,
    ) -> Disposition {
        let retry = self.retry;
        let unroutable = self.unroutable.of(&message.exchange);
        let decide = |charge| retry.decide(failure, message.attempts, charge, unroutable, random);
        let outage = self.is_outage();
        let suspension = match failure.scope {
            Scope::Exchange | Scope::Route => self.suspension_mut(message),
            Scope::Message | Scope::Broker => return decide(Charge::Yes),
        };
        let Some(suspension) = suspension else {
            return decide(match sent {
                Sent::ForItself | Sent::AsProbe => Charge::Yes,
                // Resumed since it was claimed: this message has not been tried.
                Sent::No => Charge::No,
            });
        };
        let for_itself = sent == Sent::ForItself;
        let refused_itself = for_itself && failure.reason == Reason::Nacked;
        let its_turn = !outage
            && (for_itself || message.origin == Origin::Deferred)
            && now >= suspension.next_charge;
        let decided = decide(if refused_itself || its_turn {
            Charge::Yes
        } else {
            Charge::No
        });
        match decided {
            Disposition::Retry { after, .. } => suspension.next_charge = now + after,
            Disposition::GiveUp { attempts } => {
                suspension.next_charge = now + retry.delay(attempts, 1.0);
            }
            Disposition::Done | Disposition::Stay | Disposition::Postpone { .. } => {}
        }
        decided
    }

    /// When the next target is to be probed; `None` when nothing is suspended.
    #[must_use]
    pub fn next_probe(&self) -> Option<Instant> {
        self.suspended
            .values()
            .map(|suspension| suspension.next_probe)
            .min()
    }

    /// The target whose probe has been due for longest at `now`.
    #[must_use]
    pub fn due_for_probe(&self, now: Instant) -> Option<Target> {
        self.suspended
            .iter()
            .filter(|(_, suspension)| suspension.next_probe <= now)
            .min_by_key(|(_, suspension)| suspension.next_probe)
            .map(|(target, _)| target.clone())
    }

    /// A probe at `now` did not get through: the next one waits longer.
    pub fn probe_failed(&mut self, target: &Target, now: Instant, random: f64) {
        if let Some(suspension) = self.suspended.get_mut(target) {
            suspension.next_probe = now + suspension.backoff.next(random);
            suspension.found_nothing = false;
        }
    }

    /// A message of the target got through at `now`: it is suspended no longer. Returns why it was; `None` when it
    /// was not.
    pub fn resume(&mut self, target: &Target, now: Instant) -> Option<Suspension> {
        self.confirmed_at = Some(now);
        self.suspended.remove(target)
    }

    /// A probe at `now` found no message of the target to send. The second time in a row it is suspended no
    /// longer, and the next message finds out how it is. Returns why it was suspended.
    pub fn nothing_waits(
        &mut self,
        target: &Target,
        now: Instant,
        random: f64,
    ) -> Option<Suspension> {
        let suspension = self.suspended.get_mut(target)?;
        if suspension.found_nothing {
            return self.suspended.remove(target);
        }
        suspension.found_nothing = true;
        suspension.next_probe = now + suspension.backoff.next(random);
        None
    }

    /// Why the target is suspended; `None` when it is not.
    #[must_use]
    pub fn reason(&self, target: &Target) -> Option<Reason> {
        Some(self.suspended.get(target)?.reason)
    }

    /// Every suspended target, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Target, &Suspension)> {
        self.suspended.iter()
    }

    /// Several exchanges are refused, and nothing has been confirmed since: not their fault.
    fn is_outage(&self) -> bool {
        let refused = self.suspended.iter().filter(|(target, suspension)| {
            matches!(target, Target::Exchange(_))
                && self
                    .confirmed_at
                    .is_none_or(|confirmed| suspension.since > confirmed)
        });
        refused.take(REFUSED_AT_ONCE).count() >= REFUSED_AT_ONCE
    }

    fn suspend(
        &mut self,
        target: Target,
        failure: &Failure,
        now: Instant,
        random: &mut impl FnMut() -> f64,
    ) -> Option<(Target, Suspension)> {
        if self.suspended.contains_key(&target) || self.suspended.len() >= CAPACITY {
            return None;
        }
        let mut backoff = Backoff::new(
            self.retry.initial_delay(),
            self.retry.max_delay().min(Self::LONGEST_PROBE),
        );
        let suspension = Suspension {
            reason: failure.reason,
            detail: failure.detail.clone(),
            since: now,
            next_probe: now + backoff.next(random()),
            backoff,
            next_charge: now,
            found_nothing: false,
        };
        self.suspended.insert(target.clone(), suspension.clone());
        Some((target, suspension))
    }

    fn of(&self, message: &Message) -> Option<(Target, &Suspension)> {
        if self.suspended.is_empty() {
            return None;
        }
        targets_of(message)
            .into_iter()
            .find_map(|target| Some((target.clone(), self.suspended.get(&target)?)))
    }

    fn suspension_mut(&mut self, message: &Message) -> Option<&mut Suspension> {
        let (target, _) = self.of(message)?;
        self.suspended.get_mut(&target)
    }
}

fn route_of(message: &Message) -> Target {
    Target::Route {
        exchange: message.exchange.clone(),
        routing_key: message.routing_key.clone(),
    }
}

fn targets_of(message: &Message) -> [Target; 2] {
    [
        Target::Exchange(message.exchange.clone()),
        route_of(message),
    ]
}
