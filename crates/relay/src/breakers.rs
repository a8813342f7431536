//! The breakers as the tasks of one relay share them: [`Routes`] behind a lock, told to log and metrics.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use postrider_core::{
    Failure, Message, Outcome, Payload, Reason, RetryPolicy, Routes, Sent, Seq, Suspension, Target,
    UnroutablePolicies,
};
use tokio::sync::Notify;
use tracing::{info, warn};
use uuid::Uuid;

use crate::disposal::Batch;
use crate::metrics::Metrics;
use crate::suspects::Suspects;

#[derive(Debug)]
pub(crate) struct Breakers {
    routes: Mutex<Routes>,
    metrics: Arc<Metrics>,
    /// Something was suspended: the prober has to look again.
    suspended: Notify,
}

/// A claimed batch, and what of it is not to be sent.
#[derive(Debug)]
pub(crate) struct Split {
    pub(crate) send: Vec<Message>,
    /// How many of those, the last, are to be sent one by one, on a connection of their own.
    pub(crate) alone: usize,
    pub(crate) withheld: Vec<(Message, Failure)>,
    /// Messages were left out that follow, in their key, one that is not sent now.
    pub(crate) left: bool,
    /// What else the settle of an ordered claim does.
    pub(crate) ordered: OrderedSplit,
}

/// What a claim of messages with a key holds besides what is sent.
#[derive(Debug, Default)]
pub(crate) struct OrderedSplit {
    /// To be parked.
    pub(crate) park: Vec<Seq>,
    /// Those that a message stands for.
    pub(crate) superseded: HashMap<Seq, Vec<(Seq, Uuid)>>,
}

impl Split {
    /// To be sent as it is.
    pub(crate) fn of(send: Vec<Message>) -> Self {
        Self {
            send,
            alone: 0,
            withheld: Vec::new(),
            left: false,
            ordered: OrderedSplit::default(),
        }
    }

    /// Has those under suspicion sent alone, after all others; what follows one of them in its key is left out.
    pub(crate) fn put_suspects_last(&mut self, suspects: &Suspects) {
        self.alone = suspects.put_last(&mut self.send);
        let first = self.send.len().saturating_sub(self.alone);
        let mut suspected: HashMap<String, Seq> = HashMap::new();
        for message in self.send.iter().skip(first) {
            if let Some(key) = message.key() {
                let seq = suspected.entry(key.to_owned()).or_insert(message.seq);
                *seq = (*seq).min(message.seq);
            }
        }
        if suspected.is_empty() {
            return;
        }
        let mut alone = 0;
        let mut position = 0;
        let before = self.send.len();
        self.send.retain(|message| {
            let is_alone = position >= first;
            position += 1;
            let follows = message
                .key()
                .and_then(|key| suspected.get(key))
                .is_some_and(|suspect| message.seq > *suspect);
            alone += usize::from(is_alone && !follows);
            !follows
        });
        self.alone = alone;
        self.left |= self.send.len() < before;
    }
}

impl Breakers {
    pub(crate) fn new(routes: Routes, metrics: Arc<Metrics>) -> Self {
        Self {
            routes: Mutex::new(routes),
            metrics,
            suspended: Notify::new(),
        }
    }

    /// Decides by another policy from the next batch on.
    pub(crate) fn decide_by(&self, retry: RetryPolicy, unroutable: UnroutablePolicies) {
        self.routes().decide_by(retry, unroutable);
    }

    /// Takes out what goes to a suspended exchange or route.
    pub(crate) fn split(&self, messages: Vec<Message>) -> Split {
        let routes = self.routes();
        if routes.is_empty() {
            return Split::of(messages);
        }
        let mut split = Split::of(Vec::with_capacity(messages.len()));
        let mut sent: HashSet<String> = HashSet::new();
        let mut stopped: HashSet<String> = HashSet::new();
        for message in messages {
            // What is too large to be sent anywhere is given up at once, rather than copied about.
            let failure = match message.payload {
                Payload::Fetched(_) => routes.withheld(&message),
                Payload::TooLarge { .. } => None,
            };
            if let Some(key) = message.key() {
                // Withheld, it moves to the deferred messages: only the first of its key may.
                let follows = stopped.contains(key) || failure.is_some() && sent.contains(key);
                if follows || failure.is_some() {
                    stopped.insert(key.to_owned());
                } else {
                    sent.insert(key.to_owned());
                }
                if follows {
                    split.left = true;
                    continue;
                }
            }
            match failure {
                Some(failure) => split.withheld.push((message, failure)),
                None => split.send.push(message),
            }
        }
        split
    }

    /// Takes note of what became of the messages that were sent, and decides what becomes of all.
    pub(crate) fn sort<'a>(
        &self,
        split: &'a Split,
        outcomes: Vec<Outcome>,
        probing: bool,
    ) -> Batch<'a> {
        let sent = &split.send;
        let now = Instant::now();
        let mut routes = self.routes();
        let opened = routes.observe(sent.iter().zip(&outcomes), now, rand::random);
        for (target, suspension) in &opened {
            warn!(
                event = "route_suspended",
                exchange = target.exchange(),
                routing_key = target.routing_key(),
                reason = suspension.reason.as_str(),
                error = suspension.detail,
                "its messages are deferred, and one is tried now and then, until one gets through"
            );
        }
        if !opened.is_empty() {
            self.show(&routes);
            self.suspended.notify_one();
        }
        let mut awaited = BTreeSet::new();
        let mut batch = Batch::sort(split, outcomes, |message, failure, sent| {
            // A probe is sent for all that wait for its target: its message does not pay for that.
            let sent = match (sent, probing) {
                (true, false) => Sent::ForItself,
                (true, true) => Sent::AsProbe,
                (false, _) => Sent::No,
            };
            awaited.extend(routes.awaited(message, failure, sent));
            routes.dispose(message, failure, sent, now, rand::random())
        });
        batch.awaited = awaited.into_iter().collect();
        batch
    }

    /// Those that are suspended no longer.
    pub(crate) fn resumed_meanwhile(&self, awaited: &[Target]) -> Vec<Target> {
        if awaited.is_empty() {
            return Vec::new();
        }
        let routes = self.routes();
        awaited
            .iter()
            .filter(|target| routes.reason(target).is_none())
            .cloned()
            .collect()
    }

    /// The target to be probed now, or when the next one is; nothing when none is suspended.
    pub(crate) fn next_probe(&self) -> Probe {
        let routes = self.routes();
        match (routes.due_for_probe(Instant::now()), routes.next_probe()) {
            (Some(target), _) => Probe::Now(target),
            (None, Some(at)) => Probe::At(at),
            (None, None) => Probe::Never,
        }
    }

    /// Waits until something is suspended.
    pub(crate) async fn suspended(&self) {
        self.suspended.notified().await;
    }

    pub(crate) fn probe_failed(&self, target: &Target) {
        self.routes()
            .probe_failed(target, Instant::now(), rand::random());
    }

    /// No message of the target waits: after two such looks it is forgotten. Two, because a worker may have had the
    /// only one in its hands.
    pub(crate) fn nothing_waits(&self, target: &Target) {
        let mut routes = self.routes();
        if let Some(suspension) = routes.nothing_waits(target, Instant::now(), rand::random()) {
            self.show(&routes);
            say_resumed(target, &suspension, "no message waits for it any more");
        }
    }

    /// A message got through: the target is resumed. Says whether it was suspended.
    pub(crate) fn resume(&self, target: &Target) -> bool {
        let mut routes = self.routes();
        let Some(suspension) = routes.resume(target, Instant::now()) else {
            return false;
        };
        self.show(&routes);
        say_resumed(target, &suspension, "a message got through");
        true
    }

    /// A confirm came late: a route that was suspended for its absence is resumed. Says whether it was.
    pub(crate) fn confirmed_late(&self, target: &Target) -> bool {
        let stuck = self.routes().reason(target) == Some(Reason::ConfirmTimeout);
        stuck && self.resume(target)
    }

    fn show(&self, routes: &Routes) {
        let suspended = routes
            .iter()
            .map(|(target, suspension)| (target.exchange(), suspension.reason));
        self.metrics.suspended(suspended);
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// What the prober does next.
#[derive(Debug)]
pub(crate) enum Probe {
    Now(Target),
    At(Instant),
    Never,
}

fn say_resumed(target: &Target, suspension: &Suspension, why: &str) {
    info!(
        event = "route_resumed",
        exchange = target.exchange(),
        routing_key = target.routing_key(),
        reason = suspension.reason.as_str(),
        suspended_s = suspension.since.elapsed().as_secs_f64(),
        "{why}"
    );
}
