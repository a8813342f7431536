//! Producers that do whatever producers may do, at random, beside claims that follow one frontier: nothing appears
//! below the floor, and everything committed is claimed without a look back and without a sweep.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;
mod watched;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use fresh::{DEADLINE, LIMITS, client, done, outbox_at};
use postrider_core::{Frontier, Seq};
use postrider_postgres::{Claim, ClaimLimits, Database, OutboxWatch, Settings, Settled};
use postrider_testbed::{PostgresOptions, PostgresServer};
use watched::{claim_from, insert, passed};

const SEED: u64 = 5;
const PRODUCERS: u64 = 8;
const TRANSACTIONS: u64 = 80;
const CLAIMERS: u64 = 2;

/// SplitMix64: the same choices for the same seed, whatever the version of a library.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// What the tasks share, as the workers and the watcher of a relay do.
struct Run {
    url: String,
    frontier: Mutex<Frontier<Seq>>,
    committed: Mutex<BTreeSet<String>>,
    claimed: Mutex<BTreeSet<String>>,
    producing: AtomicUsize,
    produced_at: OnceLock<Instant>,
    given_back: AtomicUsize,
    prepared: AtomicUsize,
    locked: AtomicUsize,
}

impl Run {
    fn frontier(&self) -> MutexGuard<'_, Frontier<Seq>> {
        self.frontier.lock().unwrap()
    }

    /// Whether everything is claimed, or will never be.
    fn is_over(&self) -> bool {
        if self.producing.load(Ordering::SeqCst) > 0 {
            return false;
        }
        let waited = self.produced_at.get_or_init(Instant::now).elapsed();
        *self.committed.lock().unwrap() == *self.claimed.lock().unwrap() || waited > DEADLINE
    }
}

/// One producer's open transaction.
struct Transaction<'a> {
    run: &'a Run,
    client: &'a tokio_postgres::Client,
    random: &'a mut Random,
    name: String,
    rows: u64,
    kept: Vec<String>,
}

impl Transaction<'_> {
    async fn execute(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    async fn insert(&mut self) {
        let most = if self.random.one_in(5) { 40 } else { 4 };
        let rows = 1 + self.random.below(most);
        let keys = (0..rows).map(|row| format!("{}.{}", self.name, self.rows + row));
        let keys: Vec<String> = keys.collect();
        if rows == 1 {
            self.execute(&insert(&keys[0])).await;
        } else {
            let values = keys.iter().map(|key| format!("('e', '{key}', '1')"));
            let values: Vec<String> = values.collect();
            self.execute(&format!("{} VALUES {}", watched::INSERT, values.join(", ")))
                .await;
        }
        self.rows += rows;
        self.kept.extend(keys);
    }

    /// Before it writes, a lock that keeps all others from writing, and most of them the claims too.
    async fn lock(&mut self) {
        const MODES: [&str; 3] = ["SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE"];
        let mode = MODES[usize::try_from(self.random.below(3)).unwrap()];
        self.execute(&format!("LOCK TABLE outbox.messages IN {mode} MODE"))
            .await;
        self.run.locked.fetch_add(1, Ordering::SeqCst);
    }

    /// Beside what it holds, any lock that can be had at once: others do the same, and would wait for each other.
    async fn try_lock(&mut self) {
        const MODES: [&str; 4] = [
            "ROW SHARE",
            "ROW EXCLUSIVE",
            "SHARE ROW EXCLUSIVE",
            "EXCLUSIVE",
        ];
        let mode = MODES[usize::try_from(self.random.below(4)).unwrap()];
        self.execute("SAVEPOINT lock").await;
        let lock = format!("LOCK TABLE outbox.messages IN {mode} MODE NOWAIT");
        if self.client.batch_execute(&lock).await.is_err() {
            self.execute("ROLLBACK TO lock").await;
        }
    }

    async fn within_a_savepoint(&mut self) {
        self.execute("SAVEPOINT part").await;
        let before = self.kept.len();
        self.insert().await;
        self.pause().await;
        if self.random.one_in(2) {
            self.execute("ROLLBACK TO part").await;
            self.kept.truncate(before);
        } else {
            self.execute("RELEASE part").await;
        }
    }

    /// Open for nothing, for some milliseconds, or for so long that many others come and go.
    async fn pause(&mut self) {
        let milliseconds = match self.random.below(40) {
            0 => 200 + self.random.below(800),
            1..=10 => self.random.below(20),
            _ => return,
        };
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }

    async fn write(&mut self) {
        if self.random.one_in(50) {
            self.lock().await;
        }
        for _ in 0..=self.random.below(4) {
            match self.random.below(10) {
                0 => self.try_lock().await,
                1..=3 => self.within_a_savepoint().await,
                _ => self.insert().await,
            }
            self.pause().await;
        }
    }
}

async fn produce(run: &Run, seed: u64, producer: u64) {
    let mut random = Random(seed.wrapping_mul(1000).wrapping_add(producer));
    let mut session = client(&run.url).await;
    for number in 0..TRANSACTIONS {
        let prepares = random.one_in(10);
        let mut transaction = Transaction {
            run,
            client: &session,
            random: &mut random,
            name: format!("{producer}.{number}"),
            rows: 0,
            kept: Vec::new(),
        };
        let begin = if prepares {
            "BEGIN; SET LOCAL postrider.notify = 'off'"
        } else {
            "BEGIN"
        };
        transaction.execute(begin).await;
        transaction.write().await;
        let (name, kept) = (transaction.name, transaction.kept);
        let commits = !random.one_in(6);
        let end = if commits { "COMMIT" } else { "ROLLBACK" };
        if prepares {
            session
                .batch_execute(&format!("PREPARE TRANSACTION '{name}'"))
                .await
                .unwrap();
            run.prepared.fetch_add(1, Ordering::SeqCst);
            // The connection that prepared it may be gone when it is committed.
            if random.one_in(2) {
                session = client(&run.url).await;
            }
            tokio::time::sleep(Duration::from_millis(random.below(300))).await;
            session
                .batch_execute(&format!("{end} PREPARED '{name}'"))
                .await
                .unwrap();
        } else {
            session.batch_execute(end).await.unwrap();
        }
        if commits {
            run.committed.lock().unwrap().extend(kept);
        }
    }
    run.producing.fetch_sub(1, Ordering::SeqCst);
}

/// Claims as a worker does, and tells what it gives back as a worker does: after the rows are free.
async fn claim(run: &Run, database: &Database, seed: u64, claimer: u64) {
    let mut random = Random(seed.wrapping_mul(1000).wrapping_add(500 + claimer));
    while !run.is_over() {
        let limits = ClaimLimits {
            rows: [1, 7, 50, 500][usize::try_from(random.below(4)).unwrap()],
            // Some are cut by the bytes: each message has one.
            bytes: if random.one_in(4) { 5 } else { LIMITS.bytes },
            ..LIMITS
        };
        let scan = run.frontier().scan();
        let claim = claim_from(database, limits, scan).await;
        if let Some(passed) = passed(&claim) {
            run.frontier().passed(scan, passed);
        }
        if claim.is_empty() {
            tokio::time::sleep(Duration::from_millis(random.below(5))).await;
            continue;
        }
        let first = claim.messages()[0].seq;
        let beyond = claim.untaken();
        if random.one_in(10) {
            tokio::time::sleep(Duration::from_millis(random.below(50))).await;
        }
        let left = deliver(run, claim, &mut random).await;
        if let Some(lowest) = if left { Some(first) } else { beyond } {
            run.given_back.fetch_add(1, Ordering::SeqCst);
            run.frontier().given_back(lowest);
        }
    }
}

/// Settles all of a claim, some of it, or nothing; whether anything was left.
async fn deliver(run: &Run, claim: Claim, random: &mut Random) -> bool {
    let all = claim.len();
    let fate = random.below(10);
    if fate == 0 {
        claim.release().await.unwrap();
        return true;
    }
    let sent = claim
        .messages()
        .iter()
        .filter(|_| fate > 2 || !random.one_in(3));
    let (seqs, keys): (Vec<Seq>, Vec<String>) = sent
        .map(|message| (message.seq, message.routing_key.clone()))
        .unzip();
    let settled = claim.settle(&done(&seqs)).await.unwrap();
    assert!(matches!(settled, Settled::Whole));
    let left = seqs.len() < all;
    let mut claimed = run.claimed.lock().unwrap();
    for key in keys {
        assert!(claimed.insert(key), "claimed twice");
    }
    left
}

/// Looks as the watcher does, and then at what should never be there.
async fn look(run: &Run, watch: &mut OutboxWatch, seed: u64) -> u32 {
    let mut looks = 0;
    while !run.is_over() {
        let look = watch.look().await.unwrap();
        let ask = {
            let mut frontier = run.frontier();
            let seen = frontier.looked(look.next, look.writers, true);
            assert!(!seen.fell);
            frontier.ask()
        };
        if let Some(ask) = ask {
            let oldest = watch.oldest(ask.from(), ask.below()).await.unwrap();
            run.frontier().raise(ask, oldest);
        }
        let floor = run.frontier().floor().floor();
        if let Some(floor) = floor {
            let below = watch.oldest(None, floor).await.unwrap();
            assert_eq!(below, None, "a row below the floor {floor}; seed {seed}");
        }
        looks += 1;
        tokio::task::yield_now().await;
    }
    looks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_producers_do_nothing_appears_below_the_floor_and_all_of_it_is_claimed_from_the_frontier()
 {
    let seed = std::env::var("TRANSACTIONS_SEED").map_or(SEED, |seed| seed.parse().unwrap());
    println!("TRANSACTIONS_SEED={seed}");
    let server = PostgresServer::start(PostgresOptions {
        config: vec![
            "max_prepared_transactions = 50".to_owned(),
            // A claim that deletes and one that waits for the whole table stand in each other's way until the
            // server has changed their places.
            "deadlock_timeout = 20ms".to_owned(),
        ],
        ..PostgresOptions::default()
    })
    .await
    .unwrap();
    let test = server.create_database().await.unwrap();
    let outbox = outbox_at(&test.url, &test.name).await;
    let mut watch = outbox.database.watch_outbox().await.unwrap();
    let run = Run {
        url: test.url.clone(),
        frontier: Mutex::default(),
        committed: Mutex::default(),
        claimed: Mutex::default(),
        producing: AtomicUsize::new(usize::try_from(PRODUCERS).unwrap()),
        produced_at: OnceLock::new(),
        given_back: AtomicUsize::new(0),
        prepared: AtomicUsize::new(0),
        locked: AtomicUsize::new(0),
    };
    let database = Database::new(Settings::new(&test.url)).unwrap();
    let producers = (0..PRODUCERS).map(|number| produce(&run, seed, number));
    let claimers = (0..CLAIMERS).map(|number| claim(&run, &database, seed, number));
    let (_, _, looks) = tokio::join!(
        futures_util::future::join_all(producers),
        futures_util::future::join_all(claimers),
        look(&run, &mut watch, seed),
    );

    let committed = run.committed.into_inner().unwrap();
    let claimed = run.claimed.into_inner().unwrap();
    let lost: Vec<_> = committed.difference(&claimed).take(5).collect();
    assert!(lost.is_empty(), "never claimed: {lost:?}; seed {seed}");
    let phantom: Vec<_> = claimed.difference(&committed).take(5).collect();
    assert!(
        phantom.is_empty(),
        "never committed: {phantom:?}; seed {seed}"
    );
    assert_eq!(outbox.count().await, 0);
    let rows = committed.len();
    let given_back = run.given_back.into_inner();
    let prepared = run.prepared.into_inner();
    let locked = run.locked.into_inner();
    println!(
        "{rows} rows, {looks} looks, {given_back} claims given back, {prepared} transactions prepared, \
         {locked} that locked the table"
    );
    assert!(rows > 2000 && given_back > 10 && prepared > 10 && locked > 5);
}
