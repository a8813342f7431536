//! One PostgreSQL and one RabbitMQ for a whole test run, a fresh database and virtual host for each test.
//!
//! `with-servers COMMAND...` starts them and names them in the environment, so that all test binaries of `cargo test`
//! use the same two. Without it, each binary starts its own at first use; they die with it (see the crate's
//! documentation), as statics are never dropped.

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;

use crate::{
    postgres::{PostgresOptions, PostgresServer, TestDatabase},
    rabbit::{RabbitOptions, RabbitServer, TestVhost},
};

/// Names the run's PostgreSQL, as JSON.
const POSTGRES_VARIABLE: &str = "TESTBED_POSTGRES";

/// Names the run's RabbitMQ, as JSON.
const RABBIT_VARIABLE: &str = "TESTBED_RABBIT";

// Nothing in the servers depends on the runtime of the test that came first.
static POSTGRES: OnceCell<PostgresServer> = OnceCell::const_new();
static RABBIT: OnceCell<RabbitServer> = OnceCell::const_new();

/// The test run's PostgreSQL.
///
/// # Panics
/// It cannot be started: no test can go on.
pub async fn postgres() -> &'static PostgresServer {
    POSTGRES
        .get_or_try_init(async || match from_environment(POSTGRES_VARIABLE)? {
            Some(address) => Ok(PostgresServer::attach(address)),
            None => PostgresServer::start(PostgresOptions::default()).await,
        })
        .await
        .unwrap_or_else(|error: anyhow::Error| panic!("no shared postgresql: {error:#}"))
}

/// The test run's RabbitMQ.
///
/// # Panics
/// It cannot be started: no test can go on.
pub async fn rabbit() -> &'static RabbitServer {
    RABBIT
        .get_or_try_init(async || match from_environment(RABBIT_VARIABLE)? {
            Some(address) => Ok(RabbitServer::attach(address)),
            None => RabbitServer::start(RabbitOptions::with_logins_by_certificate()).await,
        })
        .await
        .unwrap_or_else(|error: anyhow::Error| panic!("no shared rabbitmq: {error:#}"))
}

/// A fresh database on the test run's PostgreSQL.
///
/// # Panics
/// There is none to be had: no test can go on.
pub async fn database() -> TestDatabase {
    postgres()
        .await
        .create_database()
        .await
        .unwrap_or_else(|error| panic!("no fresh database: {error:#}"))
}

/// A fresh virtual host on the test run's RabbitMQ.
///
/// # Panics
/// There is none to be had: no test can go on.
pub async fn vhost() -> TestVhost {
    rabbit()
        .await
        .create_vhost()
        .await
        .unwrap_or_else(|error| panic!("no fresh virtual host: {error:#}"))
}

/// The environment that makes [`postgres`] and [`rabbit`] of a child process use these servers.
///
/// # Errors
/// None in practice: the addresses are plain data.
pub fn environment(
    postgres: &PostgresServer,
    rabbit: &RabbitServer,
) -> Result<[(&'static str, String); 2]> {
    Ok([
        (
            POSTGRES_VARIABLE,
            serde_json::to_string(postgres.address())?,
        ),
        (RABBIT_VARIABLE, serde_json::to_string(rabbit.address())?),
    ])
}

fn from_environment<T: DeserializeOwned>(variable: &str) -> Result<Option<T>> {
    match std::env::var(variable) {
        Err(_) => Ok(None),
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .with_context(|| format!("{variable} is not what with-servers sets")),
    }
}
