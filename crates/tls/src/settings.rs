//! What somebody decided about TLS to one peer.

use std::path::PathBuf;

/// The server at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// PostgreSQL.
    Database,
    /// RabbitMQ.
    Broker,
    /// What takes spans by OTLP.
    Collector,
}

impl Peer {
    /// The value of the label and the log field `peer`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Broker => "broker",
            Self::Collector => "collector",
        }
    }

    /// The section of the configuration, without brackets.
    #[must_use]
    pub const fn section(self) -> &'static str {
        match self {
            Self::Database => "database.tls",
            Self::Broker => "broker.tls",
            Self::Collector => "tracing.tls",
        }
    }
}

/// What is verified of the server's certificate. The words are libpq's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing. Whoever answers is believed to be the server: this protects against those who only listen.
    Require,
    /// That an authority which is trusted signed it, and that it is valid now. Not its name.
    VerifyCa,
    /// All that, and that it is for the name connected to.
    VerifyFull,
}

/// The certificate that the relay shows to servers, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    /// PEM: the certificate, and behind it those of the authorities between it and one that the server trusts.
    pub certificate: PathBuf,
    /// PEM: the private key, not encrypted.
    pub key: PathBuf,
}

/// TLS to one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Which one: for messages, and to name the section that is to be changed.
    pub peer: Peer,
    /// What is verified.
    pub mode: Mode,
    /// PEM: the certificates of the authorities to trust; without it, those that the operating system trusts.
    pub ca_file: Option<PathBuf>,
    /// What is shown to the server, if it asks.
    pub client: Option<ClientFiles>,
    /// The name to verify and to ask for (SNI), in place of the host connected to.
    pub server_name: Option<String>,
}
