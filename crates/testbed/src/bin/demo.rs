//! `make demo`: a shop, the real daemon, a SIGKILL in the middle, and the books at the end.
//!
//! Its exit code is 0 when messages were delivered and none was lost or phantom, 1 when that failed, 2 when it was
//! started wrongly, 128 + signal when it was interrupted. It leaves no process, no file and nothing on servers that
//! are not its own; after a failure, the daemon's log, and says where.

#[path = "../demo/mod.rs"]
mod demo;

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    demo::run().await
}
