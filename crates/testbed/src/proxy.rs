//! A TCP proxy that fails on command: closes, stalls, swallows or slows, each direction by itself.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::ports::free_port;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
    /// Either way.
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Forward,
    /// Not read: the sender's buffers fill, nothing is lost, nothing closes.
    Stall,
    /// Read and thrown away.
    Swallow,
    Slow {
        bytes_per_second: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mode {
    to_server: Flow,
    to_client: Flow,
    /// Counts the calls of `cut`: a connection lives in the era it was made in.
    era: u64,
    open: bool,
}

/// A proxy on a free loopback port. Its connections end when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    connections: watch::Receiver<usize>,
    accepted: Arc<AtomicU64>,
    marker: Arc<OnceLock<Vec<u8>>>,
    _task: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Starts a proxy that passes everything to `upstream`.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        // A port that stays ours while `cut` has closed the listener: none of the ephemeral range.
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("could not listen on {address}"))?;
        let (mode, modes) = watch::channel(Mode {
            to_server: Flow::Forward,
            to_client: Flow::Forward,
            era: 0,
            open: true,
        });
        let (count, connections) = watch::channel(0);
        let accepted = Arc::new(AtomicU64::new(0));
        let marker = Arc::new(OnceLock::new());
        let serve = serve(
            listener,
            address,
            upstream,
            modes,
            count,
            Arc::clone(&accepted),
            Arc::clone(&marker),
        );
        Ok(Self {
            address,
            mode,
            connections,
            accepted,
            marker,
            _task: AbortOnDropHandle::new(tokio::spawn(serve)),
        })
    }

    /// [`start`](Self::start) for a server on a port of 127.0.0.1.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn to_port(port: u16) -> Result<Self> {
        Self::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
    }

    /// Where to connect.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The port of [`addr`](Self::addr).
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Accepts and forwards again, at full speed. What a stall held back goes on; what was swallowed is lost.
    pub fn pass(&self) {
        self.mode.send_modify(|mode| {
            mode.to_server = Flow::Forward;
            mode.to_client = Flow::Forward;
            mode.open = true;
        });
    }

    /// Closes all connections now and refuses new ones until [`pass`](Self::pass).
    pub fn cut(&self) {
        self.mode.send_modify(|mode| {
            mode.era += 1;
            mode.open = false;
        });
    }

    /// Closes all connections now; new ones are accepted.
    pub fn reset_connections(&self) {
        self.mode.send_modify(|mode| mode.era += 1);
    }

    /// Stops forwarding a direction; sockets stay open, new connections are accepted and stall alike.
    pub fn stall(&self, direction: Direction) {
        self.set(direction, Flow::Stall);
    }

    /// Swallows what is sent in a direction: the sender thinks it arrived.
    pub fn drop_bytes(&self, direction: Direction) {
        self.set(direction, Flow::Swallow);
    }

    /// Forwards each direction of each connection at this speed.
    pub fn slow(&self, bytes_per_second: u64) {
        self.set(
            Direction::Both,
            Flow::Slow {
                bytes_per_second: bytes_per_second.max(1),
            },
        );
    }

    /// From now on spoils the end of each AMQP frame to the server in which these bytes occur, for which RabbitMQ ends
    /// the connection (501). The frames must not hold the byte 206 after them. Once for each proxy.
    pub fn spoil_frames_with(&self, marker: &[u8]) {
        let _ = self.marker.set(marker.to_vec());
    }

    fn set(&self, direction: Direction, flow: Flow) {
        self.mode.send_modify(|mode| {
            if direction != Direction::ToClient {
                mode.to_server = flow;
            }
            if direction != Direction::ToServer {
                mode.to_client = flow;
            }
        });
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        *self.connections.borrow()
    }

    /// Connections that were accepted since the start.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Waits until at least one connection is open.
    ///
    /// # Errors
    /// None was within `deadline`.
    pub async fn wait_for_connection(&self, deadline: Duration) -> Result<()> {
        self.wait_for_connections(deadline, |count| count > 0).await
    }

    /// Waits until the number of open connections is as wanted.
    ///
    /// # Errors
    /// It was not within `deadline`.
    pub async fn wait_for_connections(
        &self,
        deadline: Duration,
        wanted: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let mut connections = self.connections.clone();
        timeout(deadline, connections.wait_for(|count| wanted(*count)))
            .await
            .map_err(|_| {
                anyhow!(
                    "the proxy's connections (now {}) were not as wanted within {deadline:?}",
                    self.connections()
                )
            })?
            .context("the proxy's task is gone")?;
        Ok(())
    }
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    upstream: SocketAddr,
    mut modes: watch::Receiver<Mode>,
    count: watch::Sender<usize>,
    accepted: Arc<AtomicU64>,
    marker: Arc<OnceLock<Vec<u8>>>,
) {
    let mut listener = Some(listener);
    // Dropped with this task: so end all connections.
    let mut connections = JoinSet::new();
    loop {
        let open = modes.borrow_and_update().open;
        if !open {
            listener = None;
        } else if listener.is_none() {
            match TcpListener::bind(address).await {
                Ok(bound) => listener = Some(bound),
                Err(_) => {
                    sleep(Duration::from_millis(20)).await;
                    continue;
                }
            }
        }
        tokio::select! {
            changed = modes.changed() => if changed.is_err() { return },
            Some(_) = connections.join_next() => {}
            client = accept(listener.as_ref()) => {
                accepted.fetch_add(1, Ordering::Relaxed);
                let era = modes.borrow().era;
                let spoiler = Spoiler::new(Arc::clone(&marker));
                connections.spawn(connect(client, upstream, modes.clone(), era, count.clone(), spoiler));
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    if let Some(listener) = listener {
        loop {
            match listener.accept().await {
                Ok((client, _)) => return client,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }
    std::future::pending().await
}

/// Counts a connection while it lives.
struct Counted(watch::Sender<usize>);

impl Counted {
    fn new(count: watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

async fn connect(
    client: TcpStream,
    upstream: SocketAddr,
    modes: watch::Receiver<Mode>,
    era: u64,
    count: watch::Sender<usize>,
    spoiler: Spoiler,
) {
    let _counted = Counted::new(count);
    let mut cut = modes.clone();
    let forward = async {
        let server = TcpStream::connect(upstream).await?;
        // The proxy shall add no latency of its own.
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::try_join!(
            pump(
                from_client,
                to_server,
                modes.clone(),
                |mode| mode.to_server,
                spoiler
            ),
            pump(
                from_server,
                to_client,
                modes.clone(),
                |mode| mode.to_client,
                Spoiler::default()
            ),
        )
    };
    tokio::select! {
        _ = forward => {}
        _ = cut.wait_for(|mode| mode.era != era) => {}
    }
}

/// Spoils the end of the frames that hold the marker, however the bytes come in pieces.
#[derive(Default)]
struct Spoiler {
    marker: Arc<OnceLock<Vec<u8>>>,
    /// How much of the marker has been seen.
    seen: usize,
    spoil_next_end: bool,
}

impl Spoiler {
    const FRAME_END: u8 = 206;

    fn new(marker: Arc<OnceLock<Vec<u8>>>) -> Self {
        Self {
            marker,
            ..Self::default()
        }
    }

    fn pass(&mut self, bytes: &mut [u8]) {
        let Some(marker) = self.marker.get() else {
            return;
        };
        for byte in bytes {
            if self.spoil_next_end && *byte == Self::FRAME_END {
                *byte = 0;
                self.spoil_next_end = false;
            }
            self.seen = match marker.get(self.seen) {
                Some(next) if next == byte => self.seen + 1,
                _ => usize::from(marker.first() == Some(byte)),
            };
            if self.seen == marker.len() {
                self.seen = 0;
                self.spoil_next_end = true;
            }
        }
    }
}

/// Forwards one direction until its end, which is passed on; ends early with the error of either side.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut modes: watch::Receiver<Mode>,
    flow: impl Fn(&Mode) -> Flow,
    mut spoiler: Spoiler,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let current = flow(&modes.borrow_and_update());
        let limit = match current {
            Flow::Stall => {
                if modes.changed().await.is_err() {
                    return Ok(());
                }
                continue;
            }
            // Twenty pieces a second.
            Flow::Slow { bytes_per_second } => usize::try_from(bytes_per_second / 20)
                .map_or(buffer.len(), |piece| piece.clamp(1, buffer.len())),
            Flow::Forward | Flow::Swallow => buffer.len(),
        };
        let read = tokio::select! {
            // A stall must hold back what comes after it was ordered.
            biased;
            changed = modes.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Ok(()),
            },
            read = from.read(&mut buffer[..limit]) => read?,
        };
        if read == 0 {
            to.shutdown().await?;
            return Ok(());
        }
        if current == Flow::Swallow {
            continue;
        }
        spoiler.pass(&mut buffer[..read]);
        to.write_all(&buffer[..read]).await?;
        if let Flow::Slow { bytes_per_second } = current {
            let pause = Duration::from_secs_f64(read as f64 / bytes_per_second as f64);
            // A change of mode ends the pause.
            let _ = timeout(pause, modes.clone().changed()).await;
        }
    }
}
