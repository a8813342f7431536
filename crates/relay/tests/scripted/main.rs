//! The relay against a scripted broker: what a real one does rarely, at will, on a real database.
//!
//! The seam is that of messages and outcomes ([`postrider_relay::Broker`]): here confirms are lost, come
//! late, after the row has moved, or never; connections end with and without having taken what was sent, or
//! over one message of a batch; alarms are raised while a batch is on its way. Reordered acknowledgements,
//! acknowledgements of many at once, and returns that come before their acknowledgement lie below it: what a
//! publisher makes of those is decided in `crates/rabbitmq/src/judge.rs`, which has a model of the library's
//! queue of returns and property tests of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics, in its functions as well"
)]

mod alarm;
mod broker;
mod connection;
mod fate;
mod frontier;
mod late;
mod observer;
mod outbox;
mod quiet;
mod refused;
mod reload;
mod scene;
mod schedules;
mod stop;
mod superseded;
mod suspects;
