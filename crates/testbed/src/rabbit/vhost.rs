//! A virtual host for one test.

use anyhow::{Context, Result};
use lapin::{Connection, ConnectionProperties};

/// A virtual host of its own for one test. It goes with its broker.
#[derive(Clone, Debug)]
pub struct TestVhost {
    /// As guest.
    pub url: String,
    /// Its name.
    pub name: String,
    /// The broker's port on 127.0.0.1.
    pub port: u16,
}

impl TestVhost {
    /// A connection as guest.
    ///
    /// # Errors
    /// The broker is not there.
    pub async fn connection(&self) -> Result<Connection> {
        Connection::connect(&self.url, ConnectionProperties::default())
            .await
            .with_context(|| format!("could not connect to {}", self.url))
    }

    /// The URL as another user, by way of another port (a proxy's), or both.
    pub fn url_for(&self, user: &str, password: &str, port: u16) -> String {
        url(user, password, port, &self.name)
    }
}

pub(super) fn url(user: &str, password: &str, port: u16, vhost: &str) -> String {
    let vhost: String = vhost
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02x}"),
        })
        .collect();
    format!("amqp://{user}:{password}@127.0.0.1:{port}/{vhost}")
}
