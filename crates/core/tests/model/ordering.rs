//! Every order of events at a small scope: no message of a key is first delivered before an earlier one, none is lost, and
//! when faults cease, all go out.
//!
//! Beside the relays there are producers that commit, a broker that refuses, loses or delays, a person who decides about dead
//! letters, and an operator who locks rows. A relay may be stopped while the server ends its session, and go on publishing what it
//! holds.

mod broken;
mod broker;
mod drains;
mod outbox;
mod random;
mod relay;
mod settle;
mod tests;

use postrider_core::Seq;
use stateright::{Model, Property};

use broken::Broken;
use broker::Broker;
use outbox::{OPERATOR, Outbox, Place, Row, bit};
use relay::{Aim, Answer, Relay, Rules, Work};

/// The scope of a search.
#[derive(Debug, Clone)]
struct Scope {
    rules: Rules,
    relays: usize,
    /// The transactions of a key exclude one another: they commit in the order of `seq`.
    exclusive: bool,
    /// The rows of a claim are read in a step of their own, after the locks.
    stepwise: bool,
    /// What becomes of dead letters.
    dead_letters: &'static [Answer],
    /// How often at most.
    faults: Faults,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Faults {
    refused: u8,
    given_up: u8,
    lost: u8,
    withheld: u8,
    crashes: u8,
    /// Sessions that the server ends while their relay is stopped.
    aborts: u8,
    /// Such that the relay ended itself, and whose confirms it heeds.
    late_settles: u8,
    /// Rows that an operator locks.
    locks: u8,
    retries: u8,
    discards: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    outbox: Outbox,
    broker: Broker,
    relays: Vec<Relay>,
    left: Faults,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Commit(Seq),
    Begin(usize, usize, Aim),
    Read(usize),
    /// Both at once.
    Claim(usize, usize, Aim),
    ClaimDeferred(usize, Seq),
    Publish(usize, usize, Answer),
    LookForNextHead(usize),
    Settle(usize),
    SettleLate(usize),
    Crash(usize),
    Abort(usize),
    /// A copy from an old connection.
    Arrive(usize),
    OperatorLocks(Seq),
    OperatorUnlocks(Seq),
    Retry(Seq),
    Discard(Seq),
}

const ORDER: &str = "no message is first delivered before an earlier one of its key";
const KEPT: &str = "what is gone was delivered, superseded or discarded";
const BLOCKED: &str = "what is parked has a blocked key";
const DRAINS: &str = "when faults cease, everything is delivered that waits for no person";
const RELEASED: &str = "when the person then retries the dead letters, so is the rest";
const UP_TO_THE_LAST: &str =
    "a message that is refused for ever becomes the head of its key when all before it are out";
const DONE: &str = "all can be delivered with no fault left";

impl Model for Scope {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let keys: Vec<usize> = self.rules.letters.iter().map(|letter| letter.key).collect();
        let lanes = self.rules.lanes.iter().max().map_or(0, |lane| lane + 1);
        vec![State {
            outbox: Outbox::new(&keys, self.rules.lanes.len(), lanes),
            broker: Broker::new(keys.len()),
            relays: (0..self.relays).map(Relay::new).collect(),
            left: self.faults,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let State {
            outbox,
            broker,
            relays,
            left,
        } = state;
        for (seq, row) in outbox.all() {
            let mut earlier = outbox.all().take_while(|(earlier, _)| *earlier < seq);
            match row.place {
                Place::Uncommitted => {
                    let waits =
                        |other: &Row| other.key == row.key && other.place == Place::Uncommitted;
                    if !self.exclusive || !earlier.any(|(_, other)| waits(other)) {
                        actions.push(Action::Commit(seq));
                    }
                }
                Place::Dead { .. } => {
                    if left.retries > 0 {
                        actions.push(Action::Retry(seq));
                    }
                    if left.discards > 0 {
                        actions.push(Action::Discard(seq));
                    }
                }
                Place::Messages | Place::Parked | Place::Deferred => match row.holder {
                    None if left.locks > 0 => actions.push(Action::OperatorLocks(seq)),
                    Some(OPERATOR) => actions.push(Action::OperatorUnlocks(seq)),
                    _ => {}
                },
                Place::Gone => {}
            }
        }
        for copy in 0..broker.late.len() {
            actions.push(Action::Arrive(copy));
        }
        for (number, relay) in relays.iter().enumerate() {
            self.actions_of_relay(state, number, relay, actions);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        self.act(&mut state, action);
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ORDER, |_, state: &State| !state.broker.inverted),
            Property::always(KEPT, |_, state: &State| {
                let broker = &state.broker;
                let accounted = broker.delivered | broker.superseded | broker.excepted;
                let mut rows = state.outbox.all();
                rows.all(|(seq, row)| row.place != Place::Gone || accounted & bit(seq) != 0)
            }),
            Property::always(BLOCKED, |_, state: &State| {
                let mut rows = state.outbox.rows.iter();
                rows.all(|row| {
                    row.place != Place::Parked || state.outbox.blocked[row.key].is_some()
                })
            }),
            Property::always(DRAINS, |scope: &Scope, state: &State| {
                !state.is_calm() || scope.drains(state)
            }),
            Property::always(RELEASED, |scope: &Scope, state: &State| {
                !state.is_calm() || scope.drains_when_released(state)
            }),
            Property::always(UP_TO_THE_LAST, |scope: &Scope, state: &State| {
                !state.is_calm() || scope.drains_up_to_the_last(state)
            }),
            Property::sometimes(DONE, |_, state: &State| {
                let mut rows = state.outbox.rows.iter();
                let Faults {
                    refused,
                    given_up,
                    lost,
                    aborts,
                    ..
                } = state.left;
                rows.all(|row| row.place == Place::Gone)
                    && state.outbox.blocked.iter().all(Option::is_none)
                    && refused + given_up + lost + aborts == 0
            }),
        ]
    }
}

impl Scope {
    fn actions_of_relay(
        &self,
        state: &State,
        number: usize,
        relay: &Relay,
        actions: &mut Vec<Action>,
    ) {
        let State { outbox, left, .. } = state;
        match &relay.work {
            Work::Idle => {
                for (lane, aim) in self.claims(outbox) {
                    actions.push(match self.stepwise {
                        true => Action::Begin(number, lane, aim),
                        false => Action::Claim(number, lane, aim),
                    });
                }
                let deferred = outbox.due();
                actions.extend(deferred.map(|seq| Action::ClaimDeferred(number, seq)));
            }
            Work::Begun { .. } => actions.push(Action::Read(number)),
            Work::Holding(batch) => {
                for (position, send) in batch.sends.iter().enumerate() {
                    if send.answer.is_some() {
                        continue;
                    }
                    let key = outbox.row(send.copy.seq).key;
                    // Of several in flight the answers come in order.
                    let earlier = &batch.sends[..position];
                    let is_next = !earlier.iter().any(|other| {
                        other.answer.is_none() && outbox.row(other.copy.seq).key == key
                    });
                    if is_next && batch.turns.is_up(position) {
                        let mut answers = vec![Answer::Confirmed];
                        if left.refused > 0 {
                            answers.push(Answer::Refused);
                        }
                        if left.lost > 0 {
                            answers.push(Answer::Lost);
                        }
                        if left.given_up > 0 {
                            answers.extend(self.dead_letters);
                        }
                        let publish = |answer| Action::Publish(number, position, answer);
                        actions.extend(answers.into_iter().map(publish));
                    }
                    if left.withheld > 0 && batch.session {
                        actions.push(Action::Publish(number, position, Answer::Withheld));
                    }
                }
                let head_leaves = self.rules.broken == Broken::NextHeadBeforeLock
                    && batch.sends.iter().any(|send| {
                        send.answer == Some(Answer::Confirmed)
                            && outbox.row(send.copy.seq).place == Place::Deferred
                    });
                match batch.next_head {
                    None if head_leaves => actions.push(Action::LookForNextHead(number)),
                    _ => actions.push(Action::Settle(number)),
                }
                if !batch.session && left.late_settles > 0 {
                    actions.push(Action::SettleLate(number));
                }
                if batch.session && left.aborts > 0 {
                    actions.push(Action::Abort(number));
                }
            }
        }
        if left.crashes > 0 {
            actions.push(Action::Crash(number));
        }
    }

    /// The lanes and keys in which a peek may have seen work: for parked messages at any time before, so that whether they may be
    /// sent is not known.
    fn claims(&self, outbox: &Outbox) -> Vec<(usize, Aim)> {
        let lanes = 0..outbox.lanes.len();
        let fresh = lanes
            .filter(|lane| {
                outbox.lanes[*lane].is_none()
                    && outbox.rows.iter().any(|row| {
                        row.place == Place::Messages && self.rules.lanes[row.key] == *lane
                    })
            })
            .map(|lane| (lane, Aim::Fresh));
        let keys = 0..outbox.blocked.len();
        let parked = keys
            .filter(|key| {
                outbox.lanes[self.rules.lanes[*key]].is_none()
                    && match self.stepwise {
                        true => outbox.is_resuming(*key),
                        false => outbox.blocked[*key].is_some(),
                    }
            })
            .map(|key| (self.rules.lanes[key], Aim::Parked { key }));
        fresh.chain(parked).collect()
    }

    fn act(&self, state: &mut State, action: Action) {
        let State {
            outbox,
            broker,
            relays,
            left,
        } = state;
        let rules = &self.rules;
        match action {
            Action::Commit(seq) => outbox.row_mut(seq).place = Place::Messages,
            Action::Begin(relay, lane, aim) => relays[relay].begin(rules, outbox, lane, aim),
            Action::Read(relay) => relays[relay].read(rules, outbox, broker),
            Action::Claim(relay, lane, aim) => {
                relays[relay].begin(rules, outbox, lane, aim);
                relays[relay].read(rules, outbox, broker);
            }
            Action::ClaimDeferred(relay, seq) => {
                relays[relay].claim_deferred(rules, outbox, broker, seq);
            }
            Action::Publish(relay, position, answer) => {
                relays[relay].publish(rules, broker, position, answer);
                match answer {
                    Answer::Confirmed => {}
                    Answer::Refused => left.refused -= 1,
                    Answer::GivenUp { .. } => left.given_up -= 1,
                    Answer::Lost => left.lost -= 1,
                    Answer::Withheld => left.withheld -= 1,
                }
            }
            Action::LookForNextHead(relay) => relays[relay].look_for_next_head(rules, outbox),
            Action::Settle(relay) => relays[relay].settle(rules, outbox, broker),
            Action::SettleLate(relay) => {
                relays[relay].settle_late(rules, outbox);
                left.late_settles -= 1;
            }
            Action::Crash(relay) => {
                relays[relay].crash(outbox);
                left.crashes -= 1;
            }
            Action::Abort(relay) => {
                relays[relay].abort(outbox);
                left.aborts -= 1;
            }
            Action::Arrive(copy) => {
                let copy = broker.late.remove(copy);
                broker.deliver(copy);
            }
            Action::OperatorLocks(seq) => {
                outbox.row_mut(seq).holder = Some(OPERATOR);
                left.locks -= 1;
            }
            Action::OperatorUnlocks(seq) => outbox.row_mut(seq).holder = None,
            // In one transaction it enters `deferred` and leaves the dead letters.
            Action::Retry(seq) => {
                outbox.head_came(seq, Place::Deferred);
                left.retries -= 1;
            }
            Action::Discard(seq) => {
                outbox.head_went(seq, Place::Gone, rules.broken);
                broker.excepted |= bit(seq);
                left.discards -= 1;
            }
        }
    }
}

impl State {
    /// No relay is about anything, whatever it holds being settled or given back in another state.
    fn is_calm(&self) -> bool {
        self.relays.iter().all(|relay| relay.work == Work::Idle)
    }
}
