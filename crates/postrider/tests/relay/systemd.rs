//! What systemd hears on its notify socket, and hands over in its credentials directory.

use std::fs;

use postrider_testbed::daemon::{Daemon, DaemonOptions};
use postrider_testbed::proxy::Proxy;
use tempfile::TempDir;
use tokio::net::UnixDatagram;

use crate::lifecycle::wait_until_readyz;
use crate::reload::File;
use crate::stage::{DEADLINE, Stage};

/// The other end of `$NOTIFY_SOCKET`.
struct Systemd {
    socket: UnixDatagram,
    directory: TempDir,
}

impl Systemd {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        Self { socket, directory }
    }

    fn in_options(&self, options: DaemonOptions) -> DaemonOptions {
        let path = self.directory.path().join("notify");
        options.env("NOTIFY_SOCKET", path.to_str().unwrap())
    }

    /// The next message, line by line.
    async fn next(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let received = tokio::time::timeout(DEADLINE, self.socket.recv(&mut buffer)).await;
        let bytes = received
            .unwrap_or_else(|_| panic!("systemd hears nothing"))
            .unwrap();
        let text = std::str::from_utf8(&buffer[..bytes]).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// The next message in which each of these is part of a line.
    async fn hear(&self, wanted: &[&str]) -> Vec<String> {
        let hearing = async {
            loop {
                let lines = self.next().await;
                let heard = |part: &&str| lines.iter().any(|line| line.contains(part));
                if wanted.iter().all(heard) {
                    return lines;
                }
            }
        };
        tokio::time::timeout(DEADLINE, hearing)
            .await
            .unwrap_or_else(|_| panic!("systemd did not hear {wanted:?}"))
    }

    /// The next message that is neither a status nor for the watchdog.
    async fn hear_of_state(&self) -> Vec<String> {
        let hearing = async {
            loop {
                let lines = self.next().await;
                let aside = |line: &String| line.starts_with("STATUS=") || line == "WATCHDOG=1";
                if !lines.iter().all(aside) {
                    return lines;
                }
            }
        };
        tokio::time::timeout(DEADLINE, hearing)
            .await
            .unwrap_or_else(|_| panic!("systemd hears of no change"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_hears_ready_without_any_peer_then_the_status_the_watchdog_and_the_stop() {
    let stage = Stage::new().await;
    let broker = Proxy::to_port(stage.vhost.port).await.unwrap();
    let database = Proxy::to_port(stage.database.port).await.unwrap();
    broker.cut();
    database.cut();
    let systemd = Systemd::new();
    let options = stage
        .options()
        .env(
            "POSTRIDER_DATABASE_URL",
            stage.database.url_for("postgres", database.port()),
        )
        .env(
            "POSTRIDER_BROKER_URL",
            stage.vhost.url_for("guest", "guest", broker.port()),
        )
        .env("WATCHDOG_USEC", "3000000");
    let daemon = Daemon::start(systemd.in_options(options)).await.unwrap();
    assert_eq!(systemd.next().await, ["READY=1"]);
    systemd
        .hear(&["STATUS=waiting:", "database away", "broker away"])
        .await;
    systemd.hear(&["WATCHDOG=1"]).await;
    broker.pass();
    database.pass();
    systemd.hear(&["STATUS=relaying; lag 0s, backlog 0"]).await;
    systemd.hear(&["WATCHDOG=1"]).await;
    daemon.sigterm().unwrap();
    assert_eq!(systemd.hear_of_state().await, ["STOPPING=1"]);
    assert_eq!(daemon.wait_exit(DEADLINE).await.unwrap().code(), Some(0));
}

/// What `systemctl reload` waits for.
async fn assert_reloads(systemd: &Systemd) {
    let reloading = systemd.hear_of_state().await;
    assert_eq!(reloading[0], "RELOADING=1");
    let since = reloading[1].strip_prefix("MONOTONIC_USEC=").unwrap();
    assert!(since.parse::<u64>().unwrap() > 0);
    assert_eq!(reloading.len(), 2);
    assert_eq!(systemd.hear_of_state().await, ["READY=1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_hears_when_a_reload_begins_and_when_it_is_over_also_where_it_is_refused() {
    let stage = Stage::new().await;
    let systemd = Systemd::new();
    let file = File::with("");
    let options = file.in_options(systemd.in_options(stage.options()));
    let daemon = Daemon::start(options).await.unwrap();
    assert_eq!(systemd.hear_of_state().await, ["READY=1"]);
    for text in ["", "[relay]\nbatch_rows = 7\n", "no toml", "[retry]\n"] {
        file.write("postrider.toml", text);
        daemon.sighup().unwrap();
        assert_reloads(&systemd).await;
    }
    daemon.sigterm().unwrap();
    assert_eq!(systemd.hear_of_state().await, ["STOPPING=1"]);
    daemon.wait_exit(DEADLINE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_runs_with_nothing_but_the_credentials_that_systemd_hands_over() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let directory = tempfile::tempdir().unwrap();
    for (name, secret) in [
        ("database-url", &stage.database.url),
        ("broker-url", &stage.vhost.url),
    ] {
        fs::write(directory.path().join(name), format!("{secret}\n")).unwrap();
    }
    let options = stage
        .options()
        .env("POSTRIDER_DATABASE_URL", "")
        .env("POSTRIDER_BROKER_URL", "")
        .env("CREDENTIALS_DIRECTORY", directory.path().to_str().unwrap());
    let daemon = Daemon::start(options).await.unwrap();
    wait_until_readyz(&daemon, None).await;
    stage.produce(50).await;
    stage.assert_clean().await;
}
