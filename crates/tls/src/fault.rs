//! What a TLS connection failed for, and what the operator can do about it.

use std::error::Error as StdError;
use std::io;

use rustls::{AlertDescription, CertificateError};

use crate::handle::Tls;
use crate::settings::Peer;

/// Which kind of trouble. None of them mends itself in the relay, and each may be mended at the server: trying again
/// later is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The server offers no TLS, or something else answers there.
    NoTls,
    /// The server's certificate is no longer valid, by this machine's clock.
    Expired,
    /// It is not valid yet, by this machine's clock.
    NotYetValid,
    /// No authority that is trusted signed it.
    UnknownAuthority,
    /// It is for another name.
    WrongName,
    /// Something else is wrong with it.
    BadServerCertificate,
    /// The server wants a client certificate, and none is configured.
    ClientCertificateMissing,
    /// The server does not accept the client certificate.
    ClientCertificateRefused,
    /// The two sides have no protocol version or cipher in common.
    Incompatible,
    /// The server ended the connection in the middle, without a word.
    HungUp,
    /// Anything else.
    Other,
}

/// Why there is no connection by TLS. The text says what to do, names the key, and holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Fault {
    /// Which kind.
    pub kind: FaultKind,
    /// With whom.
    pub peer: Peer,
    text: String,
}

impl Tls {
    /// What an error on a connection that was being made means, as far as TLS has to do with it.
    #[must_use]
    pub fn fault(&self, error: &(dyn StdError + 'static)) -> Option<Fault> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<rustls::Error>() {
                return Some(self.of_rustls(error));
            }
            if let Some(error) = error.downcast_ref::<io::Error>() {
                // Its `source` is the source of what is in it, not that itself.
                return match error.get_ref() {
                    Some(inner) => self.fault(inner),
                    None => self.hung_up(error),
                };
            }
            cause = error.source();
        }
        None
    }

    /// The server said that it speaks no TLS.
    #[must_use]
    pub fn no_tls(&self, advice: &str) -> Fault {
        self.of(
            FaultKind::NoTls,
            format!(
                "the server offers no TLS: {advice}, or, where plain text may be read on the way, set [{}] mode = \"disable\"",
                self.section()
            ),
        )
    }

    /// The server said that it wants a client certificate.
    #[must_use]
    pub fn client_certificate_missing(&self, said: &str) -> Fault {
        self.of(
            FaultKind::ClientCertificateMissing,
            format!(
                "the server wants a client certificate ({said}): set [{0}] cert_file and key_file",
                self.section()
            ),
        )
    }

    fn of_rustls(&self, error: &rustls::Error) -> Fault {
        use rustls::Error;
        match error {
            Error::InvalidCertificate(error) => self.of_server_certificate(error),
            Error::AlertReceived(alert) => self.of_alert(*alert),
            Error::InvalidMessage(_) => self.of(
                FaultKind::NoTls,
                format!(
                    "what answers there does not speak TLS ({error}): check host and port{}",
                    match self.settings().peer {
                        Peer::Broker => " (RabbitMQ's port for amqps:// is usually 5671)",
                        Peer::Database | Peer::Collector => "",
                    }
                ),
            ),
            Error::PeerIncompatible(_) => self.of(
                FaultKind::Incompatible,
                format!("the server speaks no TLS that can be used here ({error}): it has to offer TLS 1.2 or 1.3 with a current cipher"),
            ),
            other => self.of(FaultKind::Other, format!("TLS failed: {other}")),
        }
    }

    fn of_server_certificate(&self, error: &CertificateError) -> Fault {
        let section = self.section();
        let (kind, text) = match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
                FaultKind::Expired,
                format!(
                    "the server's certificate has expired: renew it at the server, and check this machine's clock ({error})"
                ),
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
                FaultKind::NotYetValid,
                format!(
                    "the server's certificate is not valid yet: check the clocks of both machines ({error})"
                ),
            ),
            CertificateError::UnknownIssuer | CertificateError::BadSignature => (
                FaultKind::UnknownAuthority,
                match &self.settings().ca_file {
                    Some(path) => format!(
                        "the server's certificate was signed by none of the authorities in [{section}] ca_file ({}): put the one that signed it there, and see that the server sends those in between",
                        path.display()
                    ),
                    None => format!(
                        "the server's certificate was signed by no authority that this system trusts: set [{section}] ca_file to the one that signed it"
                    ),
                },
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                (
                    FaultKind::WrongName,
                    format!(
                        "the server's certificate is for another name: connect by a name that it has, or set [{section}] server_name to one ({error})"
                    ),
                )
            }
            other => (
                FaultKind::BadServerCertificate,
                format!(
                    "the server's certificate cannot be used: {other}{}",
                    advice(other)
                ),
            ),
        };
        self.of(kind, text)
    }

    fn of_alert(&self, alert: AlertDescription) -> Fault {
        use AlertDescription as Alert;
        let section = self.section();
        let client = self.settings().client.as_ref();
        let said = format!("{alert:?}");
        match alert {
            Alert::CertificateRequired => self.client_certificate_missing(&said),
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError => match client {
                None => self.client_certificate_missing(&said),
                Some(files) => self.of(
                    FaultKind::ClientCertificateRefused,
                    format!(
                        "the server refuses the client certificate of [{section}] cert_file ({}): {}",
                        files.certificate.display(),
                        match alert {
                            Alert::CertificateExpired => "it has expired; put a new one and its key there, they are read without a restart".to_owned(),
                            Alert::CertificateRevoked => "it was revoked; put a new one and its key there, they are read without a restart".to_owned(),
                            Alert::UnknownCA => "it does not trust the authority that signed it; let it trust that one, and put those in between behind the certificate".to_owned(),
                            _ => format!("it says {said}, and its log says more"),
                        }
                    ),
                ),
            },
            Alert::UnrecognisedName => self.of(
                FaultKind::WrongName,
                format!("the server does not know the name that it was asked for: set [{section}] server_name"),
            ),
            // Also what TLS 1.2 says where a client certificate is missing.
            Alert::HandshakeFailure if client.is_none() => self.of(
                FaultKind::ClientCertificateMissing,
                format!("the server refuses the handshake: it may want a client certificate ([{section}] cert_file and key_file), or speak no cipher that can be used here; its log says which"),
            ),
            Alert::HandshakeFailure | Alert::ProtocolVersion | Alert::InsufficientSecurity => self.of(
                FaultKind::Incompatible,
                format!("the server speaks no TLS that can be used here ({said}): it has to offer TLS 1.2 or 1.3 with a current cipher"),
            ),
            _ => self.of(
                FaultKind::Other,
                format!("the server ended the TLS handshake: it says {said}, and its log says more"),
            ),
        }
    }

    /// In TLS 1.3 a server refuses the client's certificate after the client's handshake is over, and its word may be
    /// lost with the connection.
    fn hung_up(&self, error: &io::Error) -> Option<Fault> {
        match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => {
                let wants = match self.settings().client {
                    None => "it may want a client certificate",
                    Some(_) => "it may refuse the client certificate",
                };
                Some(self.of(
                    FaultKind::HungUp,
                    format!("the server ended the connection while it was made by TLS ({error}): {wants}; its log says why"),
                ))
            }
            _ => None,
        }
    }

    fn of(&self, kind: FaultKind, text: String) -> Fault {
        Fault {
            kind,
            peer: self.settings().peer,
            text,
        }
    }

    fn section(&self) -> &'static str {
        self.settings().peer.section()
    }
}

/// For what home-made certificates are most often refused for.
fn advice(error: &CertificateError) -> &'static str {
    let text = error.to_string();
    if text.contains("CaUsedAsEndEntity") {
        " (it is an authority's own, as `openssl req -x509` makes it: make the server's with basicConstraints=CA:FALSE)"
    } else if text.contains("UnsupportedCertVersion") {
        " (it is of version 1: make one with a subjectAltName, which is version 3)"
    } else {
        ""
    }
}
