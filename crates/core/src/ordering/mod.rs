//! Order by key: which message may be sent now, which waits, and which is not needed any more.
//!
//! # The promise
//!
//! For every ordering key, the first delivery of each message comes after the first delivery of every message of that key
//! before it, in the order of `seq` among the rows that were committed when it was claimed.
//!
//! # How it holds
//!
//! Keys fall into lanes. A claim locks lanes, and only then, with a snapshot taken under the locks, reads their rows in the
//! order of `seq`; the locks go with the claim's transaction. So what a claim reads of a key begins with the first of the
//! key's messages that is not delivered, and everything before it was. From there on four rules, one in each file here:
//!
//! 1. [`OrderedPlan`]: of each key the rows are taken in order, up to the first that cannot be had. Those of a key that is
//!    blocked are not sent but parked, in the same order.
//! 2. [`Turns`]: a message is sent when all before it in the batch are confirmed.
//! 3. [`Settling`]: of each key only the first message that is not delivered may leave its place; what follows it stays.
//! 4. [`Lanes`]: where a lane's rows begin, so that those deleted long ago are not walked over. Never above a row that is there, nor
//!    above one that may appear, but for those of open writers that the claim's own snapshot is asked about: [`PassedWriter`].
//!
//! A key is blocked from the moment when its first message leaves for the deferred ones or the dead letters until that has gone from there
//! *and* nothing is parked any more. Whoever finds a message of a blocked key parks it; what is parked goes out in order once
//! nothing blocks it; the last of it unblocks the key. All of that under the key's lane lock, so that nobody parks a message
//! behind a block that somebody else is just taking away.
//!
//! # A relay that is late
//!
//! A relay whose session ended, and with it its locks, may go on publishing what it holds: a process that was stopped, a
//! network that swallowed the database's answers. It begins with a message before which all were delivered, and sends each when its
//! own copy of the one before is confirmed. So whatever it sends first, everything before was delivered before. The same
//! holds for what reaches the broker late from a connection that was given up: it is a copy of a message that is sent
//! again before the next one of its key is.
//!
//! It does not hold where a message leaves undelivered: coalesced, discarded, passed over as a dead letter, or taken as sent
//! although no queue took it. The promise excepts these.

mod lanes;
mod passed;
mod plan;
mod reach;
mod settling;
mod turns;

pub use lanes::{Lane, LaneStart, LaneStarts, Lanes};
pub use passed::{Passable, PassedWriter};
pub use plan::{OrderedPlan, OrderedRow};
pub use reach::{FirstRows, Reach};
pub use settling::{Fate, Settling};
pub use turns::Turns;

#[cfg(test)]
mod properties;
