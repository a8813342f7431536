//! The decisions of the relay, and nothing else: no runtime, SQL, AMQP, clock or randomness. What is
//! random or depends on the time is passed in, so that everything here can be tested exhaustively.

mod backoff;
mod causes;
mod floor;
mod frontier;
mod headers;
mod message;
mod ordering;
mod outcome;
mod patience;
mod quiet;
mod resting;
mod retry;
mod routes;
mod row_limit;
mod standby;
mod sweep;
mod target;
mod walk;
mod writer;

pub use backoff::{Backoff, jittered};
pub use causes::with_causes;
pub use floor::{Ask, Floor, Look};
pub use frontier::{Frontier, Passed, Scan};
pub use headers::Headers;
pub use message::{MOST_MOVED_BYTES, Message, Ordered, Origin, Payload, Properties, Seq};
pub use ordering::{
    Fate, FirstRows, Lane, LaneStart, LaneStarts, Lanes, OrderedPlan, OrderedRow, Passable,
    PassedWriter, Reach, Settling, Turns,
};
pub use outcome::{Failure, LateNews, Outcome, Reason, Scope};
pub use patience::Patience;
pub use quiet::{Demand, DemandSettings, Quiet, Step};
pub use resting::{Rest, Resting};
pub use retry::{
    Charge, Disposition, RetryPolicy, RetryPolicyError, UnroutablePolicies, UnroutablePolicy,
};
pub use routes::{Routes, Sent, Suspension};
pub use row_limit::RowLimit;
pub use standby::stand_by;
pub use sweep::{Pace, Piece, Sweep};
pub use target::Target;
pub use walk::{Walk, Walked, WalkedFrom};
pub use writer::{TransactionId, Writer, WriterError};
