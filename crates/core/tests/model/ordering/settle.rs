//! How a batch goes on and ends.

use postrider_core::{Fate, Origin, Seq, Settling};

use super::broken::Broken;
use super::broker::{Broker, Copy};
use super::outbox::{Outbox, Place, bit};
use super::relay::{Answer, Batch, KEYS, Relay, Rules, Send, Work};

impl Relay {
    /// Sends a message whose turn it is and hears of it, or not. That is one step: until it reaches the broker, nobody can
    /// tell one that was sent from one that was not.
    pub(crate) fn publish(
        &mut self,
        rules: &Rules,
        broker: &mut Broker,
        position: usize,
        answer: Answer,
    ) {
        let Work::Holding(batch) = &mut self.work else {
            return;
        };
        let Batch { sends, turns, .. } = batch;
        sends[position].answer = Some(answer);
        let copy = sends[position].copy;
        match answer {
            Answer::Confirmed => broker.deliver(copy),
            Answer::Lost => broker.lose(copy),
            Answer::Refused | Answer::GivenUp { .. } | Answer::Withheld => {}
        }
        let goes_on = match rules.broken {
            Broken::SendsOn => true,
            Broken::SendsPastWithheld => answer == Answer::Withheld,
            _ => false,
        };
        if answer == Answer::Confirmed || goes_on {
            turns.delivered(position);
            return;
        }
        // Those on their way behind it, where more than one of a key may be.
        let key = |position: usize| rules.letters[sends[position].copy.seq.0 as usize - 1].key;
        let on_their_way: Vec<usize> = (position + 1..sends.len())
            .filter(|other| key(*other) == key(position) && turns.is_up(*other))
            .filter(|other| sends[*other].answer.is_none() && answer != Answer::Withheld)
            .collect();
        for other in on_their_way {
            sends[other].answer = Some(Answer::Confirmed);
            broker.deliver(sends[other].copy);
            turns.delivered(other);
        }
        let _ = turns.stopped(position);
    }

    /// The end of a batch, with what has an answer by now: the others are held back, as they are when its time is up.
    pub(crate) fn settle(&mut self, rules: &Rules, outbox: &mut Outbox, broker: &mut Broker) {
        let Work::Holding(batch) = std::mem::replace(&mut self.work, Work::Idle) else {
            return;
        };
        for Send { copy, answer } in &batch.sends {
            let failed = matches!(answer, Some(answer) if *answer != Answer::Confirmed);
            // For the others it makes no difference, only more states.
            let supersedes = rules.letters[copy.seq.0 as usize - 1].supersede;
            if failed && supersedes && rules.broken != Broken::ForgetsRuns {
                self.one_by_one |= bit(copy.seq) | copy.stands_for;
            }
        }
        if !batch.session {
            return;
        }
        let mut settling = Settling::default();
        for send in &batch.sends {
            let Copy { seq, stands_for } = send.copy;
            let own = match send.answer {
                Some(Answer::Confirmed) => Fate::Delivered,
                _ if stands_for != 0 && rules.broken != Broken::NewestMoves => Fate::Stays,
                Some(Answer::Refused | Answer::GivenUp { .. } | Answer::Withheld) => Fate::Moves,
                Some(Answer::Lost) | None => Fate::Stays,
            };
            let fate = match rules.broken {
                Broken::MovesAll => own,
                _ => settling.settle_of_key(KEYS[outbox.row(seq).key], own),
            };
            if fate == Fate::Delivered || rules.broken == Broken::SupersededLeave {
                outbox.delete(stands_for);
            }
            match (fate, send.answer) {
                (Fate::Delivered, _) => leave(rules, outbox, &batch, seq, Place::Gone),
                (Fate::Moves, Some(Answer::GivenUp { blocks })) => {
                    leave(rules, outbox, &batch, seq, Place::Dead { blocks });
                    if !blocks {
                        broker.excepted |= bit(seq);
                    } else if rules.broken != Broken::DeadLettersFree {
                        outbox.head_came(seq, Place::Dead { blocks });
                    }
                }
                // It was deferred already, and is again.
                (Fate::Moves, _) => outbox.head_came(seq, Place::Deferred),
                (Fate::Stays, _) => {}
            }
        }
        outbox.park(batch.park, rules.broken);
        if let Some(key) = batch.key {
            outbox.resumed(
                key,
                batch.sends.last().map(|send| send.copy.seq),
                rules.broken,
            );
        }
        outbox.release(self.number);
    }

    /// The locks were given up before the answers came, since the broker had blocked publishers: what was confirmed is
    /// deleted all the same, where nobody has locked it.
    pub(crate) fn settle_late(&mut self, rules: &Rules, outbox: &mut Outbox) {
        let Work::Holding(batch) = std::mem::replace(&mut self.work, Work::Idle) else {
            return;
        };
        let origin = match batch.origin {
            Origin::Messages => Place::Messages,
            Origin::Deferred => Place::Deferred,
            Origin::Parked => Place::Parked,
        };
        let confirmed = |send: &&Send| send.answer == Some(Answer::Confirmed);
        let gone = batch.sends.iter().filter(confirmed);
        let gone = gone.fold(0, |set, send| {
            set | bit(send.copy.seq) | send.copy.stands_for
        });
        for seq in outbox.seqs() {
            let row = outbox.row(seq);
            if gone & bit(seq) != 0 && row.place == origin && row.holder.is_none() {
                leave(rules, outbox, &batch, seq, Place::Gone);
            }
        }
    }

    /// A broken settle of the head of a key looks for the next one before it waits for the row in `blocked_keys`.
    pub(crate) fn look_for_next_head(&mut self, rules: &Rules, outbox: &Outbox) {
        if let Work::Holding(batch) = &mut self.work
            && let Some(send) = batch.sends.first()
        {
            batch.next_head = Some(outbox.next_head(send.copy.seq, rules.broken));
        }
    }
}

fn leave(rules: &Rules, outbox: &mut Outbox, batch: &Batch, seq: Seq, place: Place) {
    match (batch.origin, batch.next_head) {
        (Origin::Deferred, Some(next)) => {
            outbox.row_mut(seq).place = place;
            outbox.head_is(seq, next, rules.broken);
        }
        (Origin::Deferred, None) => outbox.head_went(seq, place, rules.broken),
        (Origin::Messages | Origin::Parked, _) => outbox.row_mut(seq).place = place,
    }
}
