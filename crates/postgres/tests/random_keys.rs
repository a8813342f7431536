//! Many claimers on few keys, with every outcome at random, while producers commit: what arrives of each key is in order, and
//! nothing is left.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fresh::keyed::from_the_beginning;
use fresh::settling::{dead, retry};
use fresh::{DEADLINE, client, outbox};
use postrider_core::{Fate, Lanes, Message, OrderedPlan, Seq, Settling};
use postrider_postgres::{
    Claim, ClaimLimits, Database, DeadLetterFilter, Error, LookFor, OrderedClaim, Settings,
    Settlement,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const KEYS: i64 = 6;
const MESSAGES: i64 = 1500;
const CLAIMERS: u64 = 6;

/// What consumers saw: of each key the places of first deliveries, in the order in which they came.
type Delivered = Arc<Mutex<HashMap<String, Vec<Seq>>>>;

struct Claimer {
    database: Database,
    killer: tokio_postgres::Client,
    random: StdRng,
    delivered: Delivered,
}

impl Claimer {
    fn limits(&mut self) -> ClaimLimits {
        ClaimLimits {
            rows: self.random.random_range(1..30),
            ..fresh::LIMITS
        }
    }

    async fn turn(&mut self) {
        let limits = self.limits();
        match self.random.random_range(0..4) {
            0 | 1 => {
                let every = Lanes::default().starts(None);
                let found = self.database.waiting_lanes(None, LookFor::First, &every);
                let Ok(found) = found.await else { return };
                let most = usize::try_from(limits.rows).unwrap();
                let lanes = from_the_beginning(found.lanes.into_iter().take(most));
                let claim = self.database.claim_lanes(limits, &lanes, &[], None).await;
                self.ordered(claim).await;
            }
            2 => {
                let Ok(keys) = self.database.resuming_keys("", 5).await else {
                    return;
                };
                let claim = self.database.claim_parked(limits, &keys, &[]).await;
                self.ordered(claim).await;
            }
            _ => {
                if let Ok(claim) = self.database.claim_due(limits, &[], None).await {
                    let messages = claim.messages().to_vec();
                    self.publish(claim, &messages, &[]).await;
                }
            }
        }
    }

    async fn ordered(&mut self, claim: Result<OrderedClaim, Error>) {
        if let Ok(OrderedClaim { claim, rows, .. }) = claim {
            let plan = OrderedPlan::new(rows, &HashSet::new());
            self.publish(claim, &plan.send, &plan.park).await;
        }
    }

    async fn publish(&mut self, claim: Claim, messages: &[Message], park: &[Seq]) {
        let mut settlement = Settlement {
            park: park.to_vec(),
            ..Settlement::default()
        };
        let mut stopped: HashSet<&str> = HashSet::new();
        let mut settling = Settling::default();
        for message in messages {
            let key = message.key().unwrap();
            if stopped.contains(key) {
                assert_eq!(settling.settle(message, Fate::Stays), Fate::Stays);
                continue;
            }
            // The other claimers get on with what they can.
            tokio::task::yield_now().await;
            let seq = message.seq;
            match self.random.random_range(0..100) {
                0..80 => {
                    let mut delivered = self.delivered.lock().unwrap();
                    let of_key = delivered.entry(key.to_owned()).or_default();
                    if !of_key.contains(&seq) {
                        of_key.push(seq);
                    }
                    settlement.done.push(seq);
                    assert_eq!(settling.settle(message, Fate::Delivered), Fate::Delivered);
                }
                80..90 => {
                    stopped.insert(key);
                    let wait = Duration::from_millis(self.random.random_range(0..20));
                    if settling.settle(message, Fate::Moves) == Fate::Moves {
                        settlement.retry.push(retry(seq.0, wait));
                    }
                }
                90..95 => {
                    stopped.insert(key);
                    if settling.settle(message, Fate::Moves) == Fate::Moves {
                        settlement.dead.push(dead(seq.0));
                        settlement.blocking.push(seq);
                    }
                }
                _ => {
                    stopped.insert(key);
                    assert_eq!(settling.settle(message, Fate::Stays), Fate::Stays);
                }
            }
        }
        match self.random.random_range(0..20) {
            0 => drop(claim.release().await),
            1 => drop(claim),
            2 => {
                let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                            WHERE datname = current_database() AND state = 'idle in transaction' AND application_name LIKE 'postrider%' LIMIT 1";
                self.killer.batch_execute(kill).await.unwrap();
                drop(claim.settle(&settlement).await);
            }
            _ => match claim.settle(&settlement).await {
                Ok(settled) => {
                    assert!(
                        matches!(settled, postrider_postgres::Settled::Whole),
                        "{settled:?}"
                    );
                }
                // Somebody's kill hit this one.
                Err(error) => assert!(error.is_connection(), "{error}"),
            },
        }
    }
}

async fn produce(url: String, producer: i64, seed: u64) {
    let client = client(&url).await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut left = MESSAGES / 2;
    while left > 0 {
        let rows = random.random_range(1..=left.min(5));
        // Two transactions of one key exclude one another: the producers have keys of their own.
        let insert = format!(
            "BEGIN; INSERT INTO outbox.messages (exchange, routing_key, payload_json, ordering_key) \
             SELECT 'e', 'k', '1', 'key-' || (2 * (random() * {KEYS} / 2)::int + {producer}) FROM generate_series(1, {rows})"
        );
        client.batch_execute(&insert).await.unwrap();
        if random.random_range(0..10) == 0 {
            client.batch_execute("ROLLBACK").await.unwrap();
        } else {
            client.batch_execute("COMMIT").await.unwrap();
            left -= rows;
        }
    }
}

/// A person who retries what was given up, again and again.
async fn retries(database: Database, finished: Arc<AtomicBool>) {
    while !finished.load(Ordering::Relaxed) {
        let all = DeadLetterFilter::default();
        let _ = database.retry_dead_letters(&all, None, 3).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_the_messages_of_each_key_are_first_delivered_in_order_and_none_is_left() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let outbox = outbox().await;
    let delivered = Delivered::default();
    let finished = Arc::new(AtomicBool::new(false));
    let database = || Database::new(Settings::new(&outbox.url)).unwrap();
    let producers = [0, 1].map(|n| {
        let seed = seed ^ u64::try_from(n).unwrap();
        tokio::spawn(produce(outbox.url.clone(), n, seed))
    });
    let person = tokio::spawn(retries(database(), Arc::clone(&finished)));
    let mut claimers = Vec::new();
    for n in 0..CLAIMERS {
        let mut claimer = Claimer {
            database: database(),
            killer: client(&outbox.url).await,
            random: StdRng::seed_from_u64(seed ^ (n + 7)),
            delivered: Arc::clone(&delivered),
        };
        let finished = Arc::clone(&finished);
        claimers.push(tokio::spawn(async move {
            while !finished.load(Ordering::Relaxed) {
                claimer.turn().await;
            }
        }));
    }
    for producer in producers {
        producer.await.unwrap();
    }
    let end = Instant::now() + DEADLINE;
    while outbox.where_all_are().await != "|||" || outbox.blocked().await != "null" {
        let seen = format!(
            "{} {}",
            outbox.where_all_are().await,
            outbox.blocked().await
        );
        assert!(Instant::now() < end, "seed {seed}: never drained: {seen}");
        assert!(
            claimers.iter().all(|claimer| !claimer.is_finished()),
            "seed {seed}: a claimer ended"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    finished.store(true, Ordering::Relaxed);
    for claimer in claimers {
        claimer.await.unwrap();
    }
    person.await.unwrap();
    let delivered = delivered.lock().unwrap();
    let mut all = 0;
    for (key, seqs) in delivered.iter() {
        assert!(seqs.is_sorted(), "seed {seed}: {key}: {seqs:?}");
        all += seqs.len();
    }
    assert_eq!(i64::try_from(all).unwrap(), MESSAGES, "seed {seed}");
}
