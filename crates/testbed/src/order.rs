//! Order by key, as a consumer sees it: first deliveries against the order in which the key's transactions committed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

use serde::Serialize;
use uuid::Uuid;

use crate::audit::Delivery;

/// The header with a message's key, by its default name.
pub const KEY_HEADER: &str = "x-ordering-key";

/// The header with its place in the outbox, by its default name.
pub const SEQ_HEADER: &str = "x-ordering-seq";

/// Where a message stands among those of its key. Told before its transaction commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The ordering key.
    pub key: String,
    /// Which of the committed messages of the key it is, in the order of their commits: drawn under a lock that excludes all
    /// other transactions on the key, so that what rolls back leaves no gap.
    pub number: i64,
    /// If it may be superseded by the next one that goes the same way: the way.
    pub supersede: Option<String>,
}

/// The headers by which a consumer knows the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OrderingHeaders {
    /// The ordering key.
    pub key: String,
    /// The place in the outbox.
    pub seq: i64,
}

/// A first delivery that came after that of a later message of its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inversion {
    /// Their key.
    pub key: String,
    /// The queue they came from.
    pub queue: String,
    /// The message that came too late.
    pub late: Uuid,
    /// Its number, and the highest that had been delivered before it.
    pub numbers: (i64, i64),
    /// The broker had handed it out before, to a consumer that was gone before it said so: it was requeued, and the order is the broker's.
    pub redelivered: bool,
}

/// What the deliveries say about order by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OrderReport {
    /// Keys of which anything was delivered.
    pub keys: u64,
    /// Messages with a key that were delivered, each counted once for each queue.
    pub delivered: u64,
    /// First deliveries that came after that of a later message of their key.
    pub inversions: Vec<Inversion>,
    /// The same of keys of which any message may be superseded: from a connection that was given up, such a message may
    /// still come when it is not needed any more.
    pub excepted: Vec<Inversion>,
    /// Deliveries whose headers do not name the message's key, and messages without a key whose headers name one.
    pub mislabelled: Vec<Uuid>,
    /// What a consumer that keeps only the highest `seq` of each key would get wrong: first deliveries that it would drop, and repeats
    /// that it would not.
    pub misjudged: Vec<Uuid>,
}

impl OrderReport {
    /// No first delivery out of order, and every consumer could know.
    pub fn is_clean(&self) -> bool {
        self.inversions.is_empty() && self.mislabelled.is_empty() && self.misjudged.is_empty()
    }
}

impl fmt::Display for OrderReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "keys {}, messages with a key {}, inversions {} and {} of coalesced keys, mislabelled {}, misjudged by seq {}",
            self.keys,
            self.delivered,
            self.inversions.len(),
            self.excepted.len(),
            self.mislabelled.len(),
            self.misjudged.len()
        )?;
        for Inversion {
            key,
            queue,
            late,
            numbers,
            redelivered,
        } in self.inversions.iter().take(5)
        {
            let (number, before) = numbers;
            let requeued = if *redelivered { ", requeued" } else { "" };
            write!(
                f,
                "\n  inversion: {late}, number {number} of {key}, came out of {queue} after number {before}{requeued}"
            )?;
        }
        let requeued = self.inversions.iter().filter(|late| late.redelivered);
        let requeued = requeued.count();
        if requeued > 0 {
            write!(
                f,
                "\n  {requeued} of the inversions were requeued by the broker: handed out before to a consumer that was gone"
            )?;
        }
        for (what, ids) in [
            ("mislabelled", &self.mislabelled),
            ("misjudged", &self.misjudged),
        ] {
            for id in ids.iter().take(5) {
                write!(f, "\n  {what}: {id}")?;
            }
        }
        Ok(())
    }
}

/// What a consumer of one queue knows of one key.
#[derive(Default)]
struct KeyBook {
    highest_number: Option<i64>,
    highest_seq: Option<i64>,
}

/// Goes through all deliveries in the order of their arrival.
pub(crate) fn examine(deliveries: &[Delivery], places: &HashMap<Uuid, Place>) -> OrderReport {
    let mut report = OrderReport::default();
    let mut books: HashMap<(&str, &str), KeyBook> = HashMap::new();
    let mut seen: HashSet<(&str, Uuid)> = HashSet::new();
    let mut keys: HashSet<&str> = HashSet::new();
    let coalesced: HashSet<&str> = places
        .values()
        .filter(|place| place.supersede.is_some())
        .map(|place| place.key.as_str())
        .collect();
    for delivery in deliveries {
        let Delivery {
            id,
            queue,
            ordering,
            ..
        } = delivery;
        let is_first = seen.insert((queue, *id));
        let Some(place) = places.get(id) else {
            if ordering.is_some() {
                report.mislabelled.push(*id);
            }
            continue;
        };
        keys.insert(&place.key);
        let is_excepted = coalesced.contains(place.key.as_str());
        let book = books.entry((queue, &place.key)).or_default();
        if is_first {
            report.delivered += 1;
            match book.highest_number {
                Some(before) if before > place.number => {
                    let inversion = Inversion {
                        key: place.key.clone(),
                        queue: queue.clone(),
                        late: *id,
                        numbers: (place.number, before),
                        redelivered: delivery.redelivered,
                    };
                    if is_excepted {
                        report.excepted.push(inversion);
                    } else {
                        report.inversions.push(inversion);
                    }
                }
                _ => book.highest_number = Some(place.number),
            }
        }
        match ordering {
            Some(OrderingHeaders { key, seq }) if *key == place.key => {
                let is_new = book.highest_seq.is_none_or(|highest| *seq > highest);
                if is_new != is_first && !is_excepted {
                    report.misjudged.push(*id);
                }
                book.highest_seq = book.highest_seq.max(Some(*seq));
            }
            Some(_) | None => report.mislabelled.push(*id),
        }
    }
    report.keys = keys.len() as u64;
    report
}

/// Those of the `missing` that a later message, which was delivered, stands for: all between are marked, and go the same way.
pub(crate) fn superseded(
    missing: &HashSet<Uuid>,
    committed: &HashSet<Uuid>,
    is_delivered: impl Fn(&Uuid) -> bool,
    places: &HashMap<Uuid, Place>,
) -> HashSet<Uuid> {
    let affected: HashSet<&str> = missing
        .iter()
        .filter_map(|id| places.get(id))
        .map(|place| place.key.as_str())
        .collect();
    let mut lines: HashMap<&str, BTreeMap<i64, (Uuid, &Option<String>)>> = HashMap::new();
    for (id, place) in places {
        if affected.contains(place.key.as_str()) && committed.contains(id) {
            let line = lines.entry(&place.key).or_default();
            line.insert(place.number, (*id, &place.supersede));
        }
    }
    let mut superseded = HashSet::new();
    for line in lines.values() {
        let mut newest: Option<&String> = None;
        for (id, way) in line.values().rev() {
            newest = match (way, newest) {
                (None, _) => None,
                (Some(way), _) if is_delivered(id) => Some(way),
                (Some(way), Some(newest)) if way == newest => {
                    superseded.insert(*id);
                    Some(newest)
                }
                (Some(_), _) => None,
            };
        }
    }
    superseded
}
