//! SIGHUP: what a running daemon takes over, what it refuses, what it names.

use std::fs;

use postrider_testbed::daemon::{Daemon, DaemonOptions};
use postrider_testbed::proxy::Proxy;
use postrider_testbed::wait_until;
use tempfile::TempDir;

use crate::lifecycle::wait_until_readyz;
use crate::stage::{DEADLINE, EXCHANGE, KEY, Stage, insert, rows_of, wait_for_rows};

const SUCCESSFUL: &str = "postrider_config_last_reload_successful";

/// A daemon's configuration file, to be written again while the daemon runs.
pub(crate) struct File(TempDir);

impl File {
    pub(crate) fn with(text: &str) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.write("postrider.toml", text);
        file
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path().join(name), text).unwrap();
    }

    pub(crate) fn remove(&self) {
        fs::remove_file(self.0.path().join("postrider.toml")).unwrap();
    }

    /// `options` with this file.
    pub(crate) fn in_options(&self, options: DaemonOptions) -> DaemonOptions {
        let path = self.0.path().join("postrider.toml");
        options.arg("--config").arg(path.to_str().unwrap())
    }

    /// Writes the file, sends SIGHUP, and waits for the event that the daemon answers with.
    pub(crate) async fn reload(&self, daemon: &Daemon, text: &str, event: &str) -> String {
        self.write("postrider.toml", text);
        hang_up(daemon, event).await
    }
}

async fn hang_up(daemon: &Daemon, event: &str) -> String {
    let before = daemon.log_lines().len();
    daemon.sighup().unwrap();
    daemon
        .wait_for_log_after(before, &format!("event=\"{event}\""), DEADLINE)
        .await
        .unwrap()
}

async fn started(stage: &Stage, file: &File) -> Daemon {
    let daemon = Daemon::start(file.in_options(stage.options()))
        .await
        .unwrap();
    wait_until_readyz(&daemon, None).await;
    daemon
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_what_the_log_leaves_out() {
    let stage = Stage::new().await;
    let file = File::with("[log]\nlevel = \"warn\"\n");
    let daemon = started(&stage, &file).await;
    assert_eq!(daemon.log(), "", "all is well");

    let line = file
        .reload(&daemon, "[log]\nlevel = \"info\"\n", "reloaded")
        .await;
    assert!(line.contains("[log] level"), "{line}");

    let before = daemon.metric(SUCCESS_TIME, &[]).await.unwrap();
    file.write("postrider.toml", "[log]\nlevel = \"error\"\n");
    daemon.sighup().unwrap();
    daemon
        .wait_for_metric(SUCCESS_TIME, &[], |at| at > before, DEADLINE)
        .await
        .unwrap();
    let lines = daemon.log_lines().len();
    insert(&stage.sql().await, EXCHANGE, "nobody.listens", b"x").await;
    let unroutable = [("reason", "unroutable")];
    daemon
        .wait_for_metric(
            "postrider_retries_total",
            &unroutable,
            |n| n >= 1.0,
            DEADLINE,
        )
        .await
        .unwrap();
    daemon.sigterm().unwrap();
    daemon.wait_exit(DEADLINE).await.unwrap();
    assert_eq!(daemon.log_lines().len(), lines, "{}", daemon.log());
}

const SUCCESS_TIME: &str = "postrider_config_last_reload_success_timestamp_seconds";

#[tokio::test(flavor = "multi_thread")]
async fn the_next_failure_is_judged_by_the_policy_that_was_reloaded() {
    let stage = Stage::new().await;
    let patient = "[retry]\nmax_attempts = 20\ninitial_delay = \"1h\"\nmax_delay = \"1h\"\n";
    let file = File::with(patient);
    let daemon = started(&stage, &file).await;
    let client = stage.sql().await;
    insert(&client, EXCHANGE, "nobody.listens", b"1").await;
    wait_for_rows(&client, "deferred", 1).await;

    let strict = patient.replace("20", "1");
    let line = file.reload(&daemon, &strict, "reloaded").await;
    assert!(line.contains("[retry] max_attempts"), "{line}");
    assert!(!line.contains("initial_delay"), "{line}");
    insert(&client, EXCHANGE, "nobody.listens", b"2").await;
    wait_for_rows(&client, "dead_letters", 1).await;
    // What waits goes on waiting for as long as it was told to.
    assert_eq!(rows_of(&client, "deferred").await, 1);

    let accepting = format!("{strict}[exchanges.\"{EXCHANGE}\"]\nunroutable = \"accept\"\n");
    let line = file.reload(&daemon, &accepting, "reloaded").await;
    assert!(
        line.contains("[exchanges.\\\"shop\\\"] unroutable"),
        "{line}"
    );
    insert(&client, EXCHANGE, "nobody.listens", b"3").await;
    stage.wait_until_outbox_holds(0).await;
    assert_eq!(rows_of(&client, "dead_letters").await, 1);
}

/// How many batches there were, and how many of at most two messages.
async fn batches(daemon: &Daemon) -> (f64, f64) {
    let all = daemon
        .metric("postrider_batch_messages_count", &[])
        .await
        .unwrap();
    let small = daemon
        .metric("postrider_batch_messages_bucket", &[("le", "2")])
        .await
        .unwrap();
    (all, small)
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_as_large_as_the_reloaded_configuration_says() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let small = "[relay]\nworkers = 1\nbatch_rows = 2\n";
    let file = File::with(small);
    let daemon = started(&stage, &file).await;
    stage.place_backlog(60, 10).await;
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
    let (all, at_most_two) = batches(&daemon).await;
    assert!(all >= 30.0, "{all}");
    assert_eq!(all, at_most_two);

    let large = small.replace("= 2", "= 100");
    file.reload(&daemon, &large, "reloaded").await;
    stage.place_backlog(300, 10).await;
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
    let (all, at_most_two) = batches(&daemon).await;
    assert!(all > at_most_two, "{all} batches");

    file.reload(&daemon, small, "reloaded").await;
    // One that was under way may have begun before.
    stage.place_backlog(1, 10).await;
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
    let before = batches(&daemon).await;
    stage.place_backlog(60, 10).await;
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
    let after = batches(&daemon).await;
    assert!(after.0 - before.0 >= 30.0);
    assert_eq!(after.0 - before.0, after.1 - before.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_deleted_from_the_reload_on_that_gives_them_a_retention() {
    let stage = Stage::new().await;
    let file = File::with("[retry]\nmax_attempts = 1\n");
    let daemon = started(&stage, &file).await;
    let client = stage.sql().await;
    for payload in [b"old", b"new"] {
        insert(&client, EXCHANGE, "nobody.listens", payload).await;
    }
    wait_for_rows(&client, "dead_letters", 2).await;
    client
        .batch_execute("UPDATE outbox.dead_letters SET given_up_at = now() - interval '2 hours' WHERE payload = 'old'")
        .await
        .unwrap();
    let retention = "[retry]\nmax_attempts = 1\n[dead_letters]\nretention = \"1h\"\n";
    file.reload(&daemon, retention, "reloaded").await;
    wait_for_rows(&client, "dead_letters", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_not_valid_is_refused_as_a_whole_and_the_one_before_stays() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let right = "[retry]\nmax_attempts = 1\n";
    let file = File::with(right);
    let daemon = started(&stage, &file).await;
    assert_eq!(daemon.metric(SUCCESSFUL, &[]).await, Some(1.0));

    let wrong = "[retry]\nmax_attempts = 7\n[relay]\nbatch_rows = 0\nworker = 3\n";
    let line = file.reload(&daemon, wrong, "reload_failed").await;
    for part in [
        "postrider.toml:4",
        "batch_rows",
        "postrider.toml:5",
        "did you mean `workers`?",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert_eq!(daemon.metric(SUCCESSFUL, &[]).await, Some(0.0));
    stage.produce(50).await;
    stage.assert_clean().await;
    // Of the refused one nothing was taken over, not even what is right in it.
    let client = stage.sql().await;
    insert(&client, EXCHANGE, "nobody.listens", b"x").await;
    wait_for_rows(&client, "dead_letters", 1).await;

    file.reload(&daemon, "no toml", "reload_failed").await;
    file.remove();
    let line = hang_up(&daemon, "reload_failed").await;
    assert!(line.contains("cannot be read"), "{line}");
    wait_until_readyz(&daemon, None).await;

    let line = file.reload(&daemon, right, "reloaded").await;
    assert!(line.contains("changed=\"\""), "{line}");
    assert_eq!(daemon.metric(SUCCESSFUL, &[]).await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_restart_is_named_at_every_reload_and_the_rest_is_taken_over() {
    const SECRET: &str = "canary-71c2";
    let stage = Stage::new().await;
    let url = |password: &str| {
        format!(
            "postgres://postgres:{password}@127.0.0.1:{}/{}",
            stage.database.port, stage.database.name
        )
    };
    let base = "[database]\nurl_file = \"url\"\n";
    let file = File::with(base);
    file.write("url", &url("before"));
    let options = stage.options().env("POSTRIDER_DATABASE_URL", "");
    let daemon = Daemon::start(file.in_options(options)).await.unwrap();
    wait_until_readyz(&daemon, None).await;

    file.write("url", &url(SECRET));
    let other = format!(
        "{base}application_name = \"other\"\n[relay]\nworkers = 3\nbatch_rows = 7\n[metrics]\nmax_exchanges = 7\n"
    );
    for round in 0..2 {
        let line = file.reload(&daemon, &other, "reload_needs_restart").await;
        for key in [
            "[database] url",
            "[database] application_name",
            "[relay] workers",
            "[metrics] max_exchanges",
        ] {
            assert!(line.contains(key), "{key} is not in {line}");
        }
        assert!(!line.contains("batch_rows"), "{line}");
        let log = daemon.log();
        let reloaded: Vec<_> = log
            .lines()
            .filter(|line| line.contains("event=\"reloaded\""))
            .collect();
        assert_eq!(reloaded.len(), round + 1);
        assert_eq!(reloaded[round].contains("[relay] batch_rows"), round == 0);
    }
    assert_eq!(daemon.metric(SUCCESSFUL, &[]).await, Some(1.0));

    file.write("url", &url("before"));
    let lines = daemon.log_lines().len();
    file.reload(&daemon, base, "reloaded").await;
    file.reload(&daemon, base, "reloaded").await;
    let log = daemon.log_lines().split_off(lines).join("\n");
    assert!(!log.contains("reload_needs_restart"), "{log}");
    assert!(!daemon.log().contains(SECRET), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_while_both_peers_are_away_is_in_force_when_they_are_back_and_costs_no_message_an_attempt()
 {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let broker = Proxy::to_port(stage.vhost.port).await.unwrap();
    let database = Proxy::to_port(stage.database.port).await.unwrap();
    broker.cut();
    database.cut();
    let file = File::with("[relay]\nbatch_rows = 100\n");
    let options = stage
        .options()
        .env(
            "POSTRIDER_DATABASE_URL",
            stage.database.url_for("postgres", database.port()),
        )
        .env(
            "POSTRIDER_BROKER_URL",
            stage.vhost.url_for("guest", "guest", broker.port()),
        );
    let daemon = Daemon::start(file.in_options(options)).await.unwrap();
    for peer in ["database_lost", "broker_lost"] {
        daemon.wait_for_log(peer, DEADLINE).await.unwrap();
    }
    // Before the relay has ever begun.
    file.reload(&daemon, "[relay]\nbatch_rows = 50\n", "reloaded")
        .await;
    broker.pass();
    database.pass();
    wait_until_readyz(&daemon, None).await;

    broker.cut();
    wait_until_readyz(&daemon, Some("broker_away")).await;
    stage.place_backlog(200, 10).await;
    file.reload(&daemon, "[relay]\nbatch_rows = 2\n", "reloaded")
        .await;
    broker.pass();
    stage.assert_healed(&daemon).await;
    let (all, at_most_two) = batches(&daemon).await;
    assert_eq!(all, at_most_two);
    assert!(all >= 100.0, "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_reloads_under_load_lose_and_repeat_nothing() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let file = File::with("");
    let daemon = started(&stage, &file).await;
    let producer = stage.busy_shop().await;
    stage.wait_for_more(200).await;
    for round in 0..100 {
        let text = match round % 4 {
            0 => "[relay]\nbatch_rows = 3\npoll_interval = \"10ms\"\n",
            1 => "[relay]\nbatch_bytes = 100\n[wakeup]\nquiet_above = 1\n",
            2 => "[relay]\nbatch_rows = 0\n",
            _ => "[retry]\nmax_attempts = 2\n[metrics]\nsample_interval = \"1min\"\n",
        };
        file.write("postrider.toml", text);
        daemon.sighup().unwrap();
        stage.wait_for_more(5).await;
    }
    for _ in 0..100 {
        daemon.sighup().unwrap();
    }
    file.reload(&daemon, "[log]\nlevel = \"info\"\n", "reloaded")
        .await;
    stage.wait_for_more(200).await;
    producer.stop().await.unwrap();
    stage.assert_healed(&daemon).await;
    let report = stage.audit.report();
    assert_eq!(report.duplicates, 0, "{report}");
    for event in ["reloaded", "reload_failed"] {
        let what = format!("the log has {event}");
        wait_until(DEADLINE, &what, async || daemon.log().contains(event))
            .await
            .unwrap();
    }
    insert(&stage.sql().await, EXCHANGE, KEY, b"after").await;
    stage.wait_until_outbox_holds(0).await;
}
