//! Where a value comes from.

use std::fmt;
use std::path::PathBuf;

/// Where the effective value of a key comes from, for `config show` and for error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nobody said anything: the built-in default.
    Default,
    /// A line of the configuration file, counted from 1; 0 stands for the file as a whole.
    File {
        /// The file as it was named.
        path: PathBuf,
        /// The line, counted from 1, or 0.
        line: usize,
    },
    /// An environment variable.
    Env(String),
    /// A file in systemd's `$CREDENTIALS_DIRECTORY`.
    Credential(&'static str),
    /// The content of a file that a `*_file` key names.
    SecretFile(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => f.write_str(name),
            Self::Credential(name) => write!(f, "credential {name}"),
            Self::SecretFile(path) => write!(f, "content of {}", path.display()),
        }
    }
}
