//! The admin port: `/metrics`, `/livez`, `/readyz`.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use postrider_relay::Progress;
use prometheus::{Encoder, Registry, TextEncoder};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How many connections there are at a time; who comes later waits to be accepted.
const MOST_CONNECTIONS: usize = 64;
/// How long a client may take to say what it wants: with as many silent ones as there may be connections, a probe is answered by then.
const LONGEST_HEAD: Duration = Duration::from_secs(2);
/// How long a connection may last, from accepting it to the last byte of the answer.
const LONGEST: Duration = Duration::from_secs(10);
/// After a connection that could not be accepted, as when there is no file descriptor left.
const PAUSE: Duration = Duration::from_secs(1);

/// What the handlers answer from.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) registry: Registry,
    pub(crate) progress: Arc<Progress>,
}

/// The body of `/readyz`.
#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    reasons: Vec<&'static str>,
}

/// Binds the admin port, so that a port that is taken is an error of the start.
pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Answers until `stop`, each connection one request. Whoever connects and says nothing, or vanishes, takes from the relay no more
/// file descriptors than [`MOST_CONNECTIONS`], and none for longer than [`LONGEST`]: database and broker need them.
pub(crate) async fn serve(listener: TcpListener, admin: Admin, stop: CancellationToken) {
    let router = Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(admin);
    let mut connections = JoinSet::new();
    let mut accepts = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    debug!(%error, "a request to the admin port failed");
                }
            }
            accepted = listener.accept(), if connections.len() < MOST_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    accepts = true;
                    connections.spawn(answer(stream, router.clone(), stop.clone()));
                }
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    if std::mem::take(&mut accepts) {
                        warn!(event = "admin_port_failed", %error, "the admin port accepts no connection; it is tried again every second");
                    }
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(PAUSE) => {}
                    }
                }
            },
        }
    }
    // Whoever comes now is refused, and does not wait for what is about to end.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// It went away before it was accepted.
fn is_of_the_client(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
    )
}

/// One request. An error is the client's: there is nobody to tell.
async fn answer(stream: TcpStream, router: Router, stop: CancellationToken) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(LONGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let answered = async {
        tokio::select! {
            answered = connection.as_mut() => return answered,
            () = stop.cancelled() => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    match tokio::time::timeout(LONGEST, answered).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a request to the admin port was not answered"),
        Err(_) => debug!("a connection to the admin port was closed: it took too long"),
    }
}

async fn index() -> Html<&'static str> {
    Html(
        "<!doctype html><title>postrider</title><h1>postrider</h1><ul>\
         <li><a href=\"/metrics\">/metrics</a> for Prometheus</li>\
         <li><a href=\"/livez\">/livez</a> the loop turns, or waits for a peer</li>\
         <li><a href=\"/readyz\">/readyz</a> messages can move; says why not</li></ul>",
    )
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&admin.registry.gather(), &mut text) {
        Ok(()) => (
            [(header::CONTENT_TYPE, encoder.format_type().to_owned())],
            text,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn livez(State(admin): State<Admin>) -> Response {
    match admin.progress.stuck(Instant::now()) {
        None => "ok\n".into_response(),
        Some(stuck) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "worker {} has stood still for {} s\n",
                stuck.worker,
                stuck.standing_for.as_secs()
            ),
        )
            .into_response(),
    }
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let reasons: Vec<_> = admin
        .progress
        .not_ready(Instant::now())
        .into_iter()
        .map(postrider_relay::NotReady::as_str)
        .collect();
    let status = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let ready = reasons.is_empty();
    (status, Json(Readiness { ready, reasons })).into_response()
}

#[cfg(test)]
mod tests {
    use postrider_relay::Metrics;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;

    struct Served {
        address: SocketAddr,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    impl Served {
        async fn start() -> Self {
            let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let registry = Registry::new();
            let metrics = Arc::new(Metrics::register(&registry, "outbox", 1).unwrap());
            let progress = Progress::new(1, Duration::from_secs(60), metrics, Instant::now());
            let admin = Admin {
                registry,
                progress: Arc::new(progress),
            };
            let stop = CancellationToken::new();
            let task = tokio::spawn(serve(listener, admin, stop.clone()));
            Self {
                address,
                stop,
                task,
            }
        }

        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        /// The whole answer, to the end of the connection.
        async fn get(&self, path: &str) -> String {
            let mut client = self.connect().await;
            let request = format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        }

        /// One that has said nothing, and is accepted: one that came after it was answered. From here on time passes only while there is
        /// nothing else to do.
        async fn silent(&self) -> TcpStream {
            let silent = self.connect().await;
            assert!(self.get("/livez").await.starts_with("HTTP/1.1 200"));
            tokio::time::pause();
            silent
        }
    }

    #[tokio::test]
    async fn a_connection_has_one_request_and_ends_with_its_answer() {
        let served = Served::start().await;
        for (path, begins) in [
            ("/", "HTTP/1.1 200"),
            ("/metrics", "HTTP/1.1 200"),
            ("/livez", "HTTP/1.1 200"),
            ("/readyz", "HTTP/1.1 503"),
            ("/elsewhere", "HTTP/1.1 404"),
        ] {
            let answer = served.get(path).await;
            assert!(answer.starts_with(begins), "{path}: {answer}");
            assert!(
                answer.contains("\r\nconnection: close\r\n"),
                "{path}: {answer}"
            );
        }
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_is_sent_away_before_a_probe_gives_up() {
        let served = Served::start().await;
        let mut silent = served.silent().await;
        let before = tokio::time::Instant::now();
        let read = silent.read(&mut [0]).await;
        assert!(matches!(read, Ok(0)), "{read:?}");
        assert!(before.elapsed() < LONGEST_HEAD * 2);
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_does_not_keep_it_from_ending() {
        let served = Served::start().await;
        let _silent = served.silent().await;
        let before = tokio::time::Instant::now();
        served.stop.cancel();
        served.task.await.unwrap();
        assert_eq!(before.elapsed(), Duration::ZERO);
        assert!(TcpStream::connect(served.address).await.is_err());
    }
}
