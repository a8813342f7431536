//! The admin port, among clients that are not well.

use postrider_testbed::daemon::Daemon;
use postrider_testbed::wait_until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::lifecycle::wait_until_readyz;
use crate::stage::{DEADLINE, Stage};

/// As many as the admin port takes at a time, and half as many.
const CLIENTS: usize = 96;
/// What the daemon itself may open and close meanwhile, for the database and the broker.
const OTHERS: usize = 16;
const AT_A_TIME: usize = 64;

fn file_descriptors(daemon: &Daemon) -> usize {
    let all = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()));
    all.unwrap().count()
}

/// Hazard: scrapers that vanished without a word, and clients that send nothing, took a file descriptor each for ever; without one neither
/// database nor broker can be reached again.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_say_nothing_are_few_at_a_time_and_do_not_stay() {
    let stage = Stage::new().await;
    let daemon = stage.daemon().await;
    wait_until_readyz(&daemon, None).await;
    let before = file_descriptors(&daemon);
    let mut silent = Vec::new();
    for _ in 0..CLIENTS {
        silent.push(TcpStream::connect(daemon.http_address()).await.unwrap());
    }
    silent[0]
        .write_all(b"GET /metrics HTTP/1.1\r\nhost")
        .await
        .unwrap();
    let mut most = 0;
    wait_until(DEADLINE, "somebody else is answered", async || {
        most = most.max(file_descriptors(&daemon));
        daemon
            .http("/livez")
            .await
            .is_ok_and(|(code, _)| code == 200)
    })
    .await
    .unwrap();
    // It came last: whoever is accepted at all was before it.
    most = most.max(file_descriptors(&daemon));
    assert!(most <= before + AT_A_TIME + OTHERS, "{before} {most}");
    for mut client in silent {
        let closed = timeout(DEADLINE, client.read(&mut [0])).await.unwrap();
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    }
    wait_until(DEADLINE, "the file descriptors are free", async || {
        file_descriptors(&daemon) <= before + OTHERS
    })
    .await
    .unwrap();
}
