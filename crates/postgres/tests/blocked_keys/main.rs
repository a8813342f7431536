//! What blocks a key, what waits behind it, and what frees it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod blocking;
#[path = "../fresh/mod.rs"]
mod fresh;
mod heads;
mod parked;
mod races;
mod shown;

use std::time::Duration;

use fresh::Outbox;
use fresh::keyed::park;
use fresh::settling::{dead, retry, settle_whole};
use postrider_core::{Origin, Seq};
use postrider_postgres::{DeferredFilter, Settlement};

/// A message was tried in vain.
async fn deferred(outbox: &Outbox, seq: i64, after: Duration) {
    let claim = outbox.claim_lanes().await;
    let settlement = Settlement {
        retry: vec![retry(seq, after)],
        ..Settlement::default()
    };
    settle_whole(claim.claim, &settlement).await;
}

/// A message was given up.
async fn given_up(outbox: &Outbox, seq: i64, blocks: bool) {
    let claim = outbox.claim_lanes().await;
    settle_whole(claim.claim, &gives_up(seq, blocks)).await;
}

fn gives_up(seq: i64, blocks: bool) -> Settlement {
    Settlement {
        dead: vec![dead(seq)],
        blocking: blocks.then_some(Seq(seq)).into_iter().collect(),
        ..Settlement::default()
    }
}

/// Parks all that is behind a head.
async fn park_all(outbox: &Outbox, seqs: &[i64]) {
    let claim = outbox.claim_lanes().await;
    settle_whole(claim.claim, &park(seqs)).await;
}

async fn release(outbox: &Outbox) {
    let filter = DeferredFilter::default();
    let released = outbox.database.release_deferred(&filter, None, 100).await;
    let _ = released.unwrap();
}

async fn claim_due(outbox: &Outbox) -> (Vec<i64>, postrider_postgres::Claim) {
    let claim = outbox.claim(Origin::Deferred).await;
    let seqs = claim.messages().iter().map(|m| m.seq.0).collect();
    (seqs, claim)
}
