//! `health`: asks the relay on this machine whether it is ready.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::cli::Exit;
use crate::config::HttpConfig;

/// Fetches `/readyz` and prints what it says.
///
/// # Errors
/// When nothing answers within `timeout`, or not in HTTP.
pub(crate) fn health(
    config: &HttpConfig,
    timeout: Duration,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let Some(listen) = config.listen else {
        bail!(
            "the admin port is off: set [http] listen (or POSTRIDER_HTTP_LISTEN) to an address, such as 127.0.0.1:7617"
        );
    };
    let address = reachable(listen);
    let fetch = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        write!(
            stream,
            "GET /readyz HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = fetch()
        .with_context(|| format!("no relay answers on {address}: is `postrider run` running?"))?;
    let status = answer.split_whitespace().nth(1).unwrap_or_default();
    let body = answer
        .split_once("\r\n\r\n")
        .map_or("", |(_, body)| body.trim());
    writeln!(out, "{body}")?;
    match status {
        "200" => Ok(Exit::Success),
        "503" => Ok(Exit::Failure),
        _ => bail!("what answers on {address} is no relay"),
    }
}

/// An address that listens on everything is reached through the loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
