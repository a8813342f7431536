//! What is given up on leaves no thread of the AMQP library behind. In a process of its own, with one
//! test at a time: the threads of others would be counted too.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics, in its functions as well"
)]

mod at;

use std::sync::Arc;
use std::time::Duration;

use async_compat::Compat;
use futures_rustls::TlsAcceptor;
use postrider_core::{Message, Patience, Payload, Properties, Seq};
use postrider_rabbitmq::{ConnectError, Connection, Error, LinkState, Settings};
use postrider_testbed::{Authority, Identity, RabbitOptions, RabbitServer, wait_until};
use postrider_tls::{Mode, Peer, Tls};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

const LONG: Duration = Duration::from_secs(60);

const PATIENT: Patience = Patience {
    confirm_timeout: LONG,
    straggler_timeout: LONG,
};

fn threads_of_the_library() -> usize {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .filter(|name| name.starts_with("lapin"))
        .count()
}

async fn no_thread_is_left() {
    wait_until(LONG, "the library's threads to end", async || {
        threads_of_the_library() == 0
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_accepts_and_says_nothing_costs_the_timeout_and_no_thread() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = Settings {
        connect_timeout: Duration::from_millis(300),
        ..Settings::new(vec![at::broker(&format!(
            "amqp://{}",
            silent.local_addr().unwrap()
        ))])
    };
    let mut accepted = Vec::new();
    for _ in 0..5 {
        let (outcome, peer) = tokio::join!(Connection::open(&settings, 0), silent.accept());
        // Kept open: only our own side may end it.
        accepted.push(peer.unwrap());
        assert!(
            matches!(outcome, Err(Error::Connect(ConnectError::Timeout { .. }))),
            "{outcome:?}"
        );
    }
    no_thread_is_left().await;

    let patient = Settings {
        connect_timeout: LONG,
        ..settings
    };
    let opening = tokio::spawn(async move { Connection::open(&patient, 0).await.map(|_| ()) });
    accepted.push(silent.accept().await.unwrap());
    wait_until(LONG, "the handshake to begin", async || {
        threads_of_the_library() == 1
    })
    .await
    .unwrap();
    opening.abort();
    no_thread_is_left().await;
}

/// Accepts connections, makes the TLS handshake and says nothing more, for as long as the task lives.
async fn silent_by_tls(shown: &Identity) -> (u16, AbortOnDropHandle<()>) {
    let certificate = CertificateDer::from_pem_slice(shown.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let accepting = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((socket, _)) = silent.accept().await {
            kept.push(acceptor.accept(Compat::new(socket)).await);
        }
    });
    (port, AbortOnDropHandle::new(accepting))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_by_tls_costs_the_timeout_and_no_thread() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let authority = Authority::new().unwrap();
    let shown = authority.server(&["localhost"]).unwrap();
    let (by_tls, _accepting) = silent_by_tls(&shown).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tls = Tls::new(postrider_tls::Settings {
        peer: Peer::Broker,
        mode: Mode::Require,
        ca_file: None,
        client: None,
        server_name: None,
    })
    .unwrap();
    let settings = |port, connect_timeout| Settings {
        connect_timeout,
        tls: Some(tls.clone()),
        ..Settings::new(vec![at::broker(&format!("amqp://127.0.0.1:{port}"))])
    };
    let short = Duration::from_secs(1);
    for (port, late) in [
        (silent.local_addr().unwrap().port(), "TLS"),
        (by_tls, "AMQP"),
    ] {
        for _ in 0..3 {
            let outcome = Connection::open(&settings(port, short), 0).await;
            match outcome {
                Err(Error::Connect(ConnectError::Timeout { stage, .. })) => {
                    assert!(stage.contains(late), "{stage}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
    no_thread_is_left().await;

    let patient = settings(by_tls, LONG);
    let opening = tokio::spawn(async move { Connection::open(&patient, 0).await.map(|_| ()) });
    wait_until(LONG, "the handshake to begin", async || {
        threads_of_the_library() == 1
    })
    .await
    .unwrap();
    opening.abort();
    no_thread_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_connection_that_is_dropped_leaves_no_thread() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = RabbitServer::start(RabbitOptions::default()).await.unwrap();
    let url = server.url("/");
    let connection = Connection::open(&Settings::new(vec![at::broker(&url)]), 0)
        .await
        .unwrap();
    let mut publisher = connection.publisher().await.unwrap();
    server.set_memory_alarm(true).await.unwrap();
    let mut link = connection.watch();
    let batch: Vec<_> = (0..100).map(|_| large_message()).collect();
    let publishing = tokio::spawn(async move { publisher.publish(&batch, PATIENT).await.outcomes });
    let blocked = link.wait_for(|state| matches!(state, LinkState::Blocked { .. }));
    tokio::time::timeout(LONG, blocked).await.unwrap().unwrap();
    drop(connection);
    let outcomes = publishing.await.unwrap();
    assert_eq!(outcomes.len(), 100);
    no_thread_is_left().await;
}

fn large_message() -> Message {
    Message {
        seq: Seq(1),
        id: Uuid::new_v4(),
        exchange: String::new(),
        routing_key: "q".to_owned(),
        payload: Payload::Fetched(vec![0; 100_000]),
        headers: postrider_core::Headers::default(),
        properties: Properties::default(),
        created_at_unix: 0,
        age_at_claim: Duration::ZERO,
        attempts: 0,
        origin: postrider_core::Origin::Messages,
        ordered: None,
    }
}
