//! TLS as the client library wants it, or none.

use std::future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use postrider_tls::Tls;
use rustls::ClientConfig;
use tokio_postgres::Socket;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Encrypts the connections of one attempt to connect, all hosts included, by the certificates of its start.
pub(crate) enum Encryption {
    /// The library asks all the same, and never uses what it gets.
    None,
    Tls {
        tls: Tls,
        config: Arc<ClientConfig>,
    },
}

impl Encryption {
    /// Looks at the certificates' files.
    pub(crate) async fn of(tls: Option<&Tls>) -> Self {
        match tls {
            None => Self::None,
            Some(tls) => Self::Tls {
                config: tls.current().await,
                tls: tls.clone(),
            },
        }
    }
}

type Rustls = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;

/// An encrypted connection; it knows the server's certificate, to which a login by SCRAM is bound.
pub(crate) type Encrypted = <Rustls as TlsConnect<Socket>>::Stream;

impl MakeTlsConnect<Socket> for Encryption {
    type Stream = Encrypted;
    type TlsConnect = Encrypt;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Encrypt> {
        match self {
            Self::None => Ok(Encrypt(None)),
            Self::Tls { tls, config } => {
                let mut make = MakeRustlsConnect::new(ClientConfig::clone(config));
                let connect = MakeTlsConnect::<Socket>::make_tls_connect(&mut make, tls.name(host));
                let Ok(connect) = connect;
                Ok(Encrypt(Some(connect)))
            }
        }
    }
}

/// Encrypts one connection.
pub(crate) struct Encrypt(Option<Rustls>);

impl TlsConnect<Socket> for Encrypt {
    type Stream = Encrypted;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        match self.0 {
            Some(connect) => Box::pin(connect.connect(socket)),
            None => Box::pin(future::ready(Err(io::ErrorKind::Unsupported.into()))),
        }
    }
}
