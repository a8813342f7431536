//! A relay in the model: the real frontier and floor, driven as the tasks of a relay drive them, or
//! in a way that is known to be wrong.

use std::hash::{Hash, Hasher};

use postrider_core::{Ask, Frontier, Passed, Scan, Seq};

use crate::database::{Database, Row};

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Broken {
    Nothing,
    /// The floor moves without waiting for writers.
    NoWriters,
    /// The writers are looked at before `next` is read.
    StepsSwapped,
    /// The oldest row is read by the snapshot of a statement that began before the look.
    OneStatement,
    /// The floor moves to the horizon, whatever is visible below it.
    OldestIgnored,
    /// Floor and frontier outlive a restart of the server.
    SurvivesRestart,
    /// Each claim starts after the highest row seen so far.
    PlainCursor,
    /// Answers of claims count whenever they began.
    OldClaimsCount,
    /// Nobody is told of claims given back.
    GivenBackUntold,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Look {
    Idle,
    /// The first statement was answered; with what the broken ones read too early.
    Read {
        next: Seq,
        early: Early,
    },
    Asked(Ask<Seq>),
}

/// What a broken order of statements has already read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Early {
    Nothing,
    Writers(u64),
    Oldest(Option<Seq>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Claim {
    Idle,
    /// Its rows are locked, its answer is on the way.
    Sent {
        scan: Scan<Seq>,
        rows: Vec<Seq>,
        passed: Passed<Seq>,
    },
    /// Being published.
    Held(Vec<Seq>),
    /// Deleted, and not committed yet.
    Deleted(Vec<Seq>),
    /// The server was killed before the answer was read.
    Orphan {
        scan: Scan<Seq>,
        passed: Passed<Seq>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relay {
    number: usize,
    broken: Broken,
    pub(crate) frontier: Frontier<Seq>,
    pub(crate) look: Look,
    pub(crate) claims: Vec<Claim>,
    /// What the plain cursor is.
    cursor: Option<Seq>,
}

/// What a search takes for the same state. A frontier counts how often it fell, without end, so
/// that it knows an old scan; whatever the count, an old scan does nothing for ever, and so does
/// one that would do nothing now. Of another it matters where it would bring the frontier.
impl Hash for Relay {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Self {
            number: _,
            broken: _,
            frontier,
            look,
            claims,
            cursor,
        } = self;
        let place = |frontier: &Frontier<Seq>| (frontier.at(), frontier.wants_claim());
        let effect = |scan: &Scan<Seq>, passed: &Passed<Seq>| {
            let mut after = self.clone();
            after.passed(*scan, *passed);
            let effect = place(&after.frontier);
            (self.broken == Broken::OldClaimsCount || effect != place(frontier))
                .then_some((effect, *passed))
        };
        (place(frontier), frontier.floor(), look, cursor).hash(hasher);
        for claim in claims {
            std::mem::discriminant(claim).hash(hasher);
            match claim {
                Claim::Idle => {}
                Claim::Sent { scan, rows, passed } => (rows, effect(scan, passed)).hash(hasher),
                Claim::Held(rows) | Claim::Deleted(rows) => rows.hash(hasher),
                Claim::Orphan { scan, passed } => effect(scan, passed).hash(hasher),
            }
        }
    }
}

impl Relay {
    pub(crate) fn new(number: usize, workers: usize, broken: Broken) -> Self {
        Self {
            number,
            broken,
            frontier: Frontier::new(),
            look: Look::Idle,
            claims: vec![Claim::Idle; workers],
            cursor: None,
        }
    }

    /// The next statement of a look.
    pub(crate) fn look(&mut self, database: &Database) {
        self.look = match self.look {
            Look::Idle => Look::Read {
                next: database.next(),
                early: match self.broken {
                    Broken::StepsSwapped => Early::Writers(
                        database
                            .writers(self.number)
                            .iter()
                            .fold(0, |bits, writer| bits | bit(*writer)),
                    ),
                    Broken::OneStatement => {
                        Early::Oldest(database.oldest(self.frontier.floor().floor()))
                    }
                    _ => Early::Nothing,
                },
            },
            Look::Read { next, early } => {
                let writers = database.writers(self.number);
                let _ = match (self.broken, early) {
                    (Broken::NoWriters, _) => self.frontier.looked(next, [], true),
                    (_, Early::Writers(bits)) => self.frontier.looked(
                        database.next(),
                        names().filter(|name| bits & bit(*name) != 0),
                        true,
                    ),
                    _ => self.frontier.looked(next, writers, true),
                };
                match (self.frontier.ask(), early) {
                    (Some(ask), Early::Oldest(oldest)) => {
                        self.frontier.raise(ask, oldest);
                        Look::Idle
                    }
                    (Some(ask), _) => Look::Asked(ask),
                    (None, _) => Look::Idle,
                }
            }
            Look::Asked(ask) => {
                let oldest = match self.broken {
                    Broken::OldestIgnored => None,
                    _ => database.oldest(ask.from()),
                };
                self.frontier.raise(ask, oldest);
                Look::Idle
            }
        };
    }

    pub(crate) fn claim(&mut self, worker: usize, database: &mut Database, limit: usize) {
        let scan = self.frontier.scan();
        let from = match self.broken {
            Broken::PlainCursor => self.cursor,
            _ => scan.from(),
        };
        let rows = database.claim(self.number, from, limit);
        let passed = match rows.last() {
            Some(last) if rows.len() == limit => Passed::Below(Seq(last.0 + 1)),
            _ => Passed::All,
        };
        self.claims[worker] = Claim::Sent { scan, rows, passed };
    }

    /// Does what comes next for this worker; a claim ends with its rows settled, or given back.
    pub(crate) fn proceed(&mut self, worker: usize, database: &mut Database, end: End) {
        self.claims[worker] = match (
            std::mem::replace(&mut self.claims[worker], Claim::Idle),
            end,
        ) {
            (Claim::Idle, _) => Claim::Idle,
            (Claim::Sent { scan, rows, passed }, _) => {
                self.passed(scan, passed);
                self.cursor = self.cursor.max(rows.last().map(|last| Seq(last.0 + 1)));
                if rows.is_empty() {
                    Claim::Idle
                } else {
                    Claim::Held(rows)
                }
            }
            (Claim::Orphan { scan, passed }, _) => {
                self.passed(scan, passed);
                Claim::Idle
            }
            (Claim::Held(rows), End::Delete) => {
                database.delete(&rows);
                Claim::Deleted(rows)
            }
            (Claim::Held(rows) | Claim::Deleted(rows), End::Settle) => {
                database.settle(&rows, true);
                Claim::Idle
            }
            (Claim::Held(rows) | Claim::Deleted(rows), _) => {
                database.settle(&rows, false);
                if let (Some(lowest), true) = (rows.first(), self.broken != Broken::GivenBackUntold)
                {
                    self.frontier.given_back(*lowest);
                }
                Claim::Idle
            }
        };
    }

    fn passed(&mut self, scan: Scan<Seq>, passed: Passed<Seq>) {
        let scan = match self.broken {
            Broken::OldClaimsCount => self.frontier.scan(),
            _ => scan,
        };
        self.frontier.passed(scan, passed);
    }

    /// The session in which looks are taken is lost.
    pub(crate) fn session_lost(&mut self) {
        self.look = Look::Idle;
        self.frontier.reset();
    }

    /// The relay is killed and started: the server rolls its claims back.
    pub(crate) fn restart(&mut self, database: &mut Database) {
        for claim in &self.claims {
            if let Claim::Sent { rows, .. } | Claim::Held(rows) | Claim::Deleted(rows) = claim {
                database.settle(rows, false);
            }
        }
        *self = Self::new(self.number, self.claims.len(), self.broken);
    }

    /// The server is killed and started; its rows are free already.
    pub(crate) fn server_restarted(&mut self) {
        for claim in &mut self.claims {
            *claim = match std::mem::replace(claim, Claim::Idle) {
                Claim::Sent { scan, passed, .. } => Claim::Orphan { scan, passed },
                orphan @ Claim::Orphan { .. } => orphan,
                _ => Claim::Idle,
            };
        }
        self.look = Look::Idle;
        if self.broken != Broken::SurvivesRestart {
            self.frontier.reset();
        }
    }

    /// Whether its floor lets a row through.
    pub(crate) fn floor_is_safe(&self, database: &Database) -> bool {
        self.frontier
            .floor()
            .floor()
            .is_none_or(|floor| floor <= database.lowest_possible())
    }

    /// Which of the free rows would be left after the next look (and a look back) and the claims after
    /// it.
    pub(crate) fn would_miss(&self, database: &Database, look_back: bool) -> Vec<Seq> {
        let (mut relay, mut database) = (self.clone(), database.clone());
        while relay.look != Look::Idle {
            relay.look(&database);
        }
        relay.look(&database);
        while relay.look != Look::Idle {
            relay.look(&database);
        }
        if look_back
            && let Some((from, below)) = relay.frontier.below()
            && let Some(free) = database.oldest_free(from, below)
        {
            relay.frontier.given_back(free);
        }
        relay.claims.push(Claim::Idle);
        let worker = relay.claims.len() - 1;
        loop {
            relay.claim(worker, &mut database, 1);
            relay.proceed(worker, &mut database, End::Settle);
            if relay.claims[worker] == Claim::Idle {
                break;
            }
            relay.proceed(worker, &mut database, End::Settle);
        }
        let others = !(1_u8 << self.number);
        let left = (1..).map(Seq).zip(&database.rows);
        left.filter(|(_, row)| match row {
            Row::Committed {
                holder: None,
                held_by,
                ..
            } => look_back || held_by & others == 0,
            _ => false,
        })
        .map(|(seq, _)| seq)
        .collect()
    }
}

/// How a claim goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum End {
    Delete,
    Settle,
    GiveBack,
}

fn names() -> impl Iterator<Item = postrider_core::Writer> {
    (1..=2)
        .flat_map(|backend| (0..16).map(move |number| postrider_core::Writer::new(backend, number)))
}

fn bit(writer: postrider_core::Writer) -> u64 {
    names()
        .position(|name| name == writer)
        .map_or(0, |place| 1 << place)
}
