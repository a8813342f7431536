//! An outbox that is watched and claimed from as the relay does it.
#![allow(dead_code, reason = "each test binary uses a part")]

use postrider_core::{Frontier, Look, Passed, Scan, Seq, Walked};
use postrider_postgres::{
    Claim, ClaimFrom, ClaimLimits, Database, LookBack, OutboxWatch, Schema, Settings, Settled,
};

use crate::fresh::{DEADLINE, LIMITS, Outbox, client, done, outbox};

pub(crate) const INSERT: &str = "INSERT INTO outbox.messages (exchange, routing_key, payload_json)";

/// The statement that inserts one message with this routing key.
pub(crate) fn insert(key: &str) -> String {
    format!("{INSERT} VALUES ('e', '{key}', '1')")
}

/// One with a place of its own choice.
pub(crate) fn insert_at(seq: i64, key: &str) -> String {
    format!(
        "INSERT INTO outbox.messages (seq, exchange, routing_key, payload_json) \
         OVERRIDING SYSTEM VALUE VALUES ({seq}, 'e', '{key}', '1')"
    )
}

pub(crate) async fn watched() -> Watched {
    Watched::new(outbox().await).await
}

/// A session as a new role that may use the schema, and what else is granted.
pub(crate) async fn role(outbox: &Outbox, grants: &[&str]) -> tokio_postgres::Client {
    let role = format!("role_{}", outbox.name);
    let create = format!("CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA outbox TO {role}");
    outbox.client.batch_execute(&create).await.unwrap();
    for grant in grants {
        let grant = format!("GRANT {grant} TO {role}");
        outbox.client.batch_execute(&grant).await.unwrap();
    }
    client(&outbox.url.replace("postgres@", &format!("{role}@"))).await
}

pub(crate) async fn database_in(url: &str, schema: &str) -> Database {
    let database = Database::new(Settings {
        schema: Schema::new(schema).unwrap(),
        ..Settings::new(url)
    })
    .unwrap();
    database.migrate(DEADLINE).await.unwrap();
    database
}

/// One relay's watch, its frontier, and what it has claimed and deleted.
pub(crate) struct Watched {
    pub(crate) outbox: Outbox,
    pub(crate) watch: OutboxWatch,
    pub(crate) frontier: Frontier<Seq>,
}

impl Watched {
    pub(crate) async fn new(outbox: Outbox) -> Self {
        Self {
            watch: outbox.database.watch_outbox().await.unwrap(),
            outbox,
            frontier: Frontier::new(),
        }
    }

    /// The session of the looks was lost.
    pub(crate) async fn watch_again(&mut self) {
        self.watch = self.outbox.database.watch_outbox().await.unwrap();
        self.frontier.reset();
    }

    pub(crate) async fn execute(&self, sql: &str) {
        self.outbox.client.batch_execute(sql).await.unwrap();
    }

    pub(crate) async fn look(&mut self) -> Look<Seq> {
        let look = self.watch.look().await.unwrap();
        let seen = self.frontier.looked(look.next, look.writers, true);
        if let Some(ask) = self.frontier.ask() {
            let oldest = self.watch.oldest(ask.from(), ask.below()).await.unwrap();
            self.frontier.raise(ask, oldest);
        }
        seen
    }

    /// What the look back finds, told to the frontier.
    pub(crate) async fn look_back(&mut self) -> Option<Seq> {
        let (mut from, frontier) = self.frontier.below()?;
        loop {
            match self.watch.oldest_free(from, frontier).await.unwrap() {
                LookBack::Free(free) => {
                    self.frontier.given_back(free);
                    return Some(free);
                }
                LookBack::NoneBelow(until) => from = Some(until),
                LookBack::None => return None,
            }
        }
    }

    pub(crate) async fn claim_within(&mut self, limits: ClaimLimits) -> Claim {
        let scan = self.frontier.scan();
        let claim = claim_from(&self.outbox.database, limits, scan).await;
        if let Some(passed) = passed(&claim) {
            self.frontier.passed(scan, passed);
        }
        claim
    }

    /// Claims from the frontier and deletes until there is nothing more; the routing keys.
    pub(crate) async fn drain(&mut self) -> Vec<String> {
        self.drain_within(LIMITS).await
    }

    pub(crate) async fn drain_within(&mut self, limits: ClaimLimits) -> Vec<String> {
        let mut keys = Vec::new();
        loop {
            let claim = self.claim_within(limits).await;
            if claim.is_empty() {
                return keys;
            }
            keys.extend(claim.messages().iter().map(|m| m.routing_key.clone()));
            settle(claim).await;
        }
    }

    /// What comes next is at this place.
    pub(crate) async fn next(&mut self) -> Seq {
        self.watch.look().await.unwrap().next
    }

    pub(crate) fn floor(&self) -> Option<Seq> {
        self.frontier.floor().floor()
    }

    /// Others insert, and their messages are claimed and deleted, with looks all the while; at last a claim that
    /// finds nothing.
    pub(crate) async fn while_thousands_come_and_go(&mut self) {
        for round in 0..10 {
            self.outbox.insert(300).await;
            if round % 2 == 0 {
                self.look().await;
            }
            let keys = self.drain().await;
            assert_eq!(keys.len(), 300);
            assert!(keys.iter().all(|key| key == "k"));
            self.look().await;
        }
        assert!(self.drain().await.is_empty());
    }

    /// Nothing is left that the floor would wait for.
    pub(crate) async fn floor_moves_on(&mut self) {
        self.while_thousands_come_and_go().await;
        self.look().await;
        assert_eq!(self.floor(), Some(self.next().await));
        assert!(self.frontier.is_at_rest());
    }
}

pub(crate) async fn claim_from(database: &Database, limits: ClaimLimits, scan: Scan<Seq>) -> Claim {
    let from = ClaimFrom {
        fresh: scan.from(),
        ordered: None,
    };
    database.claim_fresh(limits, &[], from).await.unwrap()
}

/// How far a claim came, whose messages were not taken yet.
pub(crate) fn passed(claim: &Claim) -> Option<Passed<Seq>> {
    match claim.walked() {
        Walked::ToTheEnd => Some(Passed::All),
        Walked::Until(until) => Some(Passed::Below(until)),
        Walked::Full => {
            let last = claim.messages().last().map(|last| Seq(last.seq.0 + 1));
            claim.untaken().or(last).map(Passed::Below)
        }
    }
}

/// Deletes all of its messages.
pub(crate) async fn settle(claim: Claim) {
    let seqs: Vec<Seq> = claim.messages().iter().map(|m| m.seq).collect();
    let settled = claim.settle(&done(&seqs)).await.unwrap();
    assert!(matches!(settled, Settled::Whole));
}
