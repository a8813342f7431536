//! A model of the outbox table, its sequence and its locks, as far as a relay can tell.
//!
//! Each method is one statement or one moment of a transaction: between any two calls everything
//! else may happen.

use std::collections::BTreeSet;

use postrider_core::{Seq, Writer};

/// One row, at the place of its `seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Row {
    /// Inserted by a producer whose transaction is open.
    Open { producer: usize },
    /// Visible to every snapshot from now on.
    Committed {
        /// The relay that holds its lock.
        holder: Option<usize>,
        /// Which relays have ever held its lock, by bits: the others may have skipped it.
        held_by: u8,
        /// Its holder has deleted it and has not committed yet.
        deleted: bool,
    },
    /// Rolled back, or deleted.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Producer {
    /// Has not begun.
    Idle,
    /// Holds its write lock.
    Open {
        writer: u8,
        rows: u8,
        /// For how many of them the trigger has run.
        triggered: u8,
        /// Whether it will notify when it commits.
        notifies: bool,
    },
    /// Committed, rolled back, or killed with the server.
    Over,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Database {
    /// From `seq` 1 on.
    pub(crate) rows: Vec<Row>,
    pub(crate) producers: Vec<Producer>,
    /// Transactions named since the server started: a new run of it names them from the start again.
    named: u8,
    /// Who holds the quiet lock.
    pub(crate) quiet: Option<usize>,
}

impl Database {
    pub(crate) fn new(producers: usize) -> Self {
        Self {
            rows: Vec::new(),
            producers: vec![Producer::Idle; producers],
            named: 0,
            quiet: None,
        }
    }

    /// The INSERT's first moment: the transaction has its name and its lock, and has drawn nothing.
    pub(crate) fn lock(&mut self, producer: usize) {
        self.named += 1;
        self.producers[producer] = Producer::Open {
            writer: self.named,
            rows: 0,
            triggered: 0,
            notifies: false,
        };
    }

    pub(crate) fn draw(&mut self, producer: usize) {
        if let Producer::Open { rows, .. } = &mut self.producers[producer] {
            *rows += 1;
        }
        self.rows.push(Row::Open { producer });
    }

    /// The statement's trigger tries the quiet lock.
    pub(crate) fn trigger(&mut self, producer: usize) {
        if let Producer::Open {
            triggered,
            notifies,
            ..
        } = &mut self.producers[producer]
        {
            *triggered += 1;
            *notifies |= self.quiet.is_none();
        }
    }

    /// Says whether listeners are notified.
    pub(crate) fn end(&mut self, producer: usize, commit: bool) -> bool {
        for row in &mut self.rows {
            if *row == (Row::Open { producer }) {
                *row = if commit { FREE } else { Row::Gone };
            }
        }
        let before = std::mem::replace(&mut self.producers[producer], Producer::Over);
        commit && matches!(before, Producer::Open { notifies: true, .. })
    }

    /// `last_value + is_called::int`.
    pub(crate) fn next(&self) -> Seq {
        Seq(self.rows.len() as i64 + 1)
    }

    /// Who holds a `RowExclusiveLock`, without the relay that asks: producers, and the other relays'
    /// deletes.
    pub(crate) fn writers(&self, relay: usize) -> BTreeSet<Writer> {
        let producers = self.producers.iter().filter_map(|producer| match producer {
            Producer::Open { writer, .. } => Some(Writer::new(1, u32::from(*writer))),
            _ => None,
        });
        let relays = self.rows.iter().filter_map(|row| match row {
            Row::Committed {
                holder: Some(holder),
                deleted: true,
                ..
            } if *holder != relay => Some(Writer::new(2, *holder as u32)),
            _ => None,
        });
        producers.chain(relays).collect()
    }

    /// The oldest row visible to a snapshot of now.
    pub(crate) fn oldest(&self, from: Option<Seq>) -> Option<Seq> {
        self.from(from)
            .find(|(_, row)| matches!(row, Row::Committed { .. }))
            .map(|(seq, _)| seq)
    }

    /// The oldest row of that range that nobody has locked.
    pub(crate) fn oldest_free(&self, from: Option<Seq>, below: Seq) -> Option<Seq> {
        self.from(from)
            .take_while(|(seq, _)| *seq < below)
            .find(|(_, row)| matches!(row, Row::Committed { holder: None, .. }))
            .map(|(seq, _)| seq)
    }

    fn from(&self, from: Option<Seq>) -> impl Iterator<Item = (Seq, Row)> + '_ {
        let all = (1..).map(Seq).zip(self.rows.iter().copied());
        all.filter(move |(seq, _)| from.is_none_or(|from| *seq >= from))
    }

    /// Locks up to `limit` rows from there on, skipping what others have locked.
    pub(crate) fn claim(&mut self, relay: usize, from: Option<Seq>, limit: usize) -> Vec<Seq> {
        let free = self
            .from(from)
            .filter(|(_, row)| matches!(row, Row::Committed { holder: None, .. }));
        let claimed: Vec<Seq> = free.map(|(seq, _)| seq).take(limit).collect();
        for seq in &claimed {
            self.lock_row(relay, *seq);
        }
        claimed
    }

    pub(crate) fn lock_row(&mut self, relay: usize, seq: Seq) {
        if let Row::Committed {
            holder, held_by, ..
        } = self.row(seq)
        {
            *holder = Some(relay);
            *held_by |= 1 << relay;
        }
    }

    fn row(&mut self, seq: Seq) -> &mut Row {
        &mut self.rows[seq.0 as usize - 1]
    }

    pub(crate) fn delete(&mut self, claimed: &[Seq]) {
        for seq in claimed {
            if let Row::Committed { deleted, .. } = self.row(*seq) {
                *deleted = true;
            }
        }
    }

    /// The end of a claim.
    pub(crate) fn settle(&mut self, claimed: &[Seq], commit: bool) {
        for seq in claimed {
            match self.row(*seq) {
                row if commit => *row = Row::Gone,
                Row::Committed {
                    holder, deleted, ..
                } => {
                    *holder = None;
                    *deleted = false;
                }
                _ => {}
            }
        }
    }

    /// The server is killed and started: what was open is rolled back, and the sequence may give again
    /// what only that had drawn.
    pub(crate) fn restart(&mut self) {
        for producer in 0..self.producers.len() {
            if matches!(self.producers[producer], Producer::Open { .. }) {
                let _ = self.end(producer, false);
            }
        }
        while self.rows.last() == Some(&Row::Gone) {
            self.rows.pop();
        }
        for row in &mut self.rows {
            if let Row::Committed {
                holder, deleted, ..
            } = row
            {
                *holder = None;
                *deleted = false;
            }
        }
        self.named = 0;
        self.quiet = None;
    }

    /// The lowest `seq` of a row that is there or may yet appear.
    pub(crate) fn lowest_possible(&self) -> Seq {
        let mut rows = self.from(None);
        let here = rows.find(|(_, row)| *row != Row::Gone);
        here.map_or(self.next(), |(seq, _)| seq)
    }
}

const FREE: Row = Row::Committed {
    holder: None,
    held_by: 0,
    deleted: false,
};
