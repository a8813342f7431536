//! Running a program as the daemon.

use std::{os::unix::process::ExitStatusExt, time::Duration};

use postrider_testbed::{Daemon, DaemonOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const DEADLINE: Duration = Duration::from_secs(60);

fn shell(script: &str) -> DaemonOptions {
    let mut options = DaemonOptions::new("/bin/sh");
    options.args = vec!["-c".into(), script.into()];
    options
}

#[tokio::test]
async fn log_signals_exit_code_and_memory_of_a_daemon_are_seen() {
    let daemon = Daemon::start(shell(
        "trap 'echo stopping >&2; exit 3' TERM; echo listening on $POSTRIDER_HTTP_LISTEN; while :; do sleep 0.05; done",
    ))
    .await
    .unwrap();
    let line = daemon.wait_for_log("listening on", DEADLINE).await.unwrap();
    assert!(line.ends_with(&daemon.http_addr().to_string()), "{line}");
    // In this order: a program that has just started still grows.
    let resident = daemon.rss_bytes().unwrap();
    assert!(resident > 0);
    assert!(daemon.peak_rss_bytes().unwrap() >= resident);
    assert!(daemon.cpu_seconds().unwrap() >= 0.0);
    assert!(
        daemon
            .wait_for_log("stopping", Duration::from_millis(1))
            .await
            .is_err()
    );
    let lines = daemon.log_lines().len();
    daemon.sigterm().unwrap();
    daemon
        .wait_for_log_after(lines, "stopping", DEADLINE)
        .await
        .unwrap();
    assert_eq!(daemon.wait_exit(DEADLINE).await.unwrap().code(), Some(3));
    assert!(daemon.sigterm().is_err());
}

#[tokio::test]
async fn a_killed_daemon_takes_its_children_along() {
    let daemon = Daemon::start(shell("sleep 600 & echo $!; wait"))
        .await
        .unwrap();
    let child = daemon.wait_for_log("", DEADLINE).await.unwrap();
    daemon.pause().unwrap();
    daemon.resume().unwrap();
    daemon.kill().await.unwrap();
    assert_eq!(daemon.wait_exit(DEADLINE).await.unwrap().signal(), Some(9));
    let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
}

#[tokio::test]
async fn metrics_are_read_over_http() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut options = shell("sleep 600");
    options.http = Some(listener.local_addr().unwrap());
    let daemon = Daemon::start(options).await.unwrap();
    tokio::spawn(async move {
        for backlog in 0.. {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let read = socket.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /metrics "));
            let answer = format!("HTTP/1.0 200 OK\r\n\r\nbacklog{{outbox=\"shop\"}} {backlog}\n");
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let value = daemon
        .wait_for_metric(
            "backlog",
            &[("outbox", "shop")],
            |value| value >= 3.0,
            DEADLINE,
        )
        .await
        .unwrap();
    assert!(value >= 3.0);
    assert_eq!(daemon.metric("backlog", &[("outbox", "other")]).await, None);
}
