//! Producers and consumers: what the relays have to carry meanwhile.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use lapin::{message::Delivery, types::AMQPValue};
use postrider_testbed::{Audit, Consumer, Keys, Producer, ProducerOptions, producer::DUE_HEADER};

use super::stage::{CALM, FULL, KEYED, LATER, LATEST, Route, SHOP, Stage, routes, ways_of_keys};

/// Transactions a second, of two messages each, on every route.
const RATE: f64 = 6.0;

/// Transactions a second, of one to four messages each, on keys.
const KEYED_RATE: f64 = 30.0;

/// So many that a key is often met again while it is blocked.
const KEYS: usize = 200;

const ROLLBACK_SHARE: f64 = 0.1;

/// The longest time a slow transaction stays open after its inserts.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// How far ahead messages are scheduled.
const SCHEDULED_AHEAD: Duration = Duration::from_secs(8);

const CONSUMING_DEADLINE: Duration = Duration::from_secs(60);

/// What flows.
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) audit: Audit,
    producers: Mutex<Vec<Producer>>,
    _consumers: Vec<Consumer>,
    /// The one of the queue that fills when nobody consumes it.
    full: Mutex<Option<Consumer>>,
    url: String,
    timekeeper: Arc<Timekeeper>,
}

/// Watches that no scheduled message comes before its time.
#[derive(Debug, Default)]
struct Timekeeper {
    scheduled: AtomicU64,
    early: AtomicU64,
    /// Of those that came without the header that says when: the soak's own fault, or a relay's that loses headers.
    untimed: AtomicU64,
}

impl Traffic {
    /// Subscribes every consumer; nothing is produced yet.
    pub(crate) async fn subscribe(stage: &Stage) -> Result<Self> {
        let audit = Audit::new();
        let url = stage.vhost.url.clone();
        let timekeeper = Arc::new(Timekeeper::default());
        let mut consumers = Vec::new();
        for route in routes().iter().filter(|route| route.queue != FULL) {
            let consumer = if route.queue == LATER {
                let timekeeper = Arc::clone(&timekeeper);
                Consumer::start_with(&url, LATER, &audit, move |delivery| {
                    timekeeper.look(delivery);
                })
            } else {
                Consumer::start(&url, &route.queue, &audit)
            };
            consumer.wait_until_consuming(CONSUMING_DEADLINE).await?;
            consumers.push(consumer);
        }
        let traffic = Self {
            audit,
            producers: Mutex::default(),
            _consumers: consumers,
            full: Mutex::new(None),
            url,
            timekeeper,
        };
        traffic.drain_full();
        Ok(traffic)
    }

    /// Starts the producers. They insert without a proxy between, and outlive restarts of the database.
    pub(crate) async fn produce(&self, stage: &Stage) -> Result<()> {
        let slow = Route {
            exchange: SHOP,
            queue: CALM[0].to_owned(),
        };
        let mut all: Vec<ProducerOptions> = routes()
            .iter()
            .filter(|route| route.queue != KEYED && route.queue != LATEST)
            .map(|route| ProducerOptions {
                scheduled_ahead: (route.queue == LATER).then_some(SCHEDULED_AHEAD),
                ..options(stage, route)
            })
            .collect();
        all.push(ProducerOptions {
            connections: 4,
            rate: Some(2.0),
            rollback_share: 0.3,
            longest_pause: LONGEST_PAUSE,
            ..options(stage, &slow)
        });
        all.extend(keyed(stage));
        for options in all {
            let producer = Producer::start(options, &self.audit).await?;
            self.producers.lock().unwrap().push(producer);
        }
        Ok(())
    }

    /// Stops the producers, and has the database's word on every commit that was not answered.
    pub(crate) async fn stop_producing(&self) -> Result<()> {
        let producers = std::mem::take(&mut *self.producers.lock().unwrap());
        Producer::stop_all(producers).await
    }

    /// Nobody empties [`FULL`] any more.
    pub(crate) fn leave_full(&self) {
        *self.full.lock().unwrap() = None;
    }

    /// [`FULL`] is emptied, and kept empty.
    pub(crate) fn drain_full(&self) {
        *self.full.lock().unwrap() = Some(Consumer::start(&self.url, FULL, &self.audit));
    }

    /// Scheduled messages that arrived, those that came before their time, and those that did not say when.
    pub(crate) fn scheduled(&self) -> (u64, u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let keeper = &self.timekeeper;
        (
            read(&keeper.scheduled),
            read(&keeper.early),
            read(&keeper.untimed),
        )
    }
}

fn options(stage: &Stage, route: &Route) -> ProducerOptions {
    ProducerOptions {
        connections: 1,
        rate: Some(RATE),
        rollback_share: ROLLBACK_SHARE,
        messages_per_transaction: 2,
        ..ProducerOptions::new(&stage.database.url, route.exchange, &route.queue)
    }
}

/// Those with a key: quick ones, slow ones, and such as may be superseded.
fn keyed(stage: &Stage) -> [ProducerOptions; 3] {
    let own = Route {
        exchange: SHOP,
        queue: KEYED.to_owned(),
    };
    let quick = ProducerOptions {
        connections: 4,
        rate: Some(KEYED_RATE),
        keys: Some(Keys {
            routes: ways_of_keys(),
            ..Keys::new(KEYS)
        }),
        ..options(stage, &own)
    };
    let slow = ProducerOptions {
        rate: Some(2.0),
        rollback_share: 0.3,
        longest_pause: LONGEST_PAUSE,
        ..quick.clone()
    };
    let latest = Route {
        exchange: SHOP,
        queue: LATEST.to_owned(),
    };
    let superseding = ProducerOptions {
        keys: Some(Keys {
            prefix: LATEST.to_owned(),
            supersede_share: 0.7,
            ..Keys::new(10)
        }),
        ..options(stage, &latest)
    };
    [quick, slow, superseding]
}

impl Timekeeper {
    fn look(&self, delivery: &Delivery) {
        self.scheduled.fetch_add(1, Ordering::Relaxed);
        // The database's clock and this one are the same machine's.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let due = delivery
            .properties
            .headers()
            .as_ref()
            .and_then(|headers| headers.inner().get(DUE_HEADER))
            .and_then(|due| match due {
                AMQPValue::LongLongInt(due) => u64::try_from(*due).ok(),
                _ => None,
            });
        match (now, due) {
            (Ok(now), Some(due)) if now < Duration::from_micros(due) => {
                self.early.fetch_add(1, Ordering::Relaxed);
            }
            (Ok(_), Some(_)) => {}
            (_, None) | (Err(_), _) => {
                self.untimed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
