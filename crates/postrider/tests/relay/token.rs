//! The daemon logs in to the broker by a token, and outlives each of them.

use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use postrider_testbed::daemon::{Daemon, DaemonOptions};
use postrider_testbed::test_dir::TestDir;
use postrider_testbed::{RabbitOptions, RabbitServer, TokenIssuer, wait_until};

use crate::lifecycle::wait_until_readyz;
use crate::stage::{DEADLINE, Stage};

struct Place {
    rabbit: RabbitServer,
    stage: Stage,
    issuer: TokenIssuer,
    directory: TestDir,
}

impl Place {
    async fn new() -> Self {
        let rabbit = RabbitServer::start(RabbitOptions::with_logins_by_token())
            .await
            .unwrap();
        let issuer = TokenIssuer::new().unwrap();
        rabbit.trust(&issuer).await.unwrap();
        Self {
            stage: Stage::on_rabbit(&rabbit).await,
            directory: TestDir::create().unwrap(),
            rabbit,
            issuer,
        }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("token")
    }

    /// Puts a token into the file that is valid until then.
    fn renew(&self, expires: u64) -> String {
        let scope = format!("rabbitmq.write:{}/*/*", self.stage.vhost.name);
        let token = self.issuer.token(&[&scope], expires).unwrap();
        // At once, as those do that renew tokens: half a token is no token.
        let new = self.directory.path().join("new");
        fs::write(&new, format!("{token}\n")).unwrap();
        fs::rename(&new, self.file()).unwrap();
        token
    }

    fn options(&self) -> DaemonOptions {
        let url = format!(
            "amqp://127.0.0.1:{}/{}",
            self.rabbit.port(),
            self.stage.vhost.name
        );
        self.stage
            .options()
            .env("POSTRIDER_BROKER_URL", url)
            .env("POSTRIDER_BROKER_TOKEN_FILE", self.file().to_str().unwrap())
    }
}

/// Waits until the broker, which has the clock of the test, takes this token no longer.
async fn wait_until_expired(expires: u64) {
    wait_until(DEADLINE, "the token has expired", async || {
        unix_now() > expires
    })
    .await
    .unwrap();
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

async fn expiry_shown(daemon: &Daemon, expires: u64) {
    daemon
        .wait_for_metric(
            "postrider_token_expiry_timestamp_seconds",
            &[],
            |shown| shown == expires as f64,
            DEADLINE,
        )
        .await
        .unwrap();
}

/// An hour from now.
fn long() -> u64 {
    unix_now() + 3600
}

async fn wait_until_renewed(daemon: &Daemon, times: usize) {
    let what = format!("{times} tokens are handed over");
    wait_until(DEADLINE, &what, async || {
        daemon.log().matches("token_renewed").count() >= times
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_token_is_handed_to_the_open_connection_which_outlives_the_one_before() {
    let place = Place::new().await;
    let _consumer = place.stage.consumer();
    let first = place.renew(long());
    let daemon = Daemon::start(place.options()).await.unwrap();
    wait_until_readyz(&daemon, None).await;
    place.stage.produce(50).await;
    place.stage.assert_clean().await;

    let short = unix_now() + 40;
    let second = place.renew(short);
    wait_until_renewed(&daemon, 1).await;
    expiry_shown(&daemon, short).await;
    daemon
        .wait_for_log("token_expires", DEADLINE)
        .await
        .unwrap();
    let long = long();
    let third = place.renew(long);
    wait_until_renewed(&daemon, 2).await;
    expiry_shown(&daemon, long).await;

    let shop = place.stage.shop(20.0).await;
    wait_until_expired(short).await;
    // Long enough for the broker to look at the token a few times.
    place.stage.wait_for_more(100).await;
    shop.stop().await.unwrap();
    place.stage.assert_healed(&daemon).await;
    let reconnects = daemon
        .metric("postrider_reconnects_total", &[("peer", "broker")])
        .await;
    assert_eq!(reconnects, Some(0.0));
    let log = daemon.log();
    assert!(!log.contains("broker_lost"), "{log}");
    assert_eq!(log.matches("token_expires").count(), 1, "{log}");
    for secret in [first, second, third] {
        assert!(!log.contains(&secret), "a token is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_an_outage_that_charges_nothing_and_ends_when_the_file_is_renewed() {
    let place = Place::new().await;
    let _consumer = place.stage.consumer();
    place.renew(long());
    let daemon = Daemon::start(place.options()).await.unwrap();
    wait_until_readyz(&daemon, None).await;
    let shop = place.stage.shop(20.0).await;
    place.stage.wait_for_more(20).await;
    let first = place.renew(unix_now() + 20);
    wait_until_renewed(&daemon, 1).await;
    wait_until_readyz(&daemon, Some("broker_away")).await;
    let file = place.file();
    let refused = format!(
        "refused the token in {} ([broker] token_file), which has expired",
        file.display()
    );
    let line = daemon.wait_for_log(&refused, DEADLINE).await.unwrap();
    assert!(line.contains("broker_lost"), "{line}");

    // Neither of these is taken for a token.
    for (garbage, said) in [("", "the file is empty"), ("hunter2", "no JSON Web Token")] {
        fs::write(&file, garbage).unwrap();
        daemon.wait_for_log(said, DEADLINE).await.unwrap();
    }

    let second = place.renew(long());
    wait_until_readyz(&daemon, None).await;
    place.stage.wait_for_more(20).await;
    shop.stop().await.unwrap();
    place.stage.assert_healed(&daemon).await;
    let log = daemon.log();
    for secret in [first.as_str(), second.as_str(), "hunter2"] {
        assert!(!log.contains(secret), "a secret is in the log");
    }
    // Once for each trouble, however often the file was looked at.
    for said in ["the file is empty", "no JSON Web Token"] {
        assert_eq!(log.matches(said).count(), 1, "{log}");
    }
}
