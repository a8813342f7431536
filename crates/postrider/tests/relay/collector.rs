//! A collector: takes spans by OTLP over gRPC on a socket, and keeps them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use postrider_testbed::{Identity, wait_until};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::stage::DEADLINE;

/// Ends with the test.
pub(crate) struct Collector {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    spans: Vec<(Resource, Span)>,
    requests: usize,
    /// What is answered in place of taking the spans.
    refusal: Option<Status>,
}

struct Service(Arc<Mutex<Seen>>);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut seen = self.0.lock().unwrap();
        seen.requests += 1;
        if let Some(refusal) = &seen.refusal {
            return Err(refusal.clone());
        }
        for of_resource in request.into_inner().resource_spans {
            let resource = of_resource.resource.unwrap();
            for of_scope in of_resource.scope_spans {
                let spans = of_scope.spans.into_iter();
                seen.spans
                    .extend(spans.map(|span| (resource.clone(), span)));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::default();
        let service = TraceServiceServer::new(Service(Arc::clone(&seen)));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let server = Server::builder().add_service(service);
            let incoming = TcpIncoming::from(listener);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Self {
            address,
            seen,
            tasks,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Refuses what comes from now on; `None` takes it again.
    pub(crate) fn refuse(&self, refusal: Option<Status>) {
        self.seen.lock().unwrap().refusal = refusal;
    }

    pub(crate) fn requests(&self) -> usize {
        self.seen.lock().unwrap().requests
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        let seen = self.seen.lock().unwrap();
        seen.spans.iter().map(|(_, span)| span.clone()).collect()
    }

    pub(crate) fn resource(&self) -> Resource {
        self.seen.lock().unwrap().spans[0].0.clone()
    }

    /// Waits until at least so many spans are here.
    pub(crate) async fn wait_for(&self, spans: usize) -> Vec<Span> {
        wait_until(DEADLINE, &format!("{spans} spans"), async || {
            self.spans().len() >= spans
        })
        .await
        .unwrap();
        self.spans()
    }

    /// A port on which the same collector is reached by TLS, as this server.
    pub(crate) async fn tls_port(&mut self, identity: &Identity) -> u16 {
        let chain = CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let to = self.address;
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let Ok(mut stream) = acceptor.accept(socket).await else {
                        return;
                    };
                    // Without ALPN a server of several protocols would not know that it is HTTP/2.
                    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
                    let mut upstream = TcpStream::connect(to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
                });
            }
        });
        port
    }
}

/// The value of an attribute.
pub(crate) fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.as_ref()?.value.as_ref()
}

/// The text of an attribute that has to be there.
pub(crate) fn text<'a>(attributes: &'a [KeyValue], key: &str) -> &'a str {
    match attribute(attributes, key) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{key} is {other:?}"),
    }
}
