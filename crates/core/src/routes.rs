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

    /// Decides what becomes of a message that failed, or, not `sent`, was withheld.
    pub fn dispose(
        &mut self,
        message: &Message,
        failure: &Failure,
        sent: bool,
        now: Instant,
        random: f64,
    ) -> Disposition {
        let retry = self.retry;
        let unroutable = self.unroutable.of(&message.exchange);
        let decide = |charge| retry.decide(failure, message.attempts, charge, unroutable, random);
        let outage = self.is_outage();
        let suspension = match failure.scope {
            Scope::Exchange | Scope::Route => self.suspension_mut(message),
            Scope::Message | Scope::Broker => None,
        };
        let Some(suspension) = suspension else {
            return decide(Charge::Yes);
        };
        let refused_itself = sent && failure.reason == Reason::Nacked;
        let its_turn = !outage
            && (sent || message.origin == Origin::Deferred)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Headers, Payload, Properties, Seq, UnroutablePolicy};
    use proptest::prelude::*;

    fn message(exchange: &str, routing_key: &str) -> Message {
        Message {
            seq: Seq(1),
            id: uuid::Uuid::nil(),
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            payload: Payload::Fetched(Vec::new()),
            headers: Headers::default(),
            properties: Properties::default(),
            created_at_unix: 0,
            age_at_claim: Duration::ZERO,
            attempts: 0,
            origin: Origin::Messages,
        }
    }

    /// A message that was deferred and is due.
    fn due(exchange: &str, routing_key: &str, attempts: u32) -> Message {
        Message {
            attempts,
            origin: Origin::Deferred,
            ..message(exchange, routing_key)
        }
    }

    fn failure(reason: Reason) -> Failure {
        Failure::new(reason, "said the broker")
    }

    fn stuck() -> Outcome {
        failure(Reason::ConfirmTimeout)
            .with_scope(Scope::Route)
            .into()
    }

    fn routes() -> Routes {
        let second = Duration::from_secs(1);
        let retry = RetryPolicy::new(5, second, 300 * second, 2.0).unwrap();
        let unroutable = UnroutablePolicies::new(UnroutablePolicy::Retry, HashMap::new());
        Routes::new(retry, unroutable)
    }

    fn observe(routes: &mut Routes, batch: &[(Message, Outcome)], now: Instant) -> Vec<Target> {
        let batch = batch.iter().map(|(message, outcome)| (message, outcome));
        let opened = routes.observe(batch, now, || 1.0);
        opened.into_iter().map(|(target, _)| target).collect()
    }

    fn route(exchange: &str, routing_key: &str) -> Target {
        Target::Route {
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
        }
    }

    fn exchange(name: &str) -> Target {
        Target::Exchange(name.to_owned())
    }

    #[test]
    fn a_missing_exchange_withholds_its_own_messages_and_no_others() {
        let now = Instant::now();
        let mut routes = routes();
        let failed = failure(Reason::ExchangeMissing);
        let batch = [
            (message("gone", "a"), failed.clone().into()),
            (message("here", "a"), Outcome::Confirmed),
            (message("gone", "b"), failed.into()),
        ];
        assert_eq!(observe(&mut routes, &batch, now), [exchange("gone")]);
        let withheld = routes.withheld(&message("gone", "c")).unwrap();
        assert_eq!(withheld.reason, Reason::ExchangeMissing);
        assert!(withheld.detail.contains("gone") && withheld.detail.contains("said the broker"));
        assert!(routes.withheld(&message("here", "a")).is_none());
        assert_eq!(
            routes.resume(&exchange("gone"), now).unwrap().reason,
            Reason::ExchangeMissing
        );
        assert!(routes.is_empty());
        assert!(routes.withheld(&message("gone", "c")).is_none());
    }

    #[test]
    fn a_queue_that_does_not_answer_suspends_its_route_and_charges_nobody() {
        let now = Instant::now();
        let mut routes = routes();
        let batch = [
            (message("e", "stuck"), stuck()),
            (message("e", "well"), Outcome::Confirmed),
        ];
        assert_eq!(observe(&mut routes, &batch, now), [route("e", "stuck")]);
        assert!(routes.withheld(&message("e", "well")).is_none());
        for later in [0, 1_000, 100_000] {
            let message = due("e", "stuck", 3);
            let withheld = routes.withheld(&message).unwrap();
            let later = now + Duration::from_secs(later);
            let disposed = routes.dispose(&message, &withheld, false, later, 0.5);
            assert!(
                matches!(disposed, Disposition::Postpone { .. }),
                "{disposed:?}"
            );
        }
    }

    #[test]
    fn a_lone_message_of_a_missing_exchange_takes_its_attempts_and_a_backlog_does_not() {
        let mut now = Instant::now();
        let mut routes = routes();
        let failed = failure(Reason::ExchangeMissing);
        let batch: Vec<_> = (0..100)
            .map(|_| (message("gone", "k"), failed.clone().into()))
            .chain([(message("here", "k"), Outcome::Confirmed)])
            .collect();
        observe(&mut routes, &batch, now);
        let mut disposed = batch
            .iter()
            .take(100)
            .map(|(message, _)| routes.dispose(message, &failed, true, now, 1.0));
        assert_eq!(
            disposed.next(),
            Some(Disposition::Retry {
                after: Duration::from_secs(1),
                attempts: 1
            })
        );
        assert!(disposed.all(|disposed| matches!(disposed, Disposition::Postpone { .. })));

        for attempts in 1..5 {
            let lone = due("gone", "k", attempts);
            let withheld = routes.withheld(&lone).unwrap();
            now += Duration::from_secs(1 << (attempts - 1));
            let fresh = routes.dispose(&message("gone", "k"), &withheld, false, now, 1.0);
            assert!(matches!(fresh, Disposition::Postpone { .. }), "{fresh:?}");
            let disposed = routes.dispose(&lone, &withheld, false, now, 1.0);
            let expected = match attempts {
                4 => Disposition::GiveUp { attempts: 5 },
                _ => Disposition::Retry {
                    after: Duration::from_secs(1 << attempts),
                    attempts: attempts + 1,
                },
            };
            assert_eq!(disposed, expected);
            let another = routes.dispose(&due("gone", "k", 0), &withheld, false, now, 1.0);
            assert!(
                matches!(another, Disposition::Postpone { .. }),
                "{another:?}"
            );
        }
    }

    #[test]
    fn several_exchanges_refused_at_once_are_an_outage_until_something_is_confirmed() {
        let now = Instant::now();
        let mut routes = routes();
        let failed = failure(Reason::Forbidden);
        let refused = ["a", "b", "c"].map(|name| (message(name, "k"), failed.clone().into()));
        assert_eq!(observe(&mut routes, &refused, now).len(), 3);
        for name in ["a", "b", "c"] {
            let disposed = routes.dispose(&message(name, "k"), &failed, true, now, 0.5);
            assert!(
                matches!(disposed, Disposition::Postpone { .. }),
                "{disposed:?}"
            );
        }
        let later = now + Duration::from_secs(1);
        observe(
            &mut routes,
            &[(message("d", "k"), Outcome::Confirmed)],
            later,
        );
        let disposed = routes.dispose(&due("a", "k", 0), &failed, false, later, 0.5);
        assert!(
            matches!(disposed, Disposition::Retry { .. }),
            "{disposed:?}"
        );
    }

    #[test]
    fn a_route_is_suspended_when_nacks_go_on_and_not_while_its_queue_takes_some() {
        let now = Instant::now();
        let mut routes = routes();
        let nacked = || (message("e", "full"), failure(Reason::Nacked).into());
        let taken = || (message("e", "full"), Outcome::Confirmed);
        for _ in 0..10 {
            assert_eq!(observe(&mut routes, &[nacked(), taken()], now), []);
            assert_eq!(observe(&mut routes, &[nacked()], now), []);
        }
        observe(&mut routes, &[taken()], now);
        assert_eq!(observe(&mut routes, &[nacked(), nacked()], now), []);
        assert_eq!(observe(&mut routes, &[nacked()], now), []);
        assert_eq!(observe(&mut routes, &[nacked()], now), [route("e", "full")]);
        let disposed = routes.dispose(
            &message("e", "full"),
            &failure(Reason::Nacked),
            true,
            now,
            0.5,
        );
        assert!(
            matches!(disposed, Disposition::Retry { .. }),
            "{disposed:?}"
        );
        let withheld = routes.withheld(&message("e", "full")).unwrap();
        let disposed = routes.dispose(&message("e", "full"), &withheld, false, now, 0.5);
        assert!(
            matches!(disposed, Disposition::Postpone { .. }),
            "{disposed:?}"
        );
    }

    #[test]
    fn probes_come_soon_then_later_and_the_longest_due_goes_first() {
        let now = Instant::now();
        let mut routes = routes();
        observe(&mut routes, &[(message("e", "1"), stuck())], now);
        observe(
            &mut routes,
            &[(message("e", "2"), stuck())],
            now + Duration::from_secs(10),
        );
        let first = routes.next_probe().unwrap();
        assert_eq!(first, now + Duration::from_secs(1));
        assert_eq!(routes.due_for_probe(now), None);
        let mut waits = Vec::new();
        let mut at = now + Duration::from_secs(60);
        assert_eq!(routes.due_for_probe(at), Some(route("e", "1")));
        routes.resume(&route("e", "2"), at);
        for _ in 0..6 {
            routes.probe_failed(&route("e", "1"), at, 1.0);
            let next = routes.next_probe().unwrap();
            waits.push((next - at).as_secs());
            at = next;
        }
        assert_eq!(waits, [2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn a_target_for_which_nothing_waits_is_forgotten_at_the_second_look() {
        let now = Instant::now();
        let mut routes = routes();
        observe(&mut routes, &[(message("e", "1"), stuck())], now);
        let target = route("e", "1");
        assert!(routes.nothing_waits(&target, now, 1.0).is_none());
        routes.probe_failed(&target, now, 1.0);
        assert!(routes.nothing_waits(&target, now, 1.0).is_none());
        assert!(routes.next_probe().unwrap() > now);
        assert_eq!(
            routes.nothing_waits(&target, now, 1.0).unwrap().reason,
            Reason::ConfirmTimeout
        );
        assert!(routes.is_empty());
    }

    #[test]
    fn past_the_bound_nothing_is_suspended_and_each_message_pays_for_itself() {
        let now = Instant::now();
        let mut routes = routes();
        for n in 0..CAPACITY + 10 {
            let name = n.to_string();
            observe(
                &mut routes,
                &[(message(&name, "k"), failure(Reason::ExchangeMissing).into())],
                now,
            );
        }
        assert_eq!(routes.iter().count(), CAPACITY);
        let past = message(&(CAPACITY + 5).to_string(), "k");
        assert!(routes.withheld(&past).is_none());
        let disposed = routes.dispose(&past, &failure(Reason::ExchangeMissing), true, now, 0.5);
        assert!(
            matches!(disposed, Disposition::Retry { attempts: 1, .. }),
            "{disposed:?}"
        );
    }

    proptest! {
        #[test]
        fn at_most_one_message_of_an_exchange_is_charged_within_the_wait_of_the_last(
            steps in prop::collection::vec((0u64..20, any::<bool>(), 0u32..4, 0.0f64..1.0), 1..100)
        ) {
            let mut now = Instant::now();
            let mut routes = routes();
            let failed = failure(Reason::Forbidden);
            observe(&mut routes, &[
                (message("e", "k"), failed.clone().into()),
                (message("other", "k"), Outcome::Confirmed),
            ], now);
            let mut free = now;
            for (seconds, is_due, attempts, random) in steps {
                now += Duration::from_secs(seconds);
                let message = if is_due { due("e", "k", attempts) } else { message("e", "k") };
                match routes.dispose(&message, &failed, false, now, random) {
                    Disposition::Retry { after, attempts: charged } => {
                        prop_assert!(is_due && now >= free);
                        prop_assert_eq!(charged, attempts + 1);
                        free = now + after;
                    }
                    Disposition::Postpone { .. } => prop_assert!(!is_due || now < free),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
    }
}
