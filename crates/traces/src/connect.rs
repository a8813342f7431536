//! The connection to the collector: the library's HTTP/2 on a socket and a TLS of our own.

use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::settings::Collector;

/// What asks for connections and sends requests through them. Its tasks end with it.
pub(crate) type Client = TraceServiceClient<Channel>;

/// How to reach the collector.
#[derive(Debug)]
pub(crate) struct Way {
    collector: Collector,
    endpoint: Endpoint,
}

impl Way {
    /// `patience` is for one connection.
    ///
    /// # Errors
    /// When the host cannot stand in a URL.
    pub(crate) fn to(
        collector: Collector,
        patience: Duration,
    ) -> Result<Self, tonic::transport::Error> {
        // The scheme is what the other side is told; the socket below is encrypted by `connect`.
        let scheme = match collector.tls {
            Some(_) => "https",
            None => "http",
        };
        let uri = format!("{scheme}://{}", collector.authority());
        let endpoint = Endpoint::from_shared(uri)?.connect_timeout(patience);
        Ok(Self {
            collector,
            endpoint,
        })
    }

    /// A client that connects with its first request.
    pub(crate) fn client(&self) -> Client {
        let collector = self.collector.clone();
        let connector = service_fn(move |_| {
            let collector = collector.clone();
            async move { connect(&collector).await.map(TokioIo::new) }
        });
        TraceServiceClient::new(self.endpoint.connect_with_connector_lazy(connector))
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn connect(collector: &Collector) -> io::Result<Box<dyn Stream>> {
    let socket = TcpStream::connect((collector.host.as_str(), collector.port)).await?;
    socket.set_nodelay(true)?;
    let Some(tls) = &collector.tls else {
        return Ok(Box::new(socket));
    };
    let name = tls
        .server_name(&collector.host)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let mut config = rustls::ClientConfig::clone(&*tls.current().await);
    // Servers that speak more than one protocol on the port go by it, and gRPC is nothing but HTTP/2.
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(std::sync::Arc::new(config));
    match connector.connect(name, socket).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(match tls.fault(&error) {
            Some(fault) => io::Error::new(error.kind(), fault),
            None => error,
        }),
    }
}
