//! The plan: which fault comes when and for how long, by seed and length alone.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng, seq::SliceRandom};

use super::fault::{Fault, Need, Peer, RELAYS, STUCK_QUEUES, Trouble};

/// Nothing fails before: relays and consumers have to be there once.
const CALM_MS: u64 = 3_000;

/// From one fault's beginning to the next one's.
const GAP_MS: std::ops::RangeInclusive<u64> = 500..=3_500;

/// From the end of a storm to the lull's first fault, and from the end of a lull to the next storm: so long effects may be
/// felt, as long as the relays' `confirm_timeout`.
pub(crate) const REST_MS: u64 = 12_000;

/// One fault in so many is longer, up to three times.
const LONGER_ONE_IN: u32 = 8;

/// A server that is about to go down gets so long to write what was declared: RabbitMQ keeps fresh exchanges and
/// bindings in memory for a moment, and a kill would undo them.
const SETTLE_MS: u64 = 3_000;

/// All faults of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) seconds: u64,
    /// By their beginning.
    pub(crate) faults: Vec<Planned>,
}

/// A fault with its time, in milliseconds from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) fault: Fault,
    pub(crate) at_ms: u64,
    pub(crate) for_ms: u64,
}

/// A fault to be drawn, still without its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Card {
    RelayKilled,
    RelayTerminated,
    RelayPaused,
    BrokerKilled,
    BrokerStopped,
    ConnectionsClosed,
    MemoryAlarm,
    QueueSuspended,
    ExchangeMissing,
    WriteForbidden,
    QueueFull,
    BindingMissing,
    DatabaseRestarted,
    BackendsTerminated,
    DatabaseReadOnly,
    RowsKept,
    SnapshotHeld,
    Path(Peer, Manner),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Cut,
    RequestsStalled,
    AnswersStalled,
    Slowed,
}

const CARDS: [Card; 25] = [
    Card::RelayKilled,
    Card::RelayTerminated,
    Card::RelayPaused,
    Card::BrokerKilled,
    Card::BrokerStopped,
    Card::ConnectionsClosed,
    Card::MemoryAlarm,
    Card::QueueSuspended,
    Card::ExchangeMissing,
    Card::WriteForbidden,
    Card::QueueFull,
    Card::BindingMissing,
    Card::DatabaseRestarted,
    Card::BackendsTerminated,
    Card::DatabaseReadOnly,
    Card::RowsKept,
    Card::SnapshotHeld,
    Card::Path(Peer::Broker, Manner::Cut),
    Card::Path(Peer::Broker, Manner::RequestsStalled),
    Card::Path(Peer::Broker, Manner::AnswersStalled),
    Card::Path(Peer::Broker, Manner::Slowed),
    Card::Path(Peer::Database, Manner::Cut),
    Card::Path(Peer::Database, Manner::RequestsStalled),
    Card::Path(Peer::Database, Manner::AnswersStalled),
    Card::Path(Peer::Database, Manner::Slowed),
];

const CARDS_OF_ONE_ROUTE: [Card; 6] = [
    Card::QueueSuspended,
    Card::ExchangeMissing,
    Card::WriteForbidden,
    Card::QueueFull,
    Card::BindingMissing,
    Card::SnapshotHeld,
];

impl Plan {
    /// The plan of this seed and length: the same whenever and wherever it is drawn.
    ///
    /// Storms, in which anything may fail and each kind of fault comes before any comes again, take turns with lulls, in
    /// which single routes fail only: whether one delays another does not show in a storm.
    pub(crate) fn draw(seed: u64, seconds: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let end = seconds * 1000;
        let mut plan = Self {
            seed,
            seconds,
            faults: Vec::new(),
        };
        let mut at_ms = CALM_MS;
        while at_ms < end {
            at_ms = plan.deal(&CARDS, at_ms, end, &mut random);
            at_ms = at_ms.max(plan.storm_is_over_ms() + REST_MS);
            at_ms = plan.deal(&CARDS_OF_ONE_ROUTE, at_ms, end, &mut random);
            at_ms = at_ms.max(plan.lull_is_over_ms() + REST_MS);
        }
        plan
    }

    /// Plays all cards in random order; where to go on. One that cannot begin now stays on top.
    fn deal(&mut self, cards: &[Card], mut at_ms: u64, end: u64, random: &mut ChaCha8Rng) -> u64 {
        let mut deck = cards.to_vec();
        deck.shuffle(random);
        while at_ms < end && !deck.is_empty() {
            for index in 0..deck.len() {
                let planned = deck[index].play(at_ms, end, random);
                let fits = planned.until_ms() <= end;
                if fits && self.faults.iter().all(|other| planned.goes_with(other)) {
                    self.faults.push(planned);
                    deck.remove(index);
                    break;
                }
            }
            at_ms += random.random_range(GAP_MS);
        }
        at_ms
    }

    /// When everything is lifted.
    fn lull_is_over_ms(&self) -> u64 {
        let ends = self.faults.iter().map(Planned::over_ms);
        ends.max().unwrap_or_default()
    }

    fn storm_is_over_ms(&self) -> u64 {
        self.faults
            .iter()
            .filter(|planned| !planned.fault.is_of_one_route())
            .map(Planned::over_ms)
            .max()
            .unwrap_or_default()
    }

    /// How to have the same again.
    pub(crate) fn command(&self) -> String {
        format!("make soak SECONDS={} SEED={}", self.seconds, self.seed)
    }
}

impl Card {
    fn play(self, at_ms: u64, end: u64, random: &mut ChaCha8Rng) -> Planned {
        let relay = random.random_range(1..=RELAYS);
        let queue = random.random_range(1..=STUCK_QUEUES);
        let bytes_per_second = random.random_range(20..=300) * 1000;
        let longer = if random.random_ratio(1, LONGER_ONE_IN) {
            random.random_range(1..=3)
        } else {
            1
        };
        let lengths = self.lengths_ms();
        // Not most of a short run for one fault.
        let longest = (end / 3).max(*lengths.start());
        let for_ms = (random.random_range(lengths) * longer).min(longest);
        let fault = match self {
            Self::RelayKilled => Fault::RelayKilled { relay },
            Self::RelayTerminated => Fault::RelayTerminated { relay },
            Self::RelayPaused => Fault::RelayPaused { relay },
            Self::BrokerKilled => Fault::BrokerKilled,
            Self::BrokerStopped => Fault::BrokerStopped,
            Self::ConnectionsClosed => Fault::ConnectionsClosed,
            Self::MemoryAlarm => Fault::MemoryAlarm,
            Self::QueueSuspended => Fault::QueueSuspended { queue },
            Self::ExchangeMissing => Fault::ExchangeMissing,
            Self::WriteForbidden => Fault::WriteForbidden,
            Self::QueueFull => Fault::QueueFull,
            Self::BindingMissing => Fault::BindingMissing,
            Self::DatabaseRestarted => Fault::DatabaseRestarted,
            Self::BackendsTerminated => Fault::BackendsTerminated,
            Self::DatabaseReadOnly => Fault::DatabaseReadOnly,
            Self::RowsKept => Fault::RowsKept,
            Self::SnapshotHeld => Fault::SnapshotHeld,
            Self::Path(peer, manner) => Fault::Path {
                relay,
                peer,
                trouble: match manner {
                    Manner::Cut => Trouble::Cut,
                    Manner::RequestsStalled => Trouble::RequestsStalled,
                    Manner::AnswersStalled => Trouble::AnswersStalled,
                    Manner::Slowed => Trouble::Slowed { bytes_per_second },
                },
            },
        };
        Planned {
            fault,
            at_ms,
            for_ms,
        }
    }

    /// From a blink to past the time-outs of the relays' settings.
    fn lengths_ms(self) -> std::ops::RangeInclusive<u64> {
        match self {
            Self::RelayKilled | Self::RelayTerminated => 200..=8_000,
            Self::RelayPaused => 1_000..=20_000,
            Self::BrokerKilled | Self::BrokerStopped => 500..=10_000,
            Self::ConnectionsClosed | Self::BackendsTerminated => 0..=0,
            Self::MemoryAlarm => 2_000..=15_000,
            Self::QueueSuspended
            | Self::ExchangeMissing
            | Self::WriteForbidden
            | Self::QueueFull
            | Self::BindingMissing => 3_000..=20_000,
            Self::DatabaseRestarted => 100..=6_000,
            Self::DatabaseReadOnly => 1_000..=12_000,
            Self::RowsKept => 1_000..=6_000,
            Self::SnapshotHeld => 5_000..=30_000,
            Self::Path(_, Manner::Cut) => 500..=15_000,
            Self::Path(_, Manner::RequestsStalled | Manner::AnswersStalled) => 1_000..=20_000,
            Self::Path(_, Manner::Slowed) => 3_000..=20_000,
        }
    }
}

impl Planned {
    pub(crate) fn at(&self) -> Duration {
        Duration::from_millis(self.at_ms)
    }

    pub(crate) fn length(&self) -> Duration {
        Duration::from_millis(self.for_ms)
    }

    fn until_ms(&self) -> u64 {
        self.at_ms + self.for_ms
    }

    /// Until what it was about is its old self, by estimate: servers have to start.
    fn over_ms(&self) -> u64 {
        let recovery = if self.fault.takes_broker_down() {
            12_000
        } else if self.fault.takes_database_down() {
            4_000
        } else {
            1_000
        };
        self.until_ms() + recovery
    }

    /// Whether both can be in one plan: no two faults at once on one thing, and none that comes or goes through a
    /// server which is down.
    fn goes_with(&self, other: &Self) -> bool {
        let overlap = self.at_ms < other.over_ms() && other.at_ms < self.over_ms();
        let rivals = self.fault.resource() == other.fault.resource() && overlap;
        !rivals && !self.is_in_the_way_of(other) && !other.is_in_the_way_of(self)
    }

    /// Whether this fault takes a server down that the other needs.
    fn is_in_the_way_of(&self, other: &Self) -> bool {
        let down = self.at_ms.saturating_sub(SETTLE_MS)..self.over_ms();
        let at_an_edge = down.contains(&other.at_ms) || down.contains(&other.until_ms());
        let anywhere = other.at_ms < down.end && down.start <= other.until_ms();
        match other.fault.need() {
            Need::Nothing => false,
            Need::BrokerAtEdges => self.fault.takes_broker_down() && at_an_edge,
            Need::BrokerThroughout => self.fault.takes_broker_down() && anywhere,
            Need::DatabaseThroughout => self.fault.takes_database_down() && anywhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::soak::fault::Resource;

    /// Every change of a fault with what is in force right after it, as someone sees who watches the run.
    fn walk(plan: &Plan, mut look: impl FnMut(u64, &[Planned])) {
        let mut moments: BTreeSet<u64> = BTreeSet::new();
        for planned in &plan.faults {
            moments.extend([planned.at_ms, planned.at_ms + planned.for_ms]);
        }
        for now in moments {
            let in_force: Vec<Planned> = plan
                .faults
                .iter()
                .filter(|planned| planned.at_ms <= now && now <= planned.at_ms + planned.for_ms)
                .copied()
                .collect();
            look(now, &in_force);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_same_seed_and_length_give_the_same_plan(seed: u64, seconds in 20_u64..600) {
            prop_assert_eq!(Plan::draw(seed, seconds), Plan::draw(seed, seconds));
        }

        #[test]
        fn no_two_faults_are_on_one_thing_at_once(seed: u64, seconds in 20_u64..1200) {
            let plan = Plan::draw(seed, seconds);
            let mut clash = None;
            walk(&plan, |now, in_force| {
                let mut taken: BTreeMap<String, Fault> = BTreeMap::new();
                for planned in in_force {
                    let resource = format!("{:?}", planned.fault.resource());
                    if let Some(other) = taken.insert(resource, planned.fault) {
                        clash = Some((now, other, planned.fault));
                    }
                }
            });
            prop_assert_eq!(clash, None);
        }

        #[test]
        fn no_fault_comes_or_goes_through_a_broker_that_is_down(seed: u64, seconds in 20_u64..1200) {
            let plan = Plan::draw(seed, seconds);
            let mut clash = None;
            walk(&plan, |now, in_force| {
                let down = in_force.iter().any(|planned| {
                    matches!(planned.fault, Fault::BrokerKilled | Fault::BrokerStopped)
                });
                let touched = in_force.iter().find(|planned| {
                    let edge = planned.at_ms == now || planned.at_ms + planned.for_ms == now;
                    match planned.fault.resource() {
                        Resource::Exchange | Resource::Permission | Resource::Binding => edge,
                        Resource::Queue(_) => true,
                        _ => false,
                    }
                });
                if down && touched.is_some() {
                    clash = Some((now, touched.copied()));
                }
            });
            prop_assert_eq!(clash, None);
        }

        #[test]
        fn all_is_lifted_when_the_time_is_over(seed: u64, seconds in 20_u64..1200) {
            let plan = Plan::draw(seed, seconds);
            prop_assert!(!plan.faults.is_empty());
            prop_assert!(plan.faults.is_sorted_by_key(|planned| planned.at_ms));
            for planned in &plan.faults {
                prop_assert!(planned.at_ms >= CALM_MS);
                prop_assert!(planned.at_ms + planned.for_ms <= seconds * 1000);
            }
        }

        #[test]
        fn a_run_of_five_minutes_has_every_kind_of_fault(seed: u64) {
            let plan = Plan::draw(seed, 300);
            let kinds: BTreeSet<&str> =
                plan.faults.iter().map(|planned| planned.fault.kind()).collect();
            prop_assert_eq!(kinds.len(), CARDS.len());
        }
    }

    /// When this fails on purpose, no plan of an earlier failure can be replayed any more.
    #[test]
    fn a_seed_goes_on_meaning_the_same_plan() {
        let plan = Plan::draw(7, 40);
        let drawn: Vec<String> = plan
            .faults
            .iter()
            .take(6)
            .map(|planned| format!("{} {} {}", planned.at_ms, planned.for_ms, planned.fault))
            .collect();
        assert_eq!(
            drawn,
            [
                "3000 590 PostgreSQL restarted (immediate)",
                "6048 10904 path to PostgreSQL stalled, relay 1",
                "7320 5130 path to RabbitMQ stalled, relay 1",
                "9135 10156 relay paused (SIGSTOP), relay 2",
                "12294 10271 write permission revoked",
                "14514 0 relays' backends terminated",
            ]
        );
    }

    #[test]
    fn different_seeds_give_different_plans() {
        assert_ne!(Plan::draw(1, 120).faults, Plan::draw(2, 120).faults);
    }
}
