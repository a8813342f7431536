//! The fault proxy, in front of an echo.

use std::time::Duration;

use postrider_testbed::{Direction, Proxy};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const DEADLINE: Duration = Duration::from_secs(60);

/// Long enough for bytes that are not held back to arrive; too short is a missed fault, never a false alarm.
const SHORTLY: Duration = Duration::from_millis(200);

async fn proxied_echo() -> Proxy {
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = echo.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = echo.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut to) = socket.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    Proxy::start(address).await.unwrap()
}

async fn echoed(socket: &mut TcpStream, text: &[u8]) -> Vec<u8> {
    socket.write_all(text).await.unwrap();
    let mut answer = vec![0; text.len()];
    timeout(DEADLINE, socket.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    answer
}

#[tokio::test]
async fn what_is_cut_is_closed_and_refused_until_it_passes_again() {
    let proxy = proxied_echo().await;
    let mut socket = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(echoed(&mut socket, b"hello").await, b"hello");
    proxy.wait_for_connection(DEADLINE).await.unwrap();
    proxy.cut();
    let ended = timeout(DEADLINE, socket.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
    proxy
        .wait_for_connections(DEADLINE, |count| count == 0)
        .await
        .unwrap();
    postrider_testbed::wait_until(DEADLINE, "refusal", async || {
        TcpStream::connect(proxy.addr()).await.is_err()
    })
    .await
    .unwrap();
    proxy.pass();
    postrider_testbed::wait_until(DEADLINE, "acceptance", async || {
        TcpStream::connect(proxy.addr()).await.is_ok()
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_is_stalled_arrives_later_and_what_is_dropped_never() {
    let proxy = proxied_echo().await;
    let mut socket = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(echoed(&mut socket, b"hello").await, b"hello");
    let mut buffer = [0; 16];

    for direction in [Direction::ToServer, Direction::ToClient, Direction::Both] {
        proxy.stall(direction);
        socket.write_all(b"held").await.unwrap();
        assert!(timeout(SHORTLY, socket.read(&mut buffer)).await.is_err());
        assert_eq!(proxy.connections(), 1);
        proxy.pass();
        timeout(DEADLINE, socket.read_exact(&mut buffer[..4]))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&buffer[..4], b"held");
    }

    proxy.drop_bytes(Direction::ToServer);
    socket.write_all(b"lost").await.unwrap();
    assert!(timeout(SHORTLY, socket.read(&mut buffer)).await.is_err());
    proxy.pass();
    assert_eq!(echoed(&mut socket, b"back").await, b"back");
}

#[tokio::test]
async fn what_is_slowed_takes_its_time() {
    let proxy = proxied_echo().await;
    let mut socket = TcpStream::connect(proxy.addr()).await.unwrap();
    proxy.slow(10_000);
    let start = std::time::Instant::now();
    let text = vec![7; 5_000];
    assert_eq!(echoed(&mut socket, &text).await, text);
    assert!(start.elapsed() >= Duration::from_millis(400));
}
