//! The daemon between servers that it reaches by TLS alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use postrider_testbed::daemon::{Daemon, DaemonOptions};
use postrider_testbed::test_dir::TestDir;
use postrider_testbed::{
    Authority, ClientCertificates, Identity, PostgresOptions, PostgresServer, shared, wait_until,
};

use crate::lifecycle::wait_until_readyz;
use crate::stage::{DEADLINE, Stage};

/// Who the relay's certificate says it is.
const RELAY: &str = "relay";

/// A server that lets the relay in with its certificate only.
async fn postgres(authority: &Authority, shown: Identity) -> PostgresServer {
    let server = PostgresServer::start(PostgresOptions {
        access: vec![
            format!("hostssl all {RELAY} 127.0.0.1/32 cert"),
            format!("host all {RELAY} 127.0.0.1/32 reject"),
        ],
        tls: Some((shown, authority.certificate())),
        ..PostgresOptions::default()
    })
    .await
    .unwrap();
    let admin = server.client("postgres").await.unwrap();
    let sql = format!("CREATE ROLE {RELAY} LOGIN SUPERUSER");
    admin.batch_execute(&sql).await.unwrap();
    server
}

/// The files of a relay.
struct Files {
    directory: TestDir,
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn new(authority: &Authority, identity: &Identity) -> Self {
        let directory = TestDir::create().unwrap();
        let ca_file = directory.path().join("ca.crt");
        fs::write(&ca_file, authority.certificate()).unwrap();
        let (certificate, key) = identity.write(directory.path(), "relay").unwrap();
        Self {
            authority: ca_file,
            certificate,
            key,
            directory,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn given_to(&self, options: DaemonOptions) -> DaemonOptions {
        ["DATABASE", "BROKER"]
            .into_iter()
            .fold(options, |options, peer| {
                let set = |options: DaemonOptions, key: &str, path: &Path| {
                    options.env(
                        format!("POSTRIDER_{peer}_TLS_{key}"),
                        path.to_str().unwrap(),
                    )
                };
                let options = set(options, "CA_FILE", &self.authority);
                let options = set(options, "CERT_FILE", &self.certificate);
                set(options, "KEY_FILE", &self.key)
            })
    }
}

fn database_url(stage: &Stage) -> String {
    format!(
        "postgres://{RELAY}@localhost:{}/{}",
        stage.database.port, stage.database.name
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn with_client_certificates_on_both_sides_everything_is_delivered_by_tls_and_renewed_ones_are_used()
 {
    let authority = Authority::new().unwrap();
    let shown = authority.server(&["localhost"]).unwrap();
    let server = postgres(&authority, shown.clone()).await;
    let stage = Stage::on_postgres(&server).await;
    let _consumer = stage.consumer();
    // The name is the whole login at the broker: it has to be this test's own.
    let user = format!("relay-{}", uuid::Uuid::now_v7().simple());
    let rabbit = shared::rabbit().await;
    rabbit.add_user(&user, "never told").await.unwrap();
    rabbit
        .set_permissions(&user, &stage.vhost.name, "", ".*", "")
        .await
        .unwrap();
    let files = Files::new(&authority, &authority.client(RELAY).unwrap());
    let broker_files = authority.client(&user).unwrap();
    let (broker_certificate, broker_key) = broker_files.write(files.path(), "broker").unwrap();
    let port = rabbit
        .open_tls_port(
            files.path(),
            &shown,
            &authority.certificate(),
            ClientCertificates::Required,
        )
        .await
        .unwrap();
    let options = files
        .given_to(stage.options())
        .env(
            "POSTRIDER_BROKER_TLS_CERT_FILE",
            broker_certificate.to_str().unwrap(),
        )
        .env(
            "POSTRIDER_BROKER_TLS_KEY_FILE",
            broker_key.to_str().unwrap(),
        )
        .env("POSTRIDER_DATABASE_URL", database_url(&stage))
        .env(
            "POSTRIDER_BROKER_URL",
            format!("amqps://localhost:{port}/{}", stage.vhost.name),
        );
    let daemon = Daemon::start(options).await.unwrap();
    wait_until_readyz(&daemon, None).await;
    stage.produce(200).await;
    stage.assert_clean().await;
    for peer in ["database", "broker"] {
        let expires = daemon
            .metric(
                "postrider_certificate_expiry_timestamp_seconds",
                &[("peer", peer)],
            )
            .await;
        assert!(expires.is_some_and(|expires| expires > 2e9), "{expires:?}");
    }
    let first = serials(&stage).await;
    assert_eq!(
        first.len(),
        1,
        "one certificate, and no session without: {first:?}"
    );

    // A renewal that went wrong is told, and stops nothing.
    let before = daemon.log_lines().len();
    fs::write(&files.certificate, "cut off").unwrap();
    let line = daemon
        .wait_for_log_after(before, "cannot be used", DEADLINE)
        .await
        .unwrap();
    assert!(line.contains("[database.tls] cert_file"), "{line}");
    end_sessions(&stage).await;
    stage.produce(100).await;
    stage.assert_clean().await;
    assert_eq!(serials(&stage).await, first);

    // One that went right is used by the next sessions.
    let before = daemon.log_lines().len();
    authority
        .client(RELAY)
        .unwrap()
        .write(files.path(), "relay")
        .unwrap();
    daemon
        .wait_for_log_after(before, "read again", DEADLINE)
        .await
        .unwrap();
    end_sessions(&stage).await;
    stage.produce(100).await;
    stage.assert_clean().await;
    wait_until(
        DEADLINE,
        "sessions with the new certificate alone",
        async || {
            let now = serials(&stage).await;
            now.len() == 1 && now != first
        },
    )
    .await
    .unwrap();
    stage.assert_healed(&daemon).await;
}

/// Of the certificates that the relay's sessions were opened with; an empty one for a session without.
async fn serials(stage: &Stage) -> Vec<String> {
    let rows = stage
        .sql()
        .await
        .query(
            "SELECT DISTINCT coalesce(client_serial::text, '') FROM pg_stat_ssl \
             JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'postrider%' ORDER BY 1",
            &[],
        )
        .await
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn end_sessions(stage: &Stage) {
    stage
        .sql()
        .await
        .query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'postrider%'",
            &[],
        )
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_of_a_server_is_waited_for_like_an_outage() {
    let authority = Authority::new().unwrap();
    let names = ["localhost"];
    let server = postgres(&authority, authority.expired_server(&names).unwrap()).await;
    let stage = Stage::on_postgres(&server).await;
    let files = Files::new(&authority, &authority.client(RELAY).unwrap());
    let authority_file = files.authority.to_str().unwrap();
    let options = stage
        .options()
        .env("POSTRIDER_DATABASE_URL", database_url(&stage))
        .env("POSTRIDER_DATABASE_TLS_CA_FILE", authority_file)
        .env(
            "POSTRIDER_DATABASE_TLS_CERT_FILE",
            files.certificate.to_str().unwrap(),
        )
        .env(
            "POSTRIDER_DATABASE_TLS_KEY_FILE",
            files.key.to_str().unwrap(),
        );
    let daemon = Daemon::start(options).await.unwrap();
    let line = daemon
        .wait_for_log("database is away", DEADLINE)
        .await
        .unwrap();
    assert!(line.contains("certificate has expired"), "{line}");
    wait_until_readyz(&daemon, Some("database_away")).await;
    server
        .show_certificate(&authority.server(&names).unwrap())
        .await
        .unwrap();
    wait_until_readyz(&daemon, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_file_the_authorities_of_the_system_are_trusted_and_no_others() {
    let authority = Authority::new().unwrap();
    let server = postgres(&authority, authority.server(&["localhost"]).unwrap()).await;
    let stage = Stage::on_postgres(&server).await;
    let files = Files::new(&authority, &authority.client(RELAY).unwrap());
    let status = |trusted: &Path| {
        Command::new(env!("CARGO_BIN_EXE_postrider"))
            .arg("status")
            .env("POSTRIDER_DATABASE_URL", database_url(&stage))
            .env("POSTRIDER_DATABASE_TLS_CERT_FILE", &files.certificate)
            .env("POSTRIDER_DATABASE_TLS_KEY_FILE", &files.key)
            .env("SSL_CERT_FILE", trusted)
            .env_remove("SSL_CERT_DIR")
            .output()
            .unwrap()
    };
    let trusted = status(&files.authority);
    assert!(trusted.status.success(), "{trusted:?}");

    let stranger = files.path().join("stranger.crt");
    fs::write(&stranger, Authority::new().unwrap().certificate()).unwrap();
    let refused = status(&stranger);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("set [database.tls] ca_file"), "{said}");

    let nobody = files.path().join("nobody.crt");
    fs::write(&nobody, "").unwrap();
    let refused = status(&nobody);
    assert_eq!(refused.status.code(), Some(78));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        said.contains("[database.tls] ca_file: no certificate authority is trusted"),
        "{said}"
    );
}

#[test]
fn plain_text_to_another_machine_and_a_file_that_cannot_be_used_end_the_start_with_78() {
    let run = |variables: &[(&str, &str)]| {
        Command::new(env!("CARGO_BIN_EXE_postrider"))
            .arg("run")
            .env("POSTRIDER_DATABASE_URL", "postgres://u:p@localhost:1/d")
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    };
    for (variables, said) in [
        (
            &[("POSTRIDER_BROKER_URL", "amqp://mq.example")][..],
            "POSTRIDER_BROKER_TLS_MODE=disable",
        ),
        (
            &[
                ("POSTRIDER_BROKER_URL", "amqps://mq.example"),
                ("POSTRIDER_BROKER_TLS_CA_FILE", "/nonexistent/ca.crt"),
            ][..],
            "/nonexistent/ca.crt: the file does not exist",
        ),
    ] {
        let ended = run(variables);
        assert_eq!(ended.status.code(), Some(78), "{ended:?}");
        let text = String::from_utf8_lossy(&ended.stderr);
        assert!(text.contains(said), "{said} is not in: {text}");
    }
}
