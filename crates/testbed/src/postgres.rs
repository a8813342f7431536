//! A private PostgreSQL server.

mod client;
mod database;
mod lifecycle;
mod programs;
mod tls;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    place::{Place, User, is_root},
    ports::free_port,
    process::run,
    server_process::ServerProcess,
    test_dir::TestDir,
    tls::Identity,
};
use programs::find_programs;

pub use client::Client;
pub use database::TestDatabase;

/// How long a start may take; recovery after a crash under load is part of it.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// What differs from the defaults.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// Lines for `postgresql.conf`; they win over the testbed's own.
    pub config: Vec<String>,
    /// Lines for `pg_hba.conf`; they come before initdb's, which trust everybody.
    pub access: Vec<String>,
    /// What the server shows by TLS, and the authority, in PEM, that it trusts to sign client certificates. Without
    /// it there is no TLS; with it, plain text goes on to be possible where `access` does not refuse it.
    pub tls: Option<(Identity, String)>,
}

/// How to stop: the names are `pg_ctl`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Wait for clients to leave.
    Smart,
    /// Disconnect clients and write a checkpoint.
    Fast,
    /// Stop without a checkpoint: the next start recovers from the log.
    Immediate,
}

/// What another process needs to use a server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PostgresAddress {
    port: u16,
    dir: PathBuf,
}

/// A private PostgreSQL server on a free loopback port. `fsync` is on: what it says is committed survives
/// [`kill`](Self::kill). Dropping it kills it and removes its directory.
#[derive(Debug)]
pub struct PostgresServer {
    address: PostgresAddress,
    own: Option<Own>,
}

/// The part of a server that only the process that started it has.
#[derive(Debug)]
struct Own {
    place: Place,
    programs: PathBuf,
    user: Option<User>,
    // Before `dir`, so that it is dropped before the directory is removed.
    server: ServerProcess,
    dir: TestDir,
}

impl PostgresServer {
    /// Starts a server and waits until it accepts connections. The programs are those of [`Place::from_environment`].
    ///
    /// # Errors
    /// No PostgreSQL is installed, or it does not start: the error holds the end of its log.
    pub async fn start(options: PostgresOptions) -> Result<Self> {
        Self::start_in(Place::from_environment()?, options).await
    }

    /// [`start`](Self::start) with programs of a given place.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_in(place: Place, options: PostgresOptions) -> Result<Self> {
        let programs = find_programs(&place)?;
        let user = if is_root() {
            Some(place.user(&["postgres", "nobody"])?)
        } else {
            None
        };
        let dir = TestDir::create()?;
        for name in ["data", "socket"] {
            let path = dir.path().join(name);
            fs::create_dir(&path)?;
            if let Some(user) = user {
                std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid))?;
            }
        }
        let mut server = Self {
            address: PostgresAddress {
                port: 0,
                dir: dir.path().to_owned(),
            },
            own: Some(Own {
                place,
                programs,
                user,
                server: ServerProcess::new("postgresql"),
                dir,
            }),
        };
        server.initialise().await?;
        server.allow(&options.access)?;
        // The port was free a moment ago; another may have been quicker.
        for attempt in 1.. {
            let port = free_port()?;
            server.address.port = port;
            server.own()?.dir.reserve_port(port)?;
            server.configure(&options)?;
            match server.start_again().await {
                Ok(()) => break,
                Err(_) if attempt < 5 && server.log().contains("could not bind") => {
                    fs::write(server.log_file(), "")?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(server)
    }

    /// The server that another process started and described by [`PostgresServer::address`].
    pub(crate) fn attach(address: PostgresAddress) -> Self {
        Self { address, own: None }
    }

    pub(crate) fn address(&self) -> &PostgresAddress {
        &self.address
    }

    async fn initialise(&self) -> Result<()> {
        let own = self.own()?;
        let mut command =
            own.place
                .command(&own.programs.join("initdb"), own.user, self.directory());
        command
            .args(["--username=postgres", "--auth=trust", "--no-sync"])
            .args(["--encoding=UTF8", "--locale=C", "-D"])
            .arg(self.data_dir());
        let (status, output) = run(
            command,
            &self.directory().join("initdb.log"),
            START_DEADLINE,
        )
        .await?;
        ensure!(status, "initdb failed:\n{output}");
        Ok(())
    }

    fn configure(&self, options: &PostgresOptions) -> Result<()> {
        let mut text = format!(
            "listen_addresses = '127.0.0.1'\n\
             port = {}\n\
             unix_socket_directories = '{}'\n\
             max_connections = 200\n\
             fsync = on\n\
             log_line_prefix = '%m [%p] %a '\n\
             # In the data directory, not in /dev/shm, where a killed server would leave them.\n\
             dynamic_shared_memory_type = mmap\n",
            self.address.port,
            self.directory().join("socket").display(),
        );
        if let Some((identity, authority)) = &options.tls {
            text.push_str(&self.set_up_tls(identity, authority)?);
        }
        for line in &options.config {
            text.push_str(line);
            text.push('\n');
        }
        let data = self.data_dir();
        fs::write(data.join("testbed.conf"), text)?;
        // Readable by the server's own user as it stands: 0644.
        let main = data.join("postgresql.conf");
        let include = "include 'testbed.conf'\n";
        let mut config = fs::read_to_string(&main)?;
        if !config.ends_with(include) {
            config.push_str(include);
            fs::write(&main, config)?;
        }
        Ok(())
    }

    /// The URL of a database of this server, as its superuser.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgresql://postgres@127.0.0.1:{}/{database}",
            self.address.port
        )
    }

    /// The port on 127.0.0.1; the same after every restart.
    pub fn port(&self) -> u16 {
        self.address.port
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.directory().join("data")
    }

    /// What the server has logged since its first start.
    pub fn log(&self) -> String {
        fs::read(self.log_file())
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// A connection to a database, as superuser.
    ///
    /// # Errors
    /// The server or the database is not there.
    pub async fn client(&self, database: &str) -> Result<Client> {
        Client::connect(&self.url(database)).await
    }

    /// A new empty database with a unique name.
    ///
    /// # Errors
    /// The server is not there.
    pub async fn create_database(&self) -> Result<TestDatabase> {
        let name = format!("test_{}", uuid::Uuid::now_v7().simple());
        let client = self.client("postgres").await?;
        client
            // Not template1: a second connection to it would refuse the copy.
            .batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0"))
            .await
            .with_context(|| format!("could not create database {name}"))?;
        Ok(TestDatabase {
            url: self.url(&name),
            name,
            port: self.port(),
        })
    }

    /// Ends the sessions whose `application_name` is LIKE `pattern`, and says how many they were.
    ///
    /// # Errors
    /// The server is not there.
    pub async fn terminate_backends(&self, pattern: &str) -> Result<u64> {
        let client = self.client("postgres").await?;
        let rows = client
            .query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE application_name LIKE $1 AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
                &[&pattern],
            )
            .await
            .context("could not terminate sessions")?;
        Ok(rows.len() as u64)
    }

    fn own(&self) -> Result<&Own> {
        self.own.as_ref().ok_or_else(|| {
            anyhow!(
                "the shared postgresql belongs to the whole test run: \
                 a test that stops or hurts a server starts one of its own (PostgresServer::start)"
            )
        })
    }

    fn directory(&self) -> &Path {
        &self.address.dir
    }

    fn log_file(&self) -> PathBuf {
        self.directory().join("postgres.log")
    }
}
