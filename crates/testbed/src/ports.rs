//! Free loopback ports for servers that must be told theirs.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, TcpListener},
    sync::Mutex,
};

use anyhow::{Result, bail};
use rand::RngExt;

use crate::test_dir;

/// Below the kernel's ephemeral range: a port of that range may become the source port of anybody's connection
/// while its server is down between a kill and the next start.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port of 127.0.0.1 that nothing listens on, given once per process and not reserved by another test run.
///
/// Another process may still take it before it is used: who starts a server tries again with another port.
///
/// # Errors
/// No free port was found.
pub fn free_port() -> Result<u16> {
    let reserved = test_dir::reserved_ports();
    let mut given = GIVEN.lock().unwrap();
    let given = given.get_or_insert_default();
    for _ in 0..1_000 {
        let port = rand::rng().random_range(RANGE);
        if given.contains(&port) || reserved.contains(&port) {
            continue;
        }
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    bail!("no free port between {} and {}", RANGE.start, RANGE.end)
}
