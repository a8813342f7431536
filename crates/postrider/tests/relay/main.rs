//! The real daemon between real servers.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod admin_port;
mod breakers;
mod broker_outages;
mod check;
#[cfg(feature = "opentelemetry")]
mod collector;
mod commands;
mod database_outages;
mod dead_letters;
mod failures;
mod guarantees;
mod keys;
mod kill_points;
mod least_privilege;
mod lifecycle;
mod line;
mod long_writers;
mod messages;
mod network;
mod ordering;
mod ordering_under_faults;
mod outages;
mod reload;
mod resuming;
mod stage;
mod systemd;
mod tls;
mod token;
#[cfg(feature = "opentelemetry")]
mod tracing;
mod upgrade;
