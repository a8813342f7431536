//! TLS to a real broker: who is believed, who is refused, and what is said about it.

use std::path::{Path, PathBuf};

use postrider_core::Outcome;
use postrider_rabbitmq::{Broker, ConnectError, Connection, Error, Login, Settings};
use postrider_testbed::test_dir::TestDir;
use postrider_testbed::{
    Authority, ClientCertificates, Identity, RabbitOptions, RabbitServer, TestVhost, shared,
};
use postrider_tls::{ClientFiles, FaultKind, Mode, Peer, Tls};

use super::{LONG, PATIENT, at, messages};

/// A virtual host behind a port for TLS, with authorities that somebody may trust.
struct Place {
    vhost: TestVhost,
    authority: Authority,
    stranger: Authority,
    directory: TestDir,
    port: u16,
}

impl Place {
    /// The broker shows a certificate for the name `localhost`, and not for the address 127.0.0.1.
    async fn new(clients: ClientCertificates) -> Self {
        let authority = Authority::new().unwrap();
        let shown = authority.server(&["localhost"]).unwrap();
        Self::showing(authority, shown, clients).await
    }

    async fn showing(authority: Authority, shown: Identity, clients: ClientCertificates) -> Self {
        let directory = TestDir::create().unwrap();
        let trusted = authority.certificate();
        let port = shared::rabbit()
            .await
            .open_tls_port(directory.path(), &shown, &trusted, clients)
            .await
            .unwrap();
        Self {
            vhost: shared::vhost().await,
            authority,
            stranger: Authority::new().unwrap(),
            directory,
            port,
        }
    }

    fn broker(&self, host: &str) -> Broker {
        Broker {
            host: host.to_owned(),
            port: self.port,
            ..at::broker(&self.vhost.url)
        }
    }

    fn trusting(&self, mode: Mode) -> postrider_tls::Settings {
        self.trusting_only(mode, &self.authority)
    }

    fn trusting_only(&self, mode: Mode, authority: &Authority) -> postrider_tls::Settings {
        let ca_file = match mode {
            Mode::Require => None,
            Mode::VerifyCa | Mode::VerifyFull => {
                Some(write(self.directory.path(), authority.certificate()))
            }
        };
        postrider_tls::Settings {
            peer: Peer::Broker,
            mode,
            ca_file,
            client: None,
            server_name: None,
        }
    }

    fn with_certificate(&self, identity: &Identity) -> postrider_tls::Settings {
        let name = uuid::Uuid::now_v7().to_string();
        let (certificate, key) = identity.write(self.directory.path(), &name).unwrap();
        postrider_tls::Settings {
            client: Some(ClientFiles { certificate, key }),
            ..self.trusting(Mode::VerifyFull)
        }
    }
}

fn write(directory: &Path, text: String) -> PathBuf {
    let path = directory.join(uuid::Uuid::now_v7().to_string());
    std::fs::write(&path, text).unwrap();
    path
}

async fn open(broker: Broker, tls: postrider_tls::Settings) -> Result<Connection, Error> {
    open_with(broker, &Tls::new(tls).unwrap()).await
}

async fn open_with(broker: Broker, tls: &Tls) -> Result<Connection, Error> {
    let settings = Settings {
        connect_timeout: LONG,
        tls: Some(tls.clone()),
        ..Settings::new(vec![broker])
    };
    Connection::open(&settings, 0).await
}

async fn refused(broker: Broker, tls: postrider_tls::Settings) -> (FaultKind, String) {
    let error = open(broker, tls).await.unwrap_err();
    let text = error.to_string();
    match error {
        Error::Connect(ConnectError::Tls { fault, .. }) => (fault.kind, text),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_batches_are_confirmed_by_tls() {
    let place = Place::new(ClientCertificates::Ignored).await;
    let connection = open(place.broker("localhost"), place.trusting(Mode::VerifyFull))
        .await
        .unwrap();
    let plain = place.vhost.connection().await.unwrap();
    let channel = plain.create_channel().await.unwrap();
    super::queue(&channel, "q").await;
    let mut publisher = connection.publisher().await.unwrap();
    for _ in 0..3 {
        let mut batch = messages(500, "", "q");
        for message in &mut batch {
            message.payload = postrider_core::Payload::Fetched(vec![7; 20_000]);
        }
        let published = publisher.publish(&batch, PATIENT).await;
        assert!(
            published
                .outcomes
                .iter()
                .all(|outcome| *outcome == Outcome::Confirmed)
        );
    }
    connection.close(LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_name_is_refused_unless_the_name_is_said_or_not_verified() {
    let place = Place::new(ClientCertificates::Ignored).await;
    let broker = place.broker("127.0.0.1");
    let (kind, text) = refused(broker.clone(), place.trusting(Mode::VerifyFull)).await;
    assert_eq!(kind, FaultKind::WrongName, "{text}");
    assert!(text.contains("[broker.tls] server_name"), "{text}");
    let named = postrider_tls::Settings {
        server_name: Some("localhost".to_owned()),
        ..place.trusting(Mode::VerifyFull)
    };
    for accepting in [named, place.trusting(Mode::VerifyCa)] {
        open(broker.clone(), accepting).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_an_unknown_authority_is_refused_unless_nothing_is_verified() {
    let place = Place::new(ClientCertificates::Ignored).await;
    let broker = place.broker("localhost");
    for mode in [Mode::VerifyFull, Mode::VerifyCa] {
        let tls = place.trusting_only(mode, &place.stranger);
        let (kind, text) = refused(broker.clone(), tls).await;
        assert_eq!(kind, FaultKind::UnknownAuthority, "{text}");
        assert!(text.contains("[broker.tls] ca_file"), "{text}");
    }
    open(broker, place.trusting(Mode::Require)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_refused_and_named_as_such() {
    let authority = Authority::new().unwrap();
    let expired = authority.expired_server(&["localhost"]).unwrap();
    let place = Place::showing(authority, expired, ClientCertificates::Ignored).await;
    for mode in [Mode::VerifyFull, Mode::VerifyCa] {
        let (kind, text) = refused(place.broker("localhost"), place.trusting(mode)).await;
        assert_eq!(kind, FaultKind::Expired, "{text}");
    }
    open(place.broker("localhost"), place.trusting(Mode::Require))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_client_certificate_that_the_broker_wants_the_error_names_the_keys() {
    let place = Place::new(ClientCertificates::Required).await;
    let broker = place.broker("localhost");
    let (kind, text) = refused(broker.clone(), place.trusting(Mode::VerifyFull)).await;
    assert_eq!(kind, FaultKind::ClientCertificateMissing, "{text}");
    assert!(
        text.contains("[broker.tls] cert_file and key_file"),
        "{text}"
    );

    for identity in [
        place.stranger.client("relay").unwrap(),
        place.authority.expired_client("relay").unwrap(),
    ] {
        let tls = place.with_certificate(&identity);
        let (kind, text) = refused(broker.clone(), tls).await;
        assert_eq!(kind, FaultKind::ClientCertificateRefused, "{text}");
        assert!(text.contains("[broker.tls] cert_file"), "{text}");
    }
    // A user with a password may come with a certificate too.
    let identity = place.authority.client("anybody").unwrap();
    open(broker, place.with_certificate(&identity))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_logs_in_by_itself_as_the_user_of_its_name() {
    let place = Place::new(ClientCertificates::Required).await;
    let user = format!("relay-{}", uuid::Uuid::now_v7().simple());
    let by_certificate = Broker {
        login: Login::Certificate,
        ..place.broker("localhost")
    };
    let tls = place.with_certificate(&place.authority.client(&user).unwrap());

    let error = open(by_certificate.clone(), tls.clone()).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Connect(ConnectError::CertificateLoginRefused { .. })
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("ssl_cert_login_from"), "{error}");

    let rabbit = shared::rabbit().await;
    rabbit.add_user(&user, "never told").await.unwrap();
    rabbit
        .set_permissions(&user, &place.vhost.name, "", ".*", "")
        .await
        .unwrap();
    let connection = open(by_certificate.clone(), tls).await.unwrap();
    connection.publisher().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_knows_no_login_by_certificate_is_told_from_one_that_refuses_it() {
    let place = Place::new(ClientCertificates::Required).await;
    let broker = RabbitServer::start(RabbitOptions::default()).await.unwrap();
    let port = broker
        .open_tls_port(
            place.directory.path(),
            &place.authority.server(&["localhost"]).unwrap(),
            &place.authority.certificate(),
            ClientCertificates::Required,
        )
        .await
        .unwrap();
    let by_certificate = Broker {
        port,
        login: Login::Certificate,
        ..place.broker("localhost")
    };
    let tls = place.with_certificate(&place.authority.client("relay").unwrap());
    let error = open(by_certificate, tls).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Connect(ConnectError::CertificateLoginRefused { .. })
        ),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_to_a_port_without_it_and_plain_text_to_one_with_it_are_told_apart() {
    let place = Place::new(ClientCertificates::Ignored).await;
    let plain_port = Broker {
        port: place.vhost.port,
        ..place.broker("localhost")
    };
    let (kind, text) = refused(plain_port, place.trusting(Mode::VerifyFull)).await;
    assert_eq!(kind, FaultKind::NoTls, "{text}");
    assert!(text.contains("5671"), "{text}");

    let settings = Settings::new(vec![place.broker("localhost")]);
    let error = Connection::open(&settings, 0).await.unwrap_err();
    assert!(
        matches!(error, Error::Connect(ConnectError::Handshake { .. })),
        "{error:?}"
    );
    assert!(error.to_string().contains("amqps://"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_changed_are_used_by_the_next_connection() {
    let place = Place::new(ClientCertificates::Required).await;
    let settings = place.with_certificate(&place.authority.client("first").unwrap());
    let files = settings.client.clone().unwrap();
    let tls = Tls::new(settings).unwrap();
    let open_one = open_with(place.broker("localhost"), &tls).await.unwrap();

    let refused = place.stranger.client("second").unwrap();
    std::fs::write(&files.certificate, &refused.certificate).unwrap();
    std::fs::write(&files.key, &refused.key).unwrap();
    let error = open_with(place.broker("localhost"), &tls)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("refuses the client certificate"),
        "{error}"
    );
    open_one.publisher().await.unwrap();

    let third = place.authority.client("third").unwrap();
    std::fs::write(&files.certificate, &third.certificate).unwrap();
    std::fs::write(&files.key, &third.key).unwrap();
    open_with(place.broker("localhost"), &tls).await.unwrap();
}
