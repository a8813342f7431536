//! A database for one test.

use anyhow::Result;

use super::Client;

/// An empty database of its own for one test. It goes with its server.
#[derive(Clone, Debug)]
pub struct TestDatabase {
    /// As superuser.
    pub url: String,
    /// Its name.
    pub name: String,
    /// The server's port on 127.0.0.1.
    pub port: u16,
}

impl TestDatabase {
    /// A connection as superuser.
    ///
    /// # Errors
    /// The server is not there.
    pub async fn client(&self) -> Result<Client> {
        Client::connect(&self.url).await
    }

    /// The URL as another role, by way of another port (a proxy's), or both.
    pub fn url_for(&self, user: &str, port: u16) -> String {
        format!("postgresql://{user}@127.0.0.1:{port}/{}", self.name)
    }
}
