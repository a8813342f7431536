//! Why the files that were named cannot be used.

use std::path::PathBuf;

use crate::settings::Peer;

/// A file of `[database.tls]`, `[broker.tls]` or `[tracing.tls]` that cannot be used. Nothing of a file's content is in the text.
#[derive(Debug, thiserror::Error)]
#[error("[{}] {key}{}: {fault}", .peer.section(), shown(.path.as_ref()))]
pub struct FileError {
    /// Whose section.
    pub peer: Peer,
    /// The key that names the file.
    pub key: &'static str,
    /// The file; `None` where the system's authorities are meant.
    pub path: Option<PathBuf>,
    /// What is wrong with it.
    #[source]
    pub fault: FileFault,
}

/// What is wrong with a file, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    /// There is no such file.
    #[error("the file does not exist")]
    Missing,
    /// This user may not read it.
    #[error("the file cannot be read by the user this runs as (permission denied)")]
    Forbidden,
    /// The operating system said something else.
    #[error("the file cannot be read: {0}")]
    Unreadable(std::io::Error),
    /// No certificate is that long.
    #[error("the file is larger than {0} bytes: it holds no certificates")]
    TooLarge(u64),
    /// Nothing is in it.
    #[error("the file is empty")]
    Empty,
    /// It is not PEM, or holds something else.
    #[error(
        "the file holds no certificate in PEM form: a line `-----BEGIN CERTIFICATE-----` is expected (DER is turned into it by `openssl x509 -inform der`)"
    )]
    NoCertificate,
    /// A section of it is cut off or altered.
    #[error("the file is damaged: its PEM text cannot be decoded")]
    Damaged,
    /// One of its certificates is none.
    #[error("certificate number {number} in the file cannot be used: {reason}")]
    BadCertificate {
        /// From 1.
        number: usize,
        /// What rustls says.
        reason: String,
    },
    /// It holds no key.
    #[error(
        "the file holds no private key in PEM form: a line `-----BEGIN PRIVATE KEY-----` is expected"
    )]
    NoKey,
    /// Its key asks for a passphrase.
    #[error(
        "the private key is encrypted: write it without a passphrase (`openssl pkey -in FILE -out NEW`), for this user alone to read"
    )]
    EncryptedKey,
    /// A kind of key that is not known here.
    #[error(
        "the private key cannot be used (RSA of 2048 bits and more, ECDSA P-256 and P-384, and Ed25519 can): {0}"
    )]
    BadKey(String),
    /// Certificate and key do not belong together.
    #[error("the private key does not belong to the certificate that cert_file names")]
    KeyMismatch,
    /// The operating system trusts nobody.
    #[error(
        "no certificate authority is trusted by this system (the package ca-certificates, or SSL_CERT_FILE): name the one that signed the server's certificate"
    )]
    NoSystemAuthorities,
    /// The library refused what should have been right.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

fn shown(path: Option<&PathBuf>) -> String {
    path.map(|path| format!(" ({})", path.display()))
        .unwrap_or_default()
}
