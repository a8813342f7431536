//! What relays do when faults cease.

use postrider_core::Seq;

use super::outbox::{Place, Row};
use super::relay::{Answer, Work};
use super::{Action, Scope, State};

impl Scope {
    /// Whether relays that have their turns, and meet no fault, leave nothing behind that does not wait for a person.
    pub(super) fn drains(&self, state: &State) -> bool {
        let mut state = self.ceased(state);
        self.run(&mut state, None);
        let waits = |key: usize| state.outbox.waits_for_a_person(key);
        let mut left = state.outbox.left().filter(|(_, row)| !waits(row.key));
        left.next().is_none() && !state.broker.inverted && state.outbox.no_key_is_blocked_but(waits)
    }

    /// The same, after the person has retried all dead letters: nothing is left at all.
    pub(super) fn drains_when_released(&self, state: &State) -> bool {
        let mut state = self.ceased(state);
        self.run(&mut state, None);
        for seq in state.outbox.seqs() {
            if matches!(state.outbox.row(seq).place, Place::Dead { .. }) {
                state.outbox.head_came(seq, Place::Deferred);
            }
        }
        self.run(&mut state, None);
        let left = state.outbox.left().next();
        left.is_none() && !state.broker.inverted && state.outbox.no_key_is_blocked_but(|_| false)
    }

    /// The same, but for the last message, which is refused for ever: it is left, and what need not come before it.
    pub(super) fn drains_up_to_the_last(&self, state: &State) -> bool {
        let last = Seq(state.outbox.rows.len() as i64);
        let Row { key, place, .. } = *state.outbox.row(last);
        let is_out = matches!(place, Place::Uncommitted | Place::Gone | Place::Dead { .. });
        if is_out || state.outbox.waits_for_a_person(key) {
            return true;
        }
        let mut state = self.ceased(state);
        self.run(&mut state, Some(last));
        let State { outbox, broker, .. } = &state;
        let may_be_left = |seq: Seq, row: &Row| {
            seq == last
                || row.key == key && !broker.is_before(seq, last)
                || outbox.waits_for_a_person(row.key)
        };
        outbox.row(last).place == Place::Deferred
            && outbox.blocked[key].is_some_and(|blocked| blocked.head == Some(last))
            && outbox.left().all(|(seq, row)| may_be_left(seq, row))
    }

    /// Operators have unlocked their rows, and the transactions that the horizon waits for have ended.
    fn ceased(&self, state: &State) -> State {
        let mut state = state.clone();
        for row in &mut state.outbox.rows {
            row.holder = None;
            if row.place == Place::Uncommitted && self.rules.horizon {
                row.place = Place::Messages;
            }
        }
        state
    }

    /// A relay claims, publishes and settles whatever there is, until nothing changes any more. All is confirmed but
    /// the one that is `refused`.
    fn run(&self, state: &mut State, refused: Option<Seq>) {
        loop {
            let before = state.clone();
            let claims = self.claims(&state.outbox).into_iter();
            let claims =
                claims.flat_map(|(lane, aim)| [Action::Begin(0, lane, aim), Action::Read(0)]);
            let deferred = state.outbox.due();
            let deferred = deferred.map(|seq| Action::ClaimDeferred(0, seq));
            let steps: Vec<Action> = claims.chain(deferred).collect();
            for step in steps {
                self.act(state, step);
                let State {
                    outbox,
                    broker,
                    relays,
                    ..
                } = &mut *state;
                let Work::Holding(batch) = &relays[0].work else {
                    continue;
                };
                let sends = batch.sends.clone();
                for (position, send) in sends.iter().enumerate() {
                    let answer = match Some(send.copy.seq) == refused {
                        true => Answer::Refused,
                        false => Answer::Confirmed,
                    };
                    relays[0].publish(&self.rules, broker, position, answer);
                }
                relays[0].settle(&self.rules, outbox, broker);
            }
            if *state == before {
                return;
            }
        }
    }
}
