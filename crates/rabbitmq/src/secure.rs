//! TLS over a connected socket.
//!
//! The handshake is over before the AMQP library and its thread get the stream, so a handshake given up on leaves
//! nothing behind. What ends the socket ends the TLS on it.

use std::io;

use async_compat::Compat;
use futures_rustls::TlsConnector;
use futures_rustls::client::TlsStream;
use lapin::AsyncTcpStream;
use postrider_tls::Tls;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// The stream that the library reads and writes; plain text passes through nothing that is not there for it.
pub(crate) type Stream = AsyncTcpStream<Compat<TcpStream>>;

/// Makes the handshake, with the certificates as they are now. The caller bounds the time.
pub(crate) async fn secure(tls: &Tls, host: &str, stream: TcpStream) -> io::Result<Stream> {
    Ok(AsyncTcpStream::Rustls(handshake(tls, host, stream).await?))
}

/// What a broker says that hangs up after the client's handshake, as one does by TLS 1.3 that refuses the client's
/// certificate: its word is lost where the client writes before it reads. So here the client listens. Where the
/// broker has nothing against the client this waits for as long as the broker waits; the caller bounds it.
pub(crate) async fn last_word(tls: &Tls, host: &str, stream: TcpStream) -> io::Result<()> {
    let mut stream = Compat::new(handshake(tls, host, stream).await?);
    stream.read_u8().await.map(|_| ())
}

async fn handshake(
    tls: &Tls,
    host: &str,
    stream: TcpStream,
) -> io::Result<TlsStream<Compat<TcpStream>>> {
    let name = tls
        .server_name(host)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let connector = TlsConnector::from(tls.current().await);
    connector.connect(name, Compat::new(stream)).await
}
