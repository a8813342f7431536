//! The only SQL of Postrider: claim, settle, dead letters, migrate, inspect, listen, enqueue.
//!
//! Every statement is a named method here, with a comment that says which index serves it and why it
//! is safe under concurrency. Nothing in this crate decides what to do about a failure:
//! [`Error::kind`] names the class, the relay decides.

mod claim;
mod database;
mod dead_letters;
mod deferred;
mod due;
mod encrypt;
mod enqueue;
mod error;
mod examine;
mod grants;
mod inspect;
mod keys;
mod late;
mod listen;
mod migrate;
mod ordered;
#[cfg(test)]
mod plan_tests;
mod presence;
mod rights;
mod row;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod row_on_the_wire;
mod schema_name;
mod selection;
mod session;
mod settings;
mod settle;
mod target;
mod watch;
mod writers;

pub use claim::{Claim, ClaimFrom, ClaimLimits, Share};
pub use database::{Database, ServerInfo};
pub use dead_letters::{DeadLetter, DeadLetterFilter, DeadLetterSummary};
pub use deferred::{Cause, DeferredCursor, DeferredFilter, DeferredSummary};
pub use due::{DueLook, DueTime, DueWatch};
pub use enqueue::{NewMessage, NewPayload};
pub use error::{Error, ErrorKind};
pub use examine::{
    ExchangeUse, HeldBy, Holder, NamedExchanges, ServerFacts, SlotFacts, TableVacuum, Unroutable,
};
pub use grants::{RoleName, grants_sql, revokes_sql};
pub use inspect::{BlockedSample, Counted, Lag, OldestMessage, Sample, SampleFrom};
pub use keys::{BlockedKey, Head, HeadMessage, KeyMessage, KeyState};
pub use listen::Listener;
pub use migrate::{Migration, SchemaState, migrations, print_sql};
pub use ordered::{LANES_OF_HOT_KEYS, LookFor, OrderedClaim, ReadLane, ResumingKey, WaitingLanes};
pub use presence::RelayPresence;
pub use rights::Group;
pub use schema_name::Schema;
pub use selection::Changed;
pub use settings::Settings;
pub use settle::{Dead, Refusal, Retry, Settled, Settlement};
pub use watch::{LONGEST_SILENCE, LookBack, OutboxLook, OutboxWatch};
