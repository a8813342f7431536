//! TLS to a real server: who is believed, who is refused, and what is said about it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::path::{Path, PathBuf};
use std::time::Duration;

use fresh::{DEADLINE, client};
use postrider_postgres::{Database, Error, ErrorKind, Listener, Settings};
use postrider_testbed::test_dir::TestDir;
use postrider_testbed::{
    Authority, Identity, PostgresOptions, PostgresServer, TestDatabase, shared, wait_until,
};
use postrider_tls::{ClientFiles, FaultKind, Look, Mode, Peer, Tls};
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// A server with a certificate for the name `localhost`, and not for the address 127.0.0.1.
struct Place {
    server: PostgresServer,
    authority: Authority,
    stranger: Authority,
    directory: TestDir,
}

static PLACE: OnceCell<Place> = OnceCell::const_new();

/// Roles that may come in by TLS only.
const ACCESS: [&str; 5] = [
    "hostssl all by_certificate 127.0.0.1/32 cert",
    "hostssl all shows_certificate 127.0.0.1/32 trust clientcert=verify-ca",
    "hostssl all by_password 127.0.0.1/32 scram-sha-256",
    "hostssl all encrypted 127.0.0.1/32 trust",
    "host all by_certificate,shows_certificate,by_password,encrypted 127.0.0.1/32 reject",
];

async fn start(authority: &Authority, shown: Identity) -> PostgresServer {
    let server = PostgresServer::start(PostgresOptions {
        access: ACCESS.map(str::to_owned).to_vec(),
        tls: Some((shown, authority.certificate())),
        ..PostgresOptions::default()
    })
    .await
    .unwrap();
    let admin = server.client("postgres").await.unwrap();
    for role in ["by_certificate", "shows_certificate", "encrypted"] {
        let sql = format!("CREATE ROLE {role} LOGIN SUPERUSER");
        admin.batch_execute(&sql).await.unwrap();
    }
    admin
        .batch_execute("CREATE ROLE by_password LOGIN SUPERUSER PASSWORD 'pw'")
        .await
        .unwrap();
    server
}

async fn place() -> &'static Place {
    PLACE
        .get_or_init(async || {
            let authority = Authority::new().unwrap();
            let shown = authority.server(&["localhost"]).unwrap();
            Place {
                server: start(&authority, shown).await,
                authority,
                stranger: Authority::new().unwrap(),
                directory: TestDir::create().unwrap(),
            }
        })
        .await
}

impl Place {
    async fn database(&self) -> TestDatabase {
        self.server.create_database().await.unwrap()
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
            peer: Peer::Database,
            mode,
            ca_file,
            client: None,
            server_name: None,
        }
    }

    fn showing(&self, identity: &Identity) -> postrider_tls::Settings {
        postrider_tls::Settings {
            client: Some(self.files(identity)),
            ..self.trusting(Mode::VerifyFull)
        }
    }

    fn files(&self, identity: &Identity) -> ClientFiles {
        let name = uuid::Uuid::now_v7().to_string();
        let (certificate, key) = identity.write(self.directory.path(), &name).unwrap();
        ClientFiles { certificate, key }
    }
}

fn write(directory: &Path, text: String) -> PathBuf {
    let path = directory.join(uuid::Uuid::now_v7().to_string());
    std::fs::write(&path, text).unwrap();
    path
}

fn url(test: &TestDatabase, user: &str, host: &str) -> String {
    format!("postgres://{user}@{host}:{}/{}", test.port, test.name)
}

fn database(url: &str, tls: postrider_tls::Settings) -> Database {
    database_with(url, &Tls::new(tls).unwrap())
}

fn database_with(url: &str, tls: &Tls) -> Database {
    Database::new(Settings {
        tls: Some(tls.clone()),
        ..Settings::new(url)
    })
    .unwrap()
}

/// What connecting fails for; the text with it.
async fn refused(database: &Database) -> (FaultKind, String) {
    let error = database.check_server().await.unwrap_err();
    let text = error.to_string();
    match error {
        Error::Tls { fault, .. } => (fault.kind, text),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_is_believed_by_its_name_and_its_authority_and_the_session_is_encrypted() {
    let place = place().await;
    let test = place.database().await;
    let database = Database::new(Settings {
        tls: Some(Tls::new(place.trusting(Mode::VerifyFull)).unwrap()),
        application_name: test.name.clone(),
        ..Settings::new(url(&test, "encrypted", "localhost"))
    })
    .unwrap();
    database.check_server().await.unwrap();
    let row = client(&test.url)
        .await
        .query_one(
            "SELECT ssl, version FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = $1",
            &[&test.name],
        )
        .await
        .unwrap();
    assert!(row.get::<_, bool>(0));
    assert_eq!(row.get::<_, &str>(1), "TLSv1.3");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_unless_the_name_is_said_or_not_verified() {
    let place = place().await;
    let test = place.database().await;
    let url = url(&test, "encrypted", "127.0.0.1");
    let (kind, text) = refused(&database(&url, place.trusting(Mode::VerifyFull))).await;
    assert_eq!(kind, FaultKind::WrongName, "{text}");
    for part in ["[database.tls] server_name", "127.0.0.1", "localhost"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let named = postrider_tls::Settings {
        server_name: Some("localhost".to_owned()),
        ..place.trusting(Mode::VerifyFull)
    };
    for accepting in [named, place.trusting(Mode::VerifyCa)] {
        database(&url, accepting).check_server().await.unwrap();
    }
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_is_refused_unless_nothing_is_verified() {
    let place = place().await;
    let test = place.database().await;
    let url = url(&test, "encrypted", "localhost");
    for mode in [Mode::VerifyFull, Mode::VerifyCa] {
        let tls = place.trusting_only(mode, &place.stranger);
        let database = database(&url, tls);
        let (kind, text) = refused(&database).await;
        assert_eq!(kind, FaultKind::UnknownAuthority, "{text}");
        assert!(text.contains("[database.tls] ca_file"), "{text}");
    }
    database(&url, place.trusting(Mode::Require))
        .check_server()
        .await
        .unwrap();
}

#[tokio::test]
async fn an_expired_certificate_is_an_outage_that_ends_when_the_server_shows_a_new_one() {
    let authority = Authority::new().unwrap();
    let server = start(
        &authority,
        authority.expired_server(&["localhost"]).unwrap(),
    )
    .await;
    let test = server.create_database().await.unwrap();
    let tls = place().await.trusting_only(Mode::VerifyCa, &authority);
    let database = database(&url(&test, "encrypted", "localhost"), tls);
    let error = database.check_server().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let (kind, text) = refused(&database).await;
    assert_eq!(kind, FaultKind::Expired, "{text}");
    assert!(text.contains("renew it at the server"), "{text}");

    let renewed = authority.server(&["localhost"]).unwrap();
    server.show_certificate(&renewed).await.unwrap();
    wait_until(DEADLINE, "the new certificate", async || {
        database.check_server().await.is_ok()
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_client_certificate_logs_in_and_without_one_the_error_names_the_keys() {
    let place = place().await;
    let test = place.database().await;
    let identity = place.authority.client("by_certificate").unwrap();
    database(
        &url(&test, "by_certificate", "localhost"),
        place.showing(&identity),
    )
    .check_server()
    .await
    .unwrap();

    for role in ["shows_certificate", "by_certificate"] {
        let url = url(&test, role, "localhost");
        let without = database(&url, place.trusting(Mode::VerifyFull));
        let (kind, text) = refused(&without).await;
        assert_eq!(kind, FaultKind::ClientCertificateMissing, "{role}: {text}");
        assert!(
            text.contains("[database.tls] cert_file and key_file"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_client_certificate_that_the_server_does_not_accept_is_named_with_the_reason() {
    let place = place().await;
    let test = place.database().await;
    let url = url(&test, "by_certificate", "localhost");
    for (identity, said) in [
        (
            place.stranger.client("by_certificate").unwrap(),
            "does not trust the authority",
        ),
        (
            place.authority.expired_client("by_certificate").unwrap(),
            "it has expired",
        ),
    ] {
        let database = database(&url, place.showing(&identity));
        let (kind, text) = refused(&database).await;
        assert_eq!(kind, FaultKind::ClientCertificateRefused, "{text}");
        assert!(text.contains(said), "{text}");
        assert!(text.contains("[database.tls] cert_file"), "{text}");
    }
}

#[tokio::test]
async fn a_server_without_tls_and_one_that_insists_on_it_are_each_told_from_an_outage() {
    let place = place().await;
    let without = shared::database().await;
    let (kind, text) = refused(&database(&without.url, place.trusting(Mode::Require))).await;
    assert_eq!(kind, FaultKind::NoTls, "{text}");
    assert!(text.contains("[database.tls] mode = \"disable\""), "{text}");

    let test = place.database().await;
    let plain = Database::new(Settings::new(url(&test, "encrypted", "localhost"))).unwrap();
    let error = plain.check_server().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Privilege, "{error}");
    assert!(error.to_string().contains("[database.tls] mode"), "{error}");
}

#[tokio::test]
async fn a_login_by_password_is_bound_to_the_certificate_of_the_server() {
    let place = place().await;
    let test = place.database().await;
    let url = format!(
        "postgres://by_password:pw@localhost:{}/{}?channel_binding=require",
        test.port, test.name
    );
    database(&url, place.trusting(Mode::VerifyFull))
        .check_server()
        .await
        .unwrap();
}

#[tokio::test]
async fn of_several_hosts_the_one_that_answers_is_verified_by_its_own_name() {
    let place = place().await;
    let test = place.database().await;
    let url = format!(
        "postgres://encrypted@127.0.0.1:{port},localhost:{port}/{}",
        test.name,
        port = test.port
    );
    database(&url, place.trusting(Mode::VerifyFull))
        .check_server()
        .await
        .unwrap();
    let by_address = format!(
        "postgres:///{}?user=encrypted&hostaddr=127.0.0.1&port={}",
        test.name, test.port
    );
    database(&by_address, place.trusting(Mode::VerifyCa))
        .check_server()
        .await
        .unwrap();
}

#[tokio::test]
async fn wake_ups_come_by_tls() {
    let place = place().await;
    let test = place.database().await;
    let database = database(
        &url(&test, "encrypted", "localhost"),
        place.trusting(Mode::VerifyFull),
    );
    database.migrate(DEADLINE).await.unwrap();
    let mut listener = Listener::connect(&database, "one", true).await.unwrap();
    client(&test.url)
        .await
        .batch_execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload) VALUES ('e', 'k', '')",
        )
        .await
        .unwrap();
    timeout(DEADLINE, listener.next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn files_that_changed_are_used_by_the_next_connection_and_unusable_ones_are_not() {
    let place = place().await;
    let test = place.database().await;
    let stranger = place.stranger.client("by_certificate").unwrap();
    let settings = place.showing(&stranger);
    let files = settings.client.clone().unwrap();
    let tls = Tls::new(settings).unwrap();
    let database = database_with(&url(&test, "by_certificate", "localhost"), &tls);
    let (kind, text) = refused(&database).await;
    assert_eq!(kind, FaultKind::ClientCertificateRefused, "{text}");

    let ours = place.authority.client("by_certificate").unwrap();
    std::fs::write(&files.certificate, &ours.certificate).unwrap();
    // Between the two the certificate has the key of another.
    let look = tls.look();
    assert!(matches!(look, Look::Unusable(_)), "{look:?}");
    assert!(matches!(tls.look(), Look::Unchanged), "said once");
    std::fs::write(&files.key, &ours.key).unwrap();
    database.check_server().await.unwrap();

    std::fs::write(&files.certificate, "-----BEGIN CERTIFICATE-----\n").unwrap();
    std::fs::remove_file(&files.key).unwrap();
    assert!(tls.reload().is_err());
    let again = database_with(&url(&test, "by_certificate", "localhost"), &tls);
    again.check_server().await.unwrap();
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_given_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let accepting = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut socket, _)) = silent.accept().await {
            // "I speak TLS", and not a word of it.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, b"S").await;
            kept.push(socket);
        }
    });
    let database = Database::new(Settings {
        tls: Some(Tls::new(place().await.trusting(Mode::Require)).unwrap()),
        connect_timeout: Duration::from_millis(200),
        ..Settings::new(format!("postgres://u@127.0.0.1:{port}/d"))
    })
    .unwrap();
    let error = timeout(DEADLINE, database.check_server())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    accepting.abort();
}
