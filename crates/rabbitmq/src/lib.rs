//! The only AMQP of Postrider: a connection whose every wait is bounded, and a publisher that says
//! of each message what became of it.
//!
//! Two rules hold throughout. A message is [`Confirmed`](postrider_core::Outcome::Confirmed) only
//! when the broker acknowledged it and did not return it; whatever is not certain is unknown, so
//! that it is repeated rather than lost. And a message that the broker refuses fails alone: the
//! others of its batch are sent again on a fresh channel.
//!
//! Messages with an ordering key wait for each other: a window (`window.rs`) holds of each key only the next, and is judged when all its
//! confirms are in (`judge.rs`); then the next of each key that was confirmed has its turn (`run.rs`).
//!
//! The AMQP library logs each returned message, payload included, at WARN under the target
//! `lapin::returned_messages`: the program that uses this crate has to silence that target.

mod asking;
mod classify;
mod clock;
mod connection;
mod encode;
mod error;
mod examine;
mod exchanges;
mod greeting;
mod judge;
mod late;
mod link;
mod ordering;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod properties_of_rows;
mod publisher;
mod renew;
mod run;
mod secure;
mod settings;
mod socket;
mod straggle;
mod token;
mod up;
mod window;

pub use connection::Connection;
pub use error::{ConnectError, Error};
pub use examine::{Alarm, Found, MayPublish, examine_exchange_type};
pub use greeting::{Greeting, greeting};
pub use late::Late;
pub use link::LinkState;
pub use ordering::{HeaderName, HeaderNameError, OrderingSettings};
pub use publisher::{ChannelFate, Published, Publisher};
pub use settings::{Broker, Login, Settings};
pub use token::{TokenFault, TokenFile};
