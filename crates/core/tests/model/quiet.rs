//! Every order of events at a small scope: no committed row is left behind by relays that sleep.
//!
//! A claim here takes and deletes all it sees at once; what may happen within one is
//! [`crate::floor`]'s matter.

use std::collections::BTreeSet;

use postrider_core::{Frontier, Passed, Quiet, Seq, Step, Writer};
use stateright::{Checker, HasDiscoveries, Model, Property};

use crate::database::{Database, Producer, Row};

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Broken {
    Nothing,
    /// The relay sleeps as soon as it has given the lock up.
    SleepsAtOnce,
    /// The writers are noted before the lock is given up.
    NotesBeforeUnlocking,
    /// No worker is woken after a look.
    NoClaimAfterLook,
    /// A relay whose session was lost sleeps at once when it is back.
    RestartsAsleep,
    /// A relay that was notified claims, and takes no look.
    NoLookWhenNotified,
}

#[derive(Debug, Clone)]
struct Scope {
    broken: Broken,
    relays: usize,
    /// For each producer, how many statements of one row it makes at most.
    producers: Vec<u8>,
    /// How many sessions may be lost.
    accidents: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    database: Database,
    relays: Vec<Relay>,
    accidents: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Relay {
    quiet: Quiet,
    frontier: Frontier<Seq>,
    /// A worker is to claim.
    woken: bool,
    /// A look is to be taken, since a notification came.
    look_wanted: bool,
    /// The first statement of a look was answered.
    read: Option<Seq>,
    /// What the broken one noted too early.
    noted: Option<BTreeSet<Writer>>,
}

/// As for the other model: without the count of falls, which no claim outlives here.
impl std::hash::Hash for Relay {
    fn hash<H: std::hash::Hasher>(&self, hasher: &mut H) {
        let frontier = (self.frontier.at(), self.frontier.wants_claim());
        let tasks = (&self.quiet, self.woken, self.look_wanted);
        (
            frontier,
            self.frontier.floor(),
            tasks,
            self.read,
            &self.noted,
        )
            .hash(hasher);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Lock(usize),
    Draw(usize),
    Trigger(usize),
    Commit(usize),
    RollBack(usize),
    /// The rate of rows rose or fell.
    Want(usize, bool),
    /// The next step of the task that listens.
    Step(usize),
    /// A worker that was woken claims.
    Claim(usize),
    SessionLost(usize),
}

const WAKE_UP: &str = "no row is left while every relay sleeps and nothing wakes it";
const DONE: &str = "all can be sent and every relay sleep";

impl Relay {
    fn new() -> Self {
        Self {
            quiet: Quiet::new(),
            frontier: Frontier::new(),
            woken: true,
            look_wanted: false,
            read: None,
            noted: None,
        }
    }

    /// Nothing but a notification, or the safety poll, makes it do anything.
    fn sleeps(&self) -> bool {
        !self.woken && !self.look_wanted && self.read.is_none() && self.quiet.step() == Step::Sleep
    }

    fn step(&mut self, number: usize, broken: Broken, database: &mut Database) {
        if self.read.is_some() || self.look_wanted && broken != Broken::NoLookWhenNotified {
            return self.look(number, broken, database);
        }
        self.look_wanted = false;
        match self.quiet.step() {
            Step::Sleep => {}
            Step::Poll => self.woken = true,
            Step::TryLock => {
                let got = database.quiet.is_none();
                if got {
                    database.quiet = Some(number);
                }
                self.quiet.tried(got);
                self.woken = true;
            }
            Step::Unlock if broken == Broken::NotesBeforeUnlocking && self.noted.is_none() => {
                self.noted = Some(database.writers(number));
            }
            Step::Unlock => {
                database.quiet = None;
                self.quiet.unlocked();
                if let Some(noted) = self.noted.take() {
                    self.quiet.looked(noted);
                    self.woken = true;
                }
                if broken == Broken::SleepsAtOnce {
                    self.quiet.looked([]);
                }
            }
            Step::Look => self.look(number, broken, database),
        }
    }

    fn look(&mut self, number: usize, broken: Broken, database: &Database) {
        let Some(next) = self.read.take() else {
            self.look_wanted = false;
            self.read = Some(database.next());
            return;
        };
        let writers = database.writers(number);
        let _ = self.frontier.looked(next, writers.iter().copied(), true);
        if let Some(ask) = self.frontier.ask() {
            self.frontier.raise(ask, database.oldest(ask.from()));
        }
        let asleep = self.quiet.is_asleep();
        self.quiet.looked(writers);
        if broken != Broken::NoClaimAfterLook {
            self.woken |= !asleep || self.frontier.wants_claim();
        }
    }

    fn claim(&mut self, number: usize, database: &mut Database) {
        self.woken = false;
        let scan = self.frontier.scan();
        let rows = database.claim(number, scan.from(), usize::MAX);
        database.settle(&rows, true);
        self.frontier.passed(scan, Passed::All);
    }
}

impl Model for Scope {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            database: Database::new(self.producers.len()),
            relays: vec![Relay::new(); self.relays],
            accidents: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (producer, most) in self.producers.iter().enumerate() {
            match state.database.producers[producer] {
                Producer::Idle => {
                    let earlier = &state.database.producers[..producer];
                    if !earlier.contains(&Producer::Idle) {
                        actions.push(Action::Lock(producer));
                    }
                }
                Producer::Open {
                    rows, triggered, ..
                } => {
                    if rows > triggered {
                        actions.push(Action::Trigger(producer));
                    } else {
                        if rows < *most {
                            actions.push(Action::Draw(producer));
                        }
                        if rows > 0 {
                            actions.push(Action::Commit(producer));
                        }
                    }
                    actions.push(Action::RollBack(producer));
                }
                Producer::Over => {}
            }
        }
        for (number, relay) in state.relays.iter().enumerate() {
            actions.push(Action::Want(number, true));
            actions.push(Action::Want(number, false));
            actions.push(Action::Step(number));
            if relay.woken {
                actions.push(Action::Claim(number));
            }
            if state.accidents < self.accidents {
                actions.push(Action::SessionLost(number));
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        let State {
            database, relays, ..
        } = &mut state;
        match action {
            Action::Lock(producer) => database.lock(producer),
            Action::Draw(producer) => database.draw(producer),
            Action::Trigger(producer) => database.trigger(producer),
            Action::Commit(producer) => {
                if database.end(producer, true) {
                    for relay in relays {
                        relay.woken = true;
                        relay.look_wanted = true;
                    }
                }
            }
            Action::RollBack(producer) => {
                let _ = database.end(producer, false);
            }
            Action::Want(relay, quiet) => relays[relay].quiet.want(quiet),
            Action::Step(relay) => relays[relay].step(relay, self.broken, database),
            Action::Claim(relay) => relays[relay].claim(relay, database),
            Action::SessionLost(number) => {
                let relay = &mut relays[number];
                if database.quiet == Some(number) {
                    database.quiet = None;
                }
                relay.quiet.lost();
                relay.frontier.reset();
                (relay.read, relay.look_wanted, relay.noted) = (None, false, None);
                relay.woken = true;
                if self.broken == Broken::RestartsAsleep {
                    relay.quiet.looked([]);
                }
                state.accidents += 1;
            }
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(WAKE_UP, |_, state: &State| {
                let mut rows = state.database.rows.iter();
                !state.relays.iter().all(Relay::sleeps)
                    || !rows.any(|row| matches!(row, Row::Committed { .. }))
            }),
            Property::sometimes(DONE, |scope, state: &State| {
                state.relays.iter().all(Relay::sleeps)
                    && state.database.rows.len() == usize::from(scope.producers.iter().sum::<u8>())
            }),
        ]
    }
}

impl Scope {
    /// Searches everything; says whether a row was left behind.
    fn leaves_a_row_behind(self) -> bool {
        let described = format!("{self:?}");
        let checker = self
            .checker()
            .threads(2)
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_bfs()
            .join();
        let states = checker.unique_state_count();
        println!(
            "{described}: {states} states, depth {}",
            checker.max_depth()
        );
        let left = checker.discovery(WAKE_UP);
        assert!(left.is_some() || checker.discovery(DONE).is_some());
        if let Some(path) = &left {
            println!("violated: {:?}", path.clone().into_actions());
        }
        left.is_some()
    }
}

#[test]
fn a_relay_that_sleeps_leaves_no_silent_transaction_behind() {
    let scope = Scope {
        broken: Broken::Nothing,
        relays: 1,
        producers: vec![2, 1],
        accidents: 1,
    };
    assert!(!scope.leaves_a_row_behind());
}

#[test]
fn two_relays_that_sleep_leave_no_silent_transaction_behind() {
    let scope = Scope {
        broken: Broken::Nothing,
        relays: 2,
        producers: vec![1],
        accidents: 1,
    };
    assert!(!scope.leaves_a_row_behind());
}

#[test]
fn a_wake_up_broken_on_purpose_is_found() {
    for broken in [
        Broken::SleepsAtOnce,
        Broken::NotesBeforeUnlocking,
        Broken::NoClaimAfterLook,
        Broken::RestartsAsleep,
        Broken::NoLookWhenNotified,
    ] {
        let scope = Scope {
            broken,
            relays: 1,
            producers: vec![1, 1],
            accidents: 1,
        };
        assert!(scope.leaves_a_row_behind(), "{broken:?}");
    }
}
