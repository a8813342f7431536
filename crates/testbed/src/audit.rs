//! The auditor: what was committed against what was delivered, by message id.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde::Serialize;
use tokio::sync::watch;
use uuid::Uuid;

use crate::order::{self, OrderReport, OrderingHeaders, Place};

/// One message as a consumer got it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Delivery {
    /// The message's id.
    pub id: Uuid,
    /// The queue it came from.
    pub queue: String,
    /// The broker's word that it may have been delivered before (a repeat that is the broker's or the consumer's,
    /// not the relay's).
    pub redelivered: bool,
    /// Its place among all deliveries of this audit, from 0.
    pub order: u64,
    /// Its key and `seq`, as its headers say.
    pub ordering: Option<OrderingHeaders>,
}

#[derive(Debug, Default)]
struct Books {
    committed: HashSet<Uuid>,
    rolled_back: HashSet<Uuid>,
    /// The producer never heard whether it was committed.
    unknown: HashSet<Uuid>,
    deliveries: Vec<Delivery>,
    /// Of the messages with a key.
    places: HashMap<Uuid, Place>,
    /// How often each id came out of each queue, redeliveries left out: those are no second copy.
    copies: HashMap<Uuid, HashMap<String, u64>>,
    /// When the commit of an id became known, and when the id first arrived.
    committed_at: HashMap<Uuid, Instant>,
    arrived_at: HashMap<Uuid, Instant>,
    /// Ids committed and not yet delivered, kept up to date so that waiting costs nothing.
    outstanding: HashSet<Uuid>,
}

/// Collects from producers and consumers; cheap to clone, safe to share.
#[derive(Clone, Debug)]
pub struct Audit {
    books: Arc<Mutex<Books>>,
    /// How many committed messages have not been delivered.
    outstanding: Arc<watch::Sender<usize>>,
    delivered: Arc<watch::Sender<u64>>,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            books: Arc::default(),
            outstanding: Arc::new(watch::Sender::new(0)),
            delivered: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Audit {
    /// An audit with empty books.
    pub fn new() -> Self {
        Self::default()
    }

    fn note(&self, entry: impl FnOnce(&mut Books)) {
        let mut books = self.books.lock().unwrap();
        entry(&mut books);
        // Told before the next entry is made: a message may arrive before its commit is noted, and the older number would be the
        // last that was told.
        self.outstanding.send_replace(books.outstanding.len());
        self.delivered.send_replace(books.deliveries.len() as u64);
    }

    /// The transaction of these messages was committed: the database said so.
    pub fn committed(&self, ids: impl IntoIterator<Item = Uuid>) {
        let now = Instant::now();
        self.note(|books| {
            for id in ids {
                books.unknown.remove(&id);
                books.committed.insert(id);
                books.committed_at.entry(id).or_insert(now);
                if !books.copies.contains_key(&id) {
                    books.outstanding.insert(id);
                }
            }
        });
    }

    /// The transaction of these messages was rolled back, or never got to its commit.
    pub fn rolled_back(&self, ids: impl IntoIterator<Item = Uuid>) {
        self.note(|books| {
            for id in ids {
                books.unknown.remove(&id);
                books.rolled_back.insert(id);
            }
        });
    }

    /// The commit of these messages was asked for and not answered. They are neither lost nor phantom until
    /// [`resolve`](Self::resolve) has the database's word.
    pub fn maybe_committed(&self, ids: impl IntoIterator<Item = Uuid>) {
        self.note(|books| books.unknown.extend(ids));
    }

    /// The ids whose commit was not answered.
    pub fn unknown(&self) -> Vec<Uuid> {
        sorted(self.books.lock().unwrap().unknown.iter())
    }

    /// The database's word on the unknown: `exists` are those whose transaction left a trace; the others were rolled
    /// back.
    pub fn resolve(&self, exists: &HashSet<Uuid>) {
        let (committed, rolled_back): (Vec<_>, Vec<_>) = self
            .unknown()
            .into_iter()
            .partition(|id| exists.contains(id));
        self.committed(committed);
        self.rolled_back(rolled_back);
    }

    /// A message with a key is about to be committed, or was.
    pub fn placed(&self, id: Uuid, place: Place) {
        self.books.lock().unwrap().places.insert(id, place);
    }

    /// A consumer got a message, without headers about order.
    pub fn delivered(&self, id: Uuid, queue: &str, redelivered: bool) {
        self.delivered_with(id, queue, redelivered, None);
    }

    /// A consumer got a message.
    pub fn delivered_with(
        &self,
        id: Uuid,
        queue: &str,
        redelivered: bool,
        ordering: Option<OrderingHeaders>,
    ) {
        let now = Instant::now();
        self.note(|books| {
            let order = books.deliveries.len() as u64;
            books.deliveries.push(Delivery {
                id,
                queue: queue.to_owned(),
                redelivered,
                order,
                ordering,
            });
            let copies = books
                .copies
                .entry(id)
                .or_default()
                .entry(queue.to_owned())
                .or_default();
            if !redelivered || *copies == 0 {
                *copies += 1;
            }
            books.outstanding.remove(&id);
            books.arrived_at.entry(id).or_insert(now);
        });
    }

    /// All deliveries so far, in the order of their arrival.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.books.lock().unwrap().deliveries.clone()
    }

    /// For each message that is committed and delivered: its id, when the commit became known, and when it first
    /// arrived, which may be the earlier.
    pub fn journeys(&self) -> Vec<(Uuid, Instant, Instant)> {
        let books = self.books.lock().unwrap();
        books
            .arrived_at
            .iter()
            .filter_map(|(id, arrived)| Some((*id, *books.committed_at.get(id)?, *arrived)))
            .collect()
    }

    /// The times from the answer to the COMMIT to the first delivery, shortest first; zero where the message was
    /// quicker than the answer.
    pub fn latencies(&self) -> Vec<Duration> {
        let books = self.books.lock().unwrap();
        let mut latencies: Vec<Duration> = books
            .arrived_at
            .iter()
            .filter_map(|(id, arrived)| {
                let committed = books.committed_at.get(id)?;
                Some(arrived.saturating_duration_since(*committed))
            })
            .collect();
        latencies.sort_unstable();
        latencies
    }

    /// How many messages are committed.
    pub fn committed_count(&self) -> usize {
        self.books.lock().unwrap().committed.len()
    }

    /// How many deliveries there were, repeats included.
    pub fn delivery_count(&self) -> u64 {
        *self.delivered.borrow()
    }

    /// Waits until every committed message has been delivered (to one queue at least).
    ///
    /// # Errors
    /// Some were not within `deadline`: the error holds the report.
    pub async fn wait_until_all_delivered(&self, deadline: Duration) -> Result<()> {
        let mut outstanding = self.outstanding.subscribe();
        if tokio::time::timeout(deadline, outstanding.wait_for(|count| *count == 0))
            .await
            .is_err()
        {
            bail!("not all delivered within {deadline:?}: {}", self.report());
        }
        Ok(())
    }

    /// Waits until there were `count` deliveries, repeats included.
    ///
    /// # Errors
    /// There were fewer within `deadline`.
    pub async fn wait_for_deliveries(&self, count: u64, deadline: Duration) -> Result<()> {
        let mut delivered = self.delivered.subscribe();
        if tokio::time::timeout(deadline, delivered.wait_for(|have| *have >= count))
            .await
            .is_err()
        {
            bail!(
                "not {count} deliveries within {deadline:?}: {}",
                self.report()
            );
        }
        Ok(())
    }

    /// Whether what was delivered so far came in the order of its keys.
    pub fn order(&self) -> OrderReport {
        let books = self.books.lock().unwrap();
        order::examine(&books.deliveries, &books.places)
    }

    /// The state of the books now. A message that was superseded is not lost.
    pub fn report(&self) -> AuditReport {
        let books = self.books.lock().unwrap();
        let is_delivered = |id: &Uuid| books.copies.contains_key(id);
        let superseded = order::superseded(
            &books.outstanding,
            &books.committed,
            is_delivered,
            &books.places,
        );
        AuditReport {
            superseded: superseded.len() as u64,
            committed: books.committed.len() as u64,
            rolled_back: books.rolled_back.len() as u64,
            unknown: books.unknown.len() as u64,
            delivered: books.copies.len() as u64,
            duplicates: books
                .copies
                .values()
                .flat_map(HashMap::values)
                .map(|copies| copies - 1)
                .sum(),
            lost: sorted(books.outstanding.difference(&superseded)),
            phantom: sorted(
                books
                    .copies
                    .keys()
                    .filter(|id| !books.committed.contains(*id) && !books.unknown.contains(*id)),
            ),
        }
    }
}

fn sorted<'a>(ids: impl Iterator<Item = &'a Uuid>) -> Vec<Uuid> {
    let mut ids: Vec<Uuid> = ids.copied().collect();
    ids.sort_unstable();
    ids
}

/// What an [`Audit`] found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// Messages whose commit the database confirmed.
    pub committed: u64,
    /// Messages whose transaction was rolled back.
    pub rolled_back: u64,
    /// Messages whose commit was not answered and not resolved.
    pub unknown: u64,
    /// Distinct messages delivered.
    pub delivered: u64,
    /// Copies beyond the first out of one queue. A redelivery, marked as such by the broker, is no copy.
    pub duplicates: u64,
    /// Not delivered, because a later one that stood for them was.
    pub superseded: u64,
    /// Committed and not delivered.
    pub lost: Vec<Uuid>,
    /// Delivered and never committed.
    pub phantom: Vec<Uuid>,
}

impl AuditReport {
    /// Nothing lost, nothing phantom.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.phantom.is_empty()
    }
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "committed {}, rolled back {}, unknown {}, delivered {}, duplicates {}, superseded {}, lost {}, phantom {}",
            self.committed,
            self.rolled_back,
            self.unknown,
            self.delivered,
            self.duplicates,
            self.superseded,
            self.lost.len(),
            self.phantom.len()
        )?;
        for (what, ids) in [("lost", &self.lost), ("phantom", &self.phantom)] {
            for id in ids.iter().take(5) {
                write!(f, "\n  {what}: {id}")?;
            }
            if ids.len() > 5 {
                write!(f, "\n  {what}: and {} more", ids.len() - 5)?;
            }
        }
        Ok(())
    }
}
