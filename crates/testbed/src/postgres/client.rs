//! A connection that drives itself.

use std::ops::{Deref, DerefMut};

use anyhow::{Context, Result};
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

/// A `tokio_postgres` client together with the task that drives its connection.
#[derive(Debug)]
pub struct Client {
    client: tokio_postgres::Client,
    task: JoinHandle<()>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// The server is not there or refuses.
    pub async fn connect(url: &str) -> Result<Self> {
        let (client, connection) = tokio_postgres::connect(url, NoTls)
            .await
            .with_context(|| format!("could not connect to {url}"))?;
        let task = tokio::spawn(async move {
            // What breaks the connection is the error of the next query as well.
            let _ = connection.await;
        });
        Ok(Self { client, task })
    }
}

impl Deref for Client {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.client
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}
