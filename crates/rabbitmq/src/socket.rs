//! A TCP connection that can always be ended, whatever the AMQP library is doing with it.
//!
//! The library reads and writes on a thread of its own that ends only when the socket does: after a
//! handshake given up on, or while the broker blocks the connection, dropping the library's handle
//! leaves thread and socket behind, and what was queued is sent later. So the socket is ours, and a
//! second handle to it is kept that shuts it down.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;

use tokio::net::TcpStream;

/// Shuts the connection down when it is dropped, at the latest.
pub(crate) struct Socket(std::net::TcpStream);

impl Socket {
    /// Ends the connection in both directions, at once; harmless when it has ended already.
    pub(crate) fn shut_down(&self) {
        if let Err(error) = self.0.shutdown(Shutdown::Both) {
            // Ended already: what was wanted.
            tracing::trace!(%error, "socket was not connected any more");
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Connects and returns the stream with the handle that ends it. The caller bounds the time.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<(TcpStream, Socket)> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let handle = stream.as_fd().try_clone_to_owned()?;
    Ok((stream, Socket(handle.into())))
}
