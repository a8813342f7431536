//! Whatever happens, in whatever order: properties over random schedules of faults.
//!
//! A schedule is plain data, printed in full and made smaller when it fails. `PROPTEST_RNG_SEED` has the
//! schedules of an earlier run drawn again (the seed is printed with a failure), `PROPTEST_CASES` more of
//! them than usual. How the tasks of the relay interleave is not part of a schedule.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use postrider_core::{Reason, Scope};
use postrider_relay::AfterDeadLetter;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use uuid::Uuid;

use crate::broker::Route;
use crate::fate::{Fate, Word};
use crate::outbox::until;
use crate::scene::{MAX_ATTEMPTS, Scene, settings};

const CASES: u32 = 32;

/// Exchanges that are refused now and then, and routes that are full: there a message may be charged for
/// others (see `postrider_core::Routes`). To the first exchange none of that happens.
const EXCHANGES: [&str; 3] = ["sound", "b", "c"];
const KEYS: [&str; 2] = ["0", "1"];
/// Ordering keys: few, so that their messages meet.
const ORDERED: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone)]
struct Schedule {
    workers: usize,
    batch_rows: u32,
    /// How long the broker is away after a message's fate has ended its connection.
    away_ms: u64,
    after_dead_letter: AfterDeadLetter,
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
enum Step {
    Transaction {
        plans: Vec<Plan>,
        commits: bool,
    },
    /// The relay has so many milliseconds for itself.
    Pass(u64),
    /// The connection to the broker ends.
    Lose,
    /// The broker is away, until the relay holds no transaction open.
    Away,
    /// The broker blocks publishers, until the relay holds no transaction open.
    Alarm,
    /// The sessions of the relay in the database are ended.
    EndSessions,
    /// The queue behind a route answers nobody any more, or answers again.
    Stuck(usize, usize),
    /// The queue behind a route is full, or is not any more.
    Full(usize, usize),
    /// An exchange is missing or forbidden, or is not any more.
    Refuse(usize, bool),
}

#[derive(Debug, Clone)]
struct Plan {
    exchange: usize,
    key: usize,
    ordered: Option<usize>,
    fates: Vec<Fate>,
    end: End,
}

/// What becomes of a message in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Delivered,
    TooLarge,
    NotEncodable,
    Unroutable,
    /// It ends every connection it is sent on.
    Culprit,
}

impl End {
    fn reason(self) -> Option<Reason> {
        match self {
            Self::Delivered => None,
            Self::TooLarge => Some(Reason::TooLarge),
            Self::NotEncodable => Some(Reason::NotEncodable),
            Self::Culprit => Some(Reason::EndsConnection),
            Self::Unroutable => Some(Reason::Unroutable),
        }
    }
}

fn word() -> impl Strategy<Value = Word> {
    prop_oneof![
        3 => (0u64..150).prop_map(Word::After),
        2 => (0u64..150).prop_map(Word::NotTakenAfter),
        1 => Just(Word::OnCommand),
    ]
}

fn fate() -> impl Strategy<Value = Fate> {
    let late = |scope| word().prop_map(move |word| Fate::Late { scope, word });
    let refused = |reason, scope| Just(Fate::Refused(reason, scope));
    prop_oneof![
        2 => (0u64..30).prop_map(|after_ms| Fate::Confirmed { after_ms }),
        2 => Just(Fate::TakenThenLost),
        2 => Just(Fate::Lost),
        2 => late(Scope::Route),
        2 => late(Scope::Broker),
        2 => Just(Fate::UNROUTABLE),
        2 => Just(Fate::NACKED),
        1 => refused(Reason::ExchangeMissing, Scope::Exchange),
        1 => refused(Reason::Forbidden, Scope::Exchange),
        1 => refused(Reason::Forbidden, Scope::Message),
        1 => (0u64..50).prop_map(|for_ms| Fate::Alarm { for_ms }),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let end = prop_oneof![
        16 => Just(End::Delivered),
        1 => Just(End::TooLarge),
        1 => Just(End::NotEncodable),
        1 => Just(End::Unroutable),
        1 => Just(End::Culprit),
    ];
    let fates = prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(fate(), 1..4)];
    let ordered = prop::option::weighted(0.6, 0..ORDERED.len());
    let plan = (0..EXCHANGES.len(), 0..KEYS.len(), ordered, fates, end);
    plan.prop_map(|(exchange, key, ordered, mut fates, end)| {
        if exchange == 0 {
            for fate in &mut fates {
                if let Fate::Refused(_, Scope::Route | Scope::Exchange) = fate {
                    *fate = Fate::UNROUTABLE;
                }
            }
        }
        Plan {
            exchange,
            key,
            ordered,
            fates,
            end,
        }
    })
}

fn step() -> impl Strategy<Value = Step> {
    let route = || (0..EXCHANGES.len(), 0..KEYS.len());
    let plans = prop::collection::vec(plan(), 1..12);
    prop_oneof![
        10 => (plans, prop::bool::weighted(0.85))
            .prop_map(|(plans, commits)| Step::Transaction { plans, commits }),
        4 => (1u64..80).prop_map(Step::Pass),
        1 => Just(Step::Lose),
        1 => Just(Step::Away),
        1 => Just(Step::Alarm),
        1 => Just(Step::EndSessions),
        2 => route().prop_map(|(exchange, key)| Step::Stuck(exchange, key)),
        1 => (1..EXCHANGES.len(), 0..KEYS.len()).prop_map(|(exchange, key)| Step::Full(exchange, key)),
        2 => (1..EXCHANGES.len(), any::<bool>())
            .prop_map(|(exchange, missing)| Step::Refuse(exchange, missing)),
    ]
}

fn schedule() -> impl Strategy<Value = Schedule> {
    let away = prop_oneof![Just(0), 1u64..40];
    let steps = prop::collection::vec(step(), 1..16);
    let after = prop_oneof![
        2 => Just(AfterDeadLetter::Block),
        1 => Just(AfterDeadLetter::Continue),
    ];
    let rows = prop_oneof![Just(1u32), 2u32..30];
    (1usize..4, rows, away, after, steps).prop_map(
        |(workers, batch_rows, away_ms, after_dead_letter, steps)| Schedule {
            workers,
            batch_rows,
            away_ms,
            after_dead_letter,
            steps,
        },
    )
}

/// What stands out of order while a schedule goes on.
#[derive(Debug, Default)]
struct Faults {
    stuck: HashSet<Route>,
    full: HashSet<Route>,
    refused: HashSet<&'static str>,
}

struct Played {
    scene: Scene,
    faults: Faults,
    committed: HashMap<Uuid, Plan>,
    rolled_back: Vec<Uuid>,
    /// The messages of each ordering key that were committed, in order.
    lines: HashMap<&'static str, Vec<Uuid>>,
}

impl Played {
    async fn step(&mut self, step: &Step) {
        let broker = &self.scene.broker;
        match step {
            Step::Transaction { plans, commits } => self.transaction(plans, *commits).await,
            Step::Pass(ms) => tokio::time::sleep(Duration::from_millis(*ms)).await,
            Step::Lose => broker.lose(),
            Step::Away => {
                broker.go_away();
                self.scene.nothing_is_claimed().await;
                broker.come_back();
            }
            Step::Alarm => {
                broker.block();
                self.scene.nothing_is_claimed().await;
                broker.unblock();
            }
            Step::EndSessions => {
                self.scene.outbox.end_sessions(false).await;
            }
            Step::Stuck(exchange, key) => {
                let route = route(*exchange, *key);
                if self.faults.stuck.remove(&route) {
                    broker.free(&route).await;
                } else {
                    broker.stick(&route);
                    self.faults.stuck.insert(route);
                }
            }
            Step::Full(exchange, key) => {
                let route = route(*exchange, *key);
                let full = !self.faults.full.remove(&route);
                broker.fill(&route, full);
                if full {
                    self.faults.full.insert(route);
                }
            }
            Step::Refuse(exchange, missing) => {
                let exchange = EXCHANGES[*exchange];
                let reason = if *missing {
                    Reason::ExchangeMissing
                } else {
                    Reason::Forbidden
                };
                let refused = !self.faults.refused.remove(exchange);
                broker.refuse(exchange, refused.then_some(reason));
                if refused {
                    self.faults.refused.insert(exchange);
                }
            }
        }
    }

    async fn transaction(&mut self, plans: &[Plan], commits: bool) {
        let mut rows = Vec::with_capacity(plans.len());
        for plan in plans {
            let id = Uuid::new_v4();
            let broker = &self.scene.broker;
            broker.fates(id, plan.fates.iter().copied());
            match plan.end {
                End::Delivered => {}
                End::Culprit => broker.culprit(id),
                End::TooLarge | End::NotEncodable | End::Unroutable => {
                    let reason = plan.end.reason().unwrap();
                    broker.always(id, Fate::Refused(reason, Scope::Message));
                }
            }
            let ordered = plan.ordered.map(|key| ORDERED[key]);
            rows.push((id, EXCHANGES[plan.exchange], KEYS[plan.key], ordered));
            if commits {
                if let Some(key) = ordered {
                    self.lines.entry(key).or_default().push(id);
                }
                self.committed.insert(id, plan.clone());
            } else {
                self.rolled_back.push(id);
            }
        }
        self.scene.outbox.insert_in_order(&rows, commits).await;
    }

    /// The faults end; what was never answered will not be.
    async fn mend(&mut self) {
        let broker = &self.scene.broker;
        let Faults {
            stuck,
            full,
            refused,
        } = std::mem::take(&mut self.faults);
        for route in stuck {
            broker.free(&route).await;
        }
        for route in full {
            broker.fill(&route, false);
        }
        for exchange in refused {
            broker.refuse(exchange, None);
        }
    }

    /// What must hold in the end.
    async fn examine(&self) {
        let outbox = &self.scene.outbox;
        assert_eq!(
            outbox.violations().await,
            [],
            "somewhere else than in one place"
        );
        let taken: HashSet<Uuid> = outbox
            .ids("SELECT id FROM audit.taken")
            .await
            .into_iter()
            .collect();
        for id in &self.rolled_back {
            assert!(!taken.contains(id), "{id} was rolled back, and delivered");
        }
        let dead = outbox.dead_letters().await;
        let given_up: HashSet<Uuid> = dead.iter().map(|letter| letter.id).collect();
        self.examine_order(&given_up).await;
        let mut letters: HashMap<Uuid, _> = HashMap::new();
        for letter in dead {
            assert!(letters.insert(letter.id, letter).is_none());
        }
        for (id, plan) in &self.committed {
            let charges = plan.fates.iter().filter(|fate| fate.is_charged()).count();
            let sound = plan.exchange == 0;
            match (letters.remove(id), plan.end) {
                (None, end) => {
                    assert!(taken.contains(id), "{id} is nowhere: {plan:?}");
                    // What is refused for ever may have been taken before that.
                    let confirmed = plan.fates.iter().any(|fate| fate.is_confirmed());
                    assert!(
                        end == End::Delivered || confirmed,
                        "{id} was settled: {plan:?}"
                    );
                }
                (Some(letter), end) => {
                    let attempts = u32::try_from(letter.attempts).unwrap();
                    assert!(attempts <= MAX_ATTEMPTS, "{letter:?} of {plan:?}");
                    let own = end
                        .reason()
                        .is_some_and(|reason| letter.reason == reason.as_str());
                    // Charged for its exchange or its route until the last attempt.
                    let of_its_target = !sound && attempts == MAX_ATTEMPTS;
                    assert!(own || of_its_target, "{letter:?} of {plan:?}");
                    if own && sound && !matches!(end, End::Unroutable | End::Culprit) {
                        assert!(attempts as usize <= charges + 1, "{letter:?} of {plan:?}");
                    }
                }
            }
        }
        assert!(
            letters.is_empty(),
            "dead letters of messages nobody wrote: {letters:?}"
        );
    }

    /// What was taken of each key was first taken in order. Excepted is what was given up: of that something may be taken that was sent
    /// before.
    async fn examine_order(&self, given_up: &HashSet<Uuid>) {
        let sql = "SELECT id FROM audit.taken GROUP BY id ORDER BY min(place)";
        let first_taken = self.scene.outbox.ids(sql).await;
        for (key, line) in &self.lines {
            let kept = |id: &&Uuid| !given_up.contains(*id);
            let wanted: Vec<&Uuid> = line.iter().filter(kept).collect();
            let taken: Vec<&Uuid> = first_taken
                .iter()
                .filter(|id| line.contains(id))
                .filter(kept)
                .collect();
            let plans: Vec<_> = wanted.iter().map(|id| (id, &self.committed[*id])).collect();
            assert_eq!(taken, wanted, "out of order: {key}, of {plans:#?}");
        }
    }

    /// No message to the sound exchange was charged more often than by its own faults.
    async fn examine_charges(&self) {
        let sql = "SELECT id, attempts FROM outbox.deferred WHERE exchange = $1";
        let rows = self
            .scene
            .outbox
            .client
            .query(sql, &[&EXCHANGES[0]])
            .await
            .unwrap();
        for row in rows {
            let (id, attempts): (Uuid, i32) = (row.get(0), row.get(1));
            let plan = &self.committed[&id];
            let charges = plan.fates.iter().filter(|fate| fate.is_charged()).count();
            let most = match plan.end {
                End::Delivered => charges,
                End::TooLarge | End::NotEncodable | End::Unroutable | End::Culprit => {
                    MAX_ATTEMPTS as usize
                }
            };
            assert!(attempts as usize <= most, "{attempts} attempts of {plan:?}");
        }
    }
}

fn route(exchange: usize, key: usize) -> Route {
    (EXCHANGES[exchange].to_owned(), KEYS[key].to_owned())
}

async fn play(schedule: &Schedule) {
    let scene = Scene::new().await;
    scene.broker.is_away_after_a_loss(schedule.away_ms);
    let mut settings = settings();
    settings.workers = schedule.workers;
    settings.reloadable.batch_rows = schedule.batch_rows;
    settings.reloadable.ordering.after_dead_letter = schedule.after_dead_letter;
    let relay = scene.start(settings);
    let mut played = Played {
        scene,
        faults: Faults::default(),
        committed: HashMap::new(),
        rolled_back: Vec::new(),
        lines: HashMap::new(),
    };
    for step in &schedule.steps {
        played.step(step).await;
        assert!(!relay.is_over(), "the relay ended by itself");
        played.examine_charges().await;
    }
    played.mend().await;
    let outbox = &played.scene.outbox;
    until("everything is delivered or given up", async || {
        // What is never answered is not waited for longer than its connection lives.
        played.scene.broker.lose_unanswered();
        outbox.discard_what_blocks().await;
        outbox.waiting().await == 0
    })
    .await;
    until("no key is blocked", async || {
        outbox.discard_what_blocks().await;
        outbox
            .number("SELECT count(*) FROM outbox.blocked_keys")
            .await
            == 0
    })
    .await;
    until("nothing is suspended", async || relay.suspended() == 0).await;
    relay.stop().await;
    played.examine().await;
}

#[test]
fn under_any_schedule_of_faults_each_message_is_in_one_place_until_it_is_taken_and_all_are_in_the_end()
 {
    let mut config = Config::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    if let RngSeed::Random = config.rng_seed {
        config.rng_seed = RngSeed::Fixed(rand::random());
    }
    // A schedule that never ends is waited for each time it is tried.
    config.max_shrink_time = 5 * 60 * 1000;
    config.failure_persistence = None;
    let seed = config.rng_seed;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let result = TestRunner::new(config).run(&schedule(), |schedule| {
        runtime.block_on(play(&schedule));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{seed:?}: {error}");
    }
}
