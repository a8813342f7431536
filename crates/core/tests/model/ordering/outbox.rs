//! A model of the tables and locks that order by key rests on. Each method is one statement or the end of one transaction,
//! with what the triggers do in it.

use postrider_core::Seq;

use super::broken::Broken;

/// Some of the messages, by bits: that of `seq` 1 is the lowest.
pub(crate) type Set = u8;

pub(crate) fn bit(seq: Seq) -> Set {
    1 << (seq.0 - 1)
}

/// The number of an operator who locks rows; relays have lower ones.
pub(crate) const OPERATOR: usize = 7;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// It has its `seq`, and its producer's transaction is open.
    Uncommitted,
    Messages,
    Parked,
    Deferred,
    /// Whether its key waits for a person.
    Dead {
        blocks: bool,
    },
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    pub(crate) key: usize,
    pub(crate) place: Place,
    /// Who has locked it.
    pub(crate) holder: Option<usize>,
}

/// A row of `blocked_keys`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Blocked {
    pub(crate) head: Option<Seq>,
    pub(crate) resume_from: Seq,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Outbox {
    /// From `seq` 1 on.
    pub(crate) rows: Vec<Row>,
    /// Of each key.
    pub(crate) blocked: Vec<Option<Blocked>>,
    /// Who has locked each lane.
    pub(crate) lanes: Vec<Option<usize>>,
}

impl Outbox {
    pub(crate) fn new(keys_of_rows: &[usize], keys: usize, lanes: usize) -> Self {
        let row = |key: &usize| Row {
            key: *key,
            place: Place::Uncommitted,
            holder: None,
        };
        Self {
            rows: keys_of_rows.iter().map(row).collect(),
            blocked: vec![None; keys],
            lanes: vec![None; lanes],
        }
    }

    pub(crate) fn row(&self, seq: Seq) -> &Row {
        &self.rows[seq.0 as usize - 1]
    }

    pub(crate) fn row_mut(&mut self, seq: Seq) -> &mut Row {
        &mut self.rows[seq.0 as usize - 1]
    }

    pub(crate) fn seqs(&self) -> impl Iterator<Item = Seq> + use<> {
        (1..=self.rows.len() as i64).map(Seq)
    }

    /// All rows, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Seq, &Row)> {
        (1..).map(Seq).zip(&self.rows)
    }

    pub(crate) fn committed(&self) -> Set {
        let committed = self
            .all()
            .filter(|(_, row)| row.place != Place::Uncommitted);
        committed.fold(0, |set, (seq, _)| set | bit(seq))
    }

    /// Below it nothing can appear any more.
    pub(crate) fn horizon(&self) -> Seq {
        let open = self.all().find(|(_, row)| row.place == Place::Uncommitted);
        open.map_or(Seq(self.rows.len() as i64 + 1), |(seq, _)| seq)
    }

    /// The end of a session or of a transaction: its locks go.
    pub(crate) fn release(&mut self, relay: usize) {
        for lane in &mut self.lanes {
            lane.take_if(|holder| *holder == relay);
        }
        for row in &mut self.rows {
            row.holder.take_if(|holder| *holder == relay);
        }
    }

    /// The row enters `deferred`, or is a dead letter that its key is to wait for.
    pub(crate) fn head_came(&mut self, seq: Seq, place: Place) {
        self.row_mut(seq).place = place;
        let key = self.row(seq).key;
        let blocked = self.blocked[key].get_or_insert(Blocked {
            head: None,
            resume_from: seq,
        });
        blocked.head = Some(blocked.head.map_or(seq, |head| head.min(seq)));
    }

    /// The row leaves `deferred` or the dead letters.
    pub(crate) fn head_went(&mut self, seq: Seq, place: Place, broken: Broken) {
        self.row_mut(seq).place = place;
        let next = self.next_head(seq, broken);
        self.head_is(seq, next, broken);
    }

    /// What the key of a row that is leaving waits for besides it.
    pub(crate) fn next_head(&self, leaving: Seq, broken: Broken) -> Option<Seq> {
        let key = self.row(leaving).key;
        let waited_for = |place| match place {
            Place::Deferred => true,
            Place::Dead { blocks } => blocks && broken != Broken::ForgetsDeadLetters,
            Place::Uncommitted | Place::Messages | Place::Parked | Place::Gone => false,
        };
        self.all()
            .find(|(seq, row)| *seq != leaving && row.key == key && waited_for(row.place))
            .map(|(seq, _)| seq)
    }

    pub(crate) fn head_is(&mut self, gone: Seq, next: Option<Seq>, broken: Broken) {
        let key = self.row(gone).key;
        if let Some(blocked) = &mut self.blocked[key]
            && blocked.head == Some(gone)
        {
            blocked.head = next;
            if next.is_none() && broken == Broken::UnblocksWithoutLock && !self.has_parked(key) {
                self.blocked[key] = None;
            }
        }
    }

    pub(crate) fn delete(&mut self, rows: Set) {
        for seq in self.seqs().filter(|seq| rows & bit(*seq) != 0) {
            self.row_mut(seq).place = Place::Gone;
        }
    }

    /// Under the lock of their keys' lane.
    pub(crate) fn park(&mut self, rows: Set, broken: Broken) {
        for seq in self.seqs().filter(|seq| rows & bit(*seq) != 0) {
            self.row_mut(seq).place = Place::Parked;
            let key = self.row(seq).key;
            if let Some(blocked) = &mut self.blocked[key]
                && broken != Broken::ParksBelowResume
            {
                blocked.resume_from = blocked.resume_from.min(seq);
            }
        }
    }

    /// The end of a claim of parked messages, of which `last` was the last: the next one begins where the first of them is left. A
    /// key that waits for nothing and has nothing parked is unblocked. Under the lock of the key's lane.
    pub(crate) fn resumed(&mut self, key: usize, last: Option<Seq>, broken: Broken) {
        let left = self.parked(key).next();
        let Some(blocked) = &mut self.blocked[key] else {
            return;
        };
        if let Some(last) = last {
            let behind = Seq(last.0 + 1);
            blocked.resume_from = match left {
                Some(left) if broken != Broken::ResumesBehindBatch => left.min(behind),
                _ => behind,
            };
        }
        let done = self.parked(key).next().is_none() || broken == Broken::UnblocksTooSoon;
        if self.blocked[key].is_some_and(|blocked| blocked.head.is_none()) && done {
            self.blocked[key] = None;
        }
    }

    /// What is parked of a key from where it is resumed.
    pub(crate) fn parked(&self, key: usize) -> impl Iterator<Item = Seq> {
        let from = self.blocked[key].map_or(Seq(0), |blocked| blocked.resume_from);
        self.all()
            .filter(move |(seq, row)| row.key == key && row.place == Place::Parked && *seq >= from)
            .map(|(seq, _)| seq)
    }

    fn has_parked(&self, key: usize) -> bool {
        self.parked(key).next().is_some()
    }

    /// Whether a key may be resumed.
    pub(crate) fn is_resuming(&self, key: usize) -> bool {
        self.blocked[key].is_some_and(|blocked| blocked.head.is_none())
    }

    /// The heads that may be claimed. Every one is due.
    pub(crate) fn due(&self) -> impl Iterator<Item = Seq> {
        let is_head = |seq: Seq, row: &Row| {
            self.blocked[row.key].is_some_and(|blocked| blocked.head == Some(seq))
        };
        self.all()
            .filter(move |(seq, row)| {
                row.place == Place::Deferred && row.holder.is_none() && is_head(*seq, row)
            })
            .map(|(seq, _)| seq)
    }

    pub(crate) fn waits_for_a_person(&self, key: usize) -> bool {
        let mut rows = self.rows.iter();
        rows.any(|row| row.key == key && row.place == Place::Dead { blocks: true })
    }

    pub(crate) fn no_key_is_blocked_but(&self, may_be: impl Fn(usize) -> bool) -> bool {
        let mut keys = 0..self.blocked.len();
        keys.all(|key| self.blocked[key].is_none() || may_be(key))
    }

    /// What is to be delivered yet.
    pub(crate) fn left(&self) -> impl Iterator<Item = (Seq, &Row)> {
        self.all().filter(|(_, row)| match row.place {
            Place::Messages | Place::Parked | Place::Deferred => true,
            Place::Uncommitted | Place::Dead { .. } | Place::Gone => false,
        })
    }
}
