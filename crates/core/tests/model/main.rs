//! The floor, the frontier, the quiet wake-up and order by key against a model of the database: exhaustively at a
//! small scope, and at random at a larger one. The relays in it run the real code of the crate.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests"
)]

mod database;
mod floor;
mod ordering;
mod quiet;
mod random;
mod relay;
