//! `make soak`: producers, two relays and consumers at work while faults come and go by a plan drawn from a seed, and
//! the audit at the end.
//!
//! Its exit code is 0 when all that was committed arrived, nothing else did, and both relays recovered; 1 when not;
//! 2 when it was started wrongly; 128 + signal when it was interrupted. It runs on servers of its own and leaves
//! nothing behind; after a failure, the logs of relays and servers, and says where.

#[path = "../soak/mod.rs"]
mod soak;

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    soak::run().await
}
