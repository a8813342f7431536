//! A relay in the model: one worker, with the real plan, turns and settling, or with something that is known to be wrong.

use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use postrider_core::{
    Headers, Message, Ordered, OrderedPlan, OrderedRow, Origin, Payload, Properties, Seq, Turns,
};
use uuid::Uuid;

use super::broken::Broken;
use super::broker::{Broker, Copy};
use super::outbox::{Outbox, Place, Set, bit};

/// What an application writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Letter {
    pub(crate) key: usize,
    pub(crate) supersede: bool,
}

/// What all relays of a search have in common.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) broken: Broken,
    pub(crate) letters: Vec<Letter>,
    /// The lane of each key.
    pub(crate) lanes: Vec<usize>,
    /// The most rows of a claim.
    pub(crate) limit: usize,
    pub(crate) in_flight_per_key: u32,
    pub(crate) horizon: bool,
}

pub(crate) const KEYS: [&str; 2] = ["a", "b"];

impl Rules {
    fn message(&self, seq: Seq, origin: Origin) -> Message {
        let letter = self.letters[seq.0 as usize - 1];
        Message {
            seq,
            id: Uuid::nil(),
            exchange: String::new(),
            routing_key: String::new(),
            payload: Payload::Fetched(Vec::new()),
            headers: Headers::default(),
            properties: Properties::default(),
            created_at_unix: 0,
            age_at_claim: Duration::ZERO,
            attempts: u32::from(origin == Origin::Deferred),
            origin,
            ordered: Some(Ordered {
                key: KEYS[letter.key].to_owned(),
                supersede: letter.supersede,
            }),
        }
    }

    fn turns(&self, batch: &[Message]) -> Turns {
        let in_flight = match self.broken {
            Broken::TwoInFlight => 2,
            _ => self.in_flight_per_key,
        };
        Turns::new(batch, in_flight)
    }

    /// The messages before this one that are to be delivered first.
    fn before(&self, seq: Seq, outbox: &Outbox) -> Set {
        let key = outbox.row(seq).key;
        let earlier = outbox.all().take_while(|(earlier, _)| *earlier < seq);
        earlier
            .filter(|(_, row)| row.key == key && (self.horizon || row.place != Place::Uncommitted))
            .fold(0, |set, (earlier, _)| set | bit(earlier))
    }
}

/// What becomes of a message that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Confirmed,
    /// It is to wait: returned as unroutable, say.
    Refused,
    /// It is to become a dead letter, for which its key waits or does not.
    GivenUp {
        blocks: bool,
    },
    /// The connection ends: nobody knows, and the copy may arrive late.
    Lost,
    /// Its exchange or route is suspended: it is to wait without being sent.
    Withheld,
}

/// What a claim under the lock of a lane is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Aim {
    /// New messages of the lane.
    Fresh,
    /// What is parked of a key.
    Parked { key: usize },
}

/// What is read before the rows: what a broken claim should not have, and the horizon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Early {
    rows: Set,
    blocked: u8,
    horizon: Option<Seq>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Work {
    Idle,
    /// The first statements of a claim were answered.
    Begun {
        lane: usize,
        aim: Aim,
        early: Early,
    },
    Holding(Batch),
}

/// A claim whose rows are being published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) origin: Origin,
    /// Whose parked messages these are.
    pub(crate) key: Option<usize>,
    pub(crate) sends: Vec<Send>,
    pub(crate) park: Set,
    pub(crate) turns: Turns,
    /// Its transaction is open, and with it its locks.
    pub(crate) session: bool,
    /// What a broken settle of a head has looked up already.
    pub(crate) next_head: Option<Option<Seq>>,
}

/// Without its turns, which follow from the answers.
impl Hash for Batch {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Self {
            origin,
            key,
            sends,
            park,
            turns: _,
            session,
            next_head,
        } = self;
        (origin, key, sends, park, session, next_head).hash(hasher);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Send {
    pub(crate) copy: Copy,
    pub(crate) answer: Option<Answer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Relay {
    pub(crate) number: usize,
    pub(crate) work: Work,
    /// What it does not coalesce.
    pub(crate) one_by_one: Set,
}

impl Relay {
    pub(crate) fn new(number: usize) -> Self {
        Self {
            number,
            work: Work::Idle,
            one_by_one: 0,
        }
    }

    /// The first statements of a claim: its lane is locked, where nobody else has it, and the horizon looked at.
    pub(crate) fn begin(&mut self, rules: &Rules, outbox: &mut Outbox, lane: usize, aim: Aim) {
        match rules.broken {
            Broken::RowsBeforeLock | Broken::ParksByOldBlocks | Broken::ResumesBlindly => {}
            _ if outbox.lanes[lane].is_some() => return,
            _ => outbox.lanes[lane] = Some(self.number),
        }
        let is_blocked = |key: &usize| outbox.blocked[*key].is_some();
        let blocked = (0..rules.lanes.len()).filter(is_blocked);
        let early = match rules.broken {
            Broken::RowsBeforeLock | Broken::ParksByOldBlocks | Broken::HorizonTooLate => Early {
                rows: outbox.committed(),
                blocked: blocked.fold(0, |keys, key| keys | 1 << key),
                horizon: None,
            },
            _ => Early {
                horizon: rules.horizon.then(|| outbox.horizon()),
                ..Early::default()
            },
        };
        self.work = Work::Begun { lane, aim, early };
    }

    /// The rows of the lane that was locked, in order, with a snapshot of now.
    fn rows(
        &self,
        rules: &Rules,
        outbox: &Outbox,
        lane: usize,
        aim: Aim,
        early: Early,
    ) -> Vec<OrderedRow> {
        let horizon = match rules.broken {
            Broken::NoHorizon => None,
            Broken::HorizonTooLate => Some(outbox.horizon()),
            _ => early.horizon,
        };
        let is_shown = |seq: Seq| match rules.broken {
            Broken::RowsBeforeLock | Broken::HorizonTooLate => early.rows & bit(seq) != 0,
            _ => true,
        };
        let was_blocked = |key: usize| early.blocked & (1 << key) != 0;
        let is_blocked = |key: usize| match rules.broken {
            Broken::RowsBeforeLock => was_blocked(key),
            Broken::ParksByOldBlocks => was_blocked(key) || outbox.blocked[key].is_some(),
            _ => outbox.blocked[key].is_some(),
        };
        let mut rows = Vec::new();
        let mut push = |seq: Seq, origin: Origin| {
            let row = outbox.row(seq);
            let key = || KEYS[row.key].to_owned();
            if row.holder.is_some() {
                if rules.broken != Broken::SkipsHeld {
                    rows.push(OrderedRow::Held { key: key() });
                }
            } else if origin == Origin::Messages && is_blocked(row.key) {
                rows.push(OrderedRow::Blocked {
                    seq,
                    key: key(),
                    bytes: 1,
                });
            } else {
                rows.push(OrderedRow::Free(rules.message(seq, origin)));
            }
        };
        match aim {
            Aim::Fresh => outbox
                .all()
                .filter(|(seq, row)| {
                    row.place == Place::Messages
                        && rules.lanes[row.key] == lane
                        && horizon.is_none_or(|horizon| *seq < horizon)
                        && is_shown(*seq)
                })
                .take(rules.limit)
                .for_each(|(seq, _)| push(seq, Origin::Messages)),
            Aim::Parked { key }
                if outbox.is_resuming(key) || rules.broken == Broken::ResumesBlindly =>
            {
                for seq in outbox.parked(key).take(rules.limit) {
                    push(seq, Origin::Parked);
                }
            }
            Aim::Parked { .. } => {}
        }
        rows
    }

    /// The statement that reads the rows, and the plan.
    pub(crate) fn read(&mut self, rules: &Rules, outbox: &mut Outbox, broker: &mut Broker) {
        let Work::Begun { lane, aim, early } = self.work else {
            return;
        };
        if outbox.lanes[lane].is_some_and(|holder| holder != self.number) {
            return;
        }
        outbox.lanes[lane] = Some(self.number);
        let one_by_one: HashSet<Seq> = outbox
            .seqs()
            .filter(|seq| self.one_by_one & bit(*seq) != 0)
            .collect();
        let rows = self.rows(rules, outbox, lane, aim, early);
        let plan = OrderedPlan::new(rows, &one_by_one);
        if plan.is_empty() && aim == Aim::Fresh {
            outbox.release(self.number);
            self.work = Work::Idle;
            return;
        }
        let copy = |message: &Message| Copy {
            seq: message.seq,
            stands_for: plan
                .superseded
                .get(&message.seq)
                .into_iter()
                .flatten()
                .fold(0, |set, seq| set | bit(*seq)),
        };
        let sends: Vec<Copy> = plan.send.iter().map(copy).collect();
        let park = plan.park.iter().fold(0, |set, seq| set | bit(*seq));
        let (origin, key) = match aim {
            Aim::Fresh => (Origin::Messages, None),
            Aim::Parked { key } => (Origin::Parked, Some(key)),
        };
        self.hold(
            outbox,
            broker,
            rules,
            Batch {
                origin,
                key,
                turns: rules.turns(&plan.send),
                sends: sends.into_iter().map(unanswered).collect(),
                park,
                session: true,
                next_head: None,
            },
        );
    }

    /// Claims the head of a key that is due.
    pub(crate) fn claim_deferred(
        &mut self,
        rules: &Rules,
        outbox: &mut Outbox,
        broker: &mut Broker,
        seq: Seq,
    ) {
        let message = rules.message(seq, Origin::Deferred);
        self.hold(
            outbox,
            broker,
            rules,
            Batch {
                origin: Origin::Deferred,
                key: None,
                turns: rules.turns(&[message]),
                sends: vec![unanswered(Copy { seq, stands_for: 0 })],
                park: 0,
                session: true,
                next_head: None,
            },
        );
    }

    fn hold(&mut self, outbox: &mut Outbox, broker: &mut Broker, rules: &Rules, batch: Batch) {
        let sends = batch
            .sends
            .iter()
            .map(|send| bit(send.copy.seq) | send.copy.stands_for);
        let claimed = sends.fold(batch.park, |set, send| set | send);
        for seq in outbox.seqs() {
            if claimed & bit(seq) != 0 {
                outbox.row_mut(seq).holder = Some(self.number);
                // It comes after what was committed when it was first claimed, be it to be parked.
                broker.before[seq.0 as usize - 1].get_or_insert(rules.before(seq, outbox));
            }
        }
        self.work = Work::Holding(batch);
    }

    /// The server ends its session while it is stopped: it will not know until it settles.
    pub(crate) fn abort(&mut self, outbox: &mut Outbox) {
        outbox.release(self.number);
        if let Work::Holding(batch) = &mut self.work {
            batch.session = false;
        }
    }

    /// The process ends: what it knew is gone.
    pub(crate) fn crash(&mut self, outbox: &mut Outbox) {
        outbox.release(self.number);
        *self = Self::new(self.number);
    }
}

fn unanswered(copy: Copy) -> Send {
    Send { copy, answer: None }
}
