//! The only TLS of Postrider: what is trusted, what is shown to a server, and what went wrong.
//!
//! One [`Tls`] stands for one peer. It reads its files when it is made, and looks at them again at each
//! [`Tls::current`]: a certificate that was renewed is used by the next connection, without a restart. Files that
//! cannot be used, once there were usable ones, change nothing but the log.
//!
//! The cryptography is ring's, named here: the process's default provider is neither used nor set, so no other
//! crate can change what is spoken. Sessions are never resumed: a relay connects seldom, and each connection shall
//! be verified with what is trusted now.

mod error;
mod fault;
mod files;
mod handle;
mod load;
mod settings;
mod verify;

pub use error::{FileError, FileFault};
pub use fault::{Fault, FaultKind};
pub use handle::{Look, Tls, is_server_name};
pub use settings::{ClientFiles, Mode, Peer, Settings};
