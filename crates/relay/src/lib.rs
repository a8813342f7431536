//! The loop of the relay and its supervision: claim, publish, settle.
//!
//! [`Relay::run`] owns every task: the workers, the keeper of the broker connection, the listener
//! for wake-ups, the watchers of the tables and the sampler of the lag. Stopping happens in steps: claiming ends first, what is
//! in flight is settled within the grace, and only then is the rest abandoned, which rolls it back.
//!
//! This crate knows neither TOML nor the command line; its settings are validated by the caller.

mod at_work;
mod awake;
mod breakers;
mod broker;
mod contact;
mod delivery;
mod disposal;
mod due;
mod frontiers;
mod gate;
mod labels;
mod late;
mod link;
mod metrics;
mod observer;
mod ordered;
mod prober;
mod progress;
mod rehearsal;
mod reload;
mod retention;
mod run;
mod sampler;
mod settings;
mod shared;
mod suspects;
mod tasks;
#[cfg(test)]
mod test_message;
mod turn;
mod unsettled;
mod wakeup;
mod watcher;
mod worker;

pub use broker::{Broker, Late, Publish, Published};
pub use link::Link;
pub use metrics::Metrics;
pub use observer::Observer;
pub use progress::{NotReady, Progress, Stuck};
pub use reload::Reloader;
pub use run::{Relay, RelayError, Stop};
pub use settings::{AfterDeadLetter, Ordering, Reloadable, Settings};
