//! Messages with a key, claimed as a relay does it.

use postrider_core::{Lane, LaneStart, LaneStarts, OrderedRow, Seq};
use postrider_postgres::{ClaimLimits, Database, LookFor, OrderedClaim, Settlement};

use super::{LIMITS, Outbox};

impl Outbox {
    /// Inserts a message of each of these keys, in this order, in one transaction.
    pub(crate) async fn insert_keys(&self, keys: &[&str]) {
        insert_keys(&self.client, keys).await;
    }

    /// Claims from every lane that has messages.
    pub(crate) async fn claim_lanes(&self) -> OrderedClaim {
        all_lanes(&self.database, LIMITS).await
    }

    /// Claims what is parked of every key that is to be resumed.
    pub(crate) async fn claim_parked(&self) -> OrderedClaim {
        resuming(&self.database, LIMITS).await
    }

    /// The keys that are blocked, each with its head, how many are parked and from where they go on.
    pub(crate) async fn blocked(&self) -> String {
        super::settling::text(
            self,
            "SELECT string_agg(format('%s:%s:%s', ordering_key, coalesce(head_seq::text, '-'), parked), ' ' ORDER BY ordering_key) \
             FROM outbox.blocked_keys",
        )
        .await
    }

    /// The places in `messages`, `parked`, `deferred` and `dead_letters`.
    pub(crate) async fn where_all_are(&self) -> String {
        super::settling::text(
            self,
            "SELECT concat_ws('|', (SELECT coalesce(string_agg(seq::text, ',' ORDER BY seq), '') FROM outbox.messages), \
                (SELECT coalesce(string_agg(seq::text, ',' ORDER BY seq), '') FROM outbox.parked), \
                (SELECT coalesce(string_agg(seq::text, ',' ORDER BY seq), '') FROM outbox.deferred), \
                (SELECT coalesce(string_agg(seq::text, ',' ORDER BY seq), '') FROM outbox.dead_letters))",
        )
        .await
    }
}

pub(crate) async fn insert_keys(client: &tokio_postgres::Client, keys: &[&str]) {
    let sql = "INSERT INTO outbox.messages (exchange, routing_key, payload_json, ordering_key) \
               SELECT 'e', 'k', '1', key FROM unnest($1::text[]) WITH ORDINALITY AS k (key, n) ORDER BY n";
    client.execute(sql, &[&keys]).await.unwrap();
}

pub(crate) async fn waiting(database: &Database) -> LaneStarts {
    let every = postrider_core::Lanes::default().starts(None);
    let found = database.waiting_lanes(None, LookFor::First, &every);
    from_the_beginning(found.await.unwrap().lanes)
}

pub(crate) fn from_the_beginning(lanes: impl IntoIterator<Item = Lane>) -> LaneStarts {
    let start = |lane| LaneStart {
        lane,
        from: None,
        until: None,
    };
    LaneStarts {
        lanes: lanes.into_iter().map(start).collect(),
        passed: Vec::new(),
    }
}

pub(crate) async fn all_lanes(database: &Database, limits: ClaimLimits) -> OrderedClaim {
    let lanes = waiting(database).await;
    let claim = database.claim_lanes(limits, &lanes, &[], None);
    claim.await.unwrap()
}

pub(crate) async fn resuming(database: &Database, limits: ClaimLimits) -> OrderedClaim {
    let keys = database.resuming_keys("", 100).await.unwrap();
    database.claim_parked(limits, &keys, &[]).await.unwrap()
}

/// Each row as a letter and its place, or its key where it is held.
pub(crate) fn shown(claim: &OrderedClaim) -> String {
    let rows = claim.rows.iter().map(|row| match row {
        OrderedRow::Free(message) => format!("free {}", message.seq.0),
        OrderedRow::Blocked { seq, .. } => format!("blocked {}", seq.0),
        OrderedRow::Held { key } => format!("held {key}"),
    });
    rows.collect::<Vec<_>>().join(", ")
}

pub(crate) fn park(seqs: &[i64]) -> Settlement {
    Settlement {
        park: seqs.iter().copied().map(Seq).collect(),
        ..Settlement::default()
    }
}

pub(crate) fn done(seqs: &[i64]) -> Settlement {
    Settlement {
        done: seqs.iter().copied().map(Seq).collect(),
        ..Settlement::default()
    }
}
