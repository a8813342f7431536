//! The files that run the daemon elsewhere say what the daemon understands: `deploy/`, `docker-compose.yml`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod alerts;
mod compose;
mod dashboard;
mod files;
mod image;
mod kubernetes;
mod native;
mod observed;
mod program;
mod prometheus;
mod queries;
mod unit;
