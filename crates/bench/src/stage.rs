//! The servers of a run, the databases of its daemons, and the look at what they use.

use std::{
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use postrider_testbed::{
    Client, PostgresOptions, PostgresServer, RabbitOptions, RabbitServer, TestDatabase, TestVhost,
};
use serde::Serialize;

use crate::{
    cpu::{self, CpuTimes},
    daemon,
    report::Setup,
};

/// What every message says it is.
pub(crate) const CONTENT_TYPE: &str = "application/octet-stream";

/// How long the servers may take to come to rest.
const QUIET_DEADLINE: Duration = Duration::from_secs(60);

/// For how long they must have been at rest.
const QUIET_FOR: Duration = Duration::from_millis(500);

/// At rest is what uses less than this much of one core.
const QUIET_CORES: f64 = 0.15;

/// A setting of the daemon, as a variable of its environment.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl FromStr for Setting {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, value) = text
            .split_once('=')
            .context("a setting is written POSTRIDER_NAME=VALUE")?;
        ensure!(
            name.starts_with("POSTRIDER_"),
            "the name of a setting starts with POSTRIDER_"
        );
        Ok(Self {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// A daemon's program and the database that it has migrated.
#[derive(Debug)]
pub(crate) struct Installation {
    pub(crate) binary: PathBuf,
    pub(crate) database: TestDatabase,
}

/// Inserts messages for a queue, with the default exchange, in one statement.
///
/// # Errors
/// PostgreSQL refuses.
pub(crate) async fn insert(
    client: &Client,
    queue: &str,
    payload: &[u8],
    messages: u32,
) -> Result<()> {
    client
        .execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload, content_type) \
             SELECT '', $1, $2, $3 FROM generate_series(1, $4::bigint)",
            &[&queue, &payload, &CONTENT_TYPE, &i64::from(messages)],
        )
        .await
        .with_context(|| format!("could not insert {messages} messages"))?;
    Ok(())
}

/// Private servers with a virtual host, and the daemon's program.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) vhost: TestVhost,
    /// For declaring and counting, not for messages.
    pub(crate) control: lapin::Connection,
    pub(crate) binary: PathBuf,
    pub(crate) settings: Vec<Setting>,
    postgres: PostgresServer,
    rabbit: RabbitServer,
    postgres_pid: i32,
    rabbit_pid: i32,
    busy_cores_before: f64,
}

impl Stage {
    pub(crate) async fn set_up(binary: PathBuf, settings: Vec<Setting>) -> Result<Self> {
        let busy_cores_before = cpu::busy_cores().await?;
        let (postgres, rabbit) = tokio::try_join!(
            PostgresServer::start(PostgresOptions::default()),
            RabbitServer::start(RabbitOptions::default())
        )?;
        let vhost = rabbit.create_vhost().await?;
        let control = vhost.connection().await?;
        let stage = Self {
            postgres_pid: postmaster(&postgres)?,
            rabbit_pid: beam(&rabbit).await?,
            vhost,
            control,
            binary,
            settings,
            postgres,
            rabbit,
            busy_cores_before,
        };
        cpu::ensure_is(stage.postgres_pid, "postgres")?;
        cpu::ensure_is(stage.rabbit_pid, "beam.smp")?;
        Ok(stage)
    }

    /// A new database, migrated by `binary`.
    ///
    /// # Errors
    /// It cannot be made, or `postrider migrate` fails.
    pub(crate) async fn install(&self, binary: &Path) -> Result<Installation> {
        let installation = Installation {
            binary: binary.to_owned(),
            database: self.postgres.create_database().await?,
        };
        daemon::migrate(self, &installation).await?;
        Ok(installation)
    }

    /// Drops the database: what autovacuum would do to it later is at the expense of the next measurement.
    ///
    /// # Errors
    /// PostgreSQL refuses.
    pub(crate) async fn remove(&self, installation: Installation) -> Result<()> {
        let name = installation.database.name;
        let client = self.postgres.client("postgres").await?;
        client
            // A session that has just been ended may still be there.
            .batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)"))
            .await
            .with_context(|| format!("could not drop database {name}"))
    }

    /// What the figures of this run belong to.
    pub(crate) async fn describe(&self) -> Result<Setup> {
        let client = self.postgres.client("postgres").await?;
        let postgresql: String = client
            .query_one("SELECT current_setting('server_version')", &[])
            .await
            .context("could not ask postgresql for its version")?
            .get(0);
        Ok(Setup {
            daemon: version_of(&self.binary)?,
            daemon_settings: self.settings.clone(),
            debug_build: cfg!(debug_assertions),
            postgresql,
            rabbitmq: unquoted(&self.rabbit.eval("rabbit_misc:version().").await?),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: processor(),
            busy_cores_before: self.busy_cores_before,
            measured_at_unix_seconds: now_in_seconds(),
        })
    }

    /// Seconds of CPU time that the servers have used so far, beside the publisher's.
    pub(crate) fn cpu(&self, publisher: f64) -> Result<CpuTimes> {
        Ok(CpuTimes {
            publisher,
            postgres: cpu::of_tree(self.postgres_pid)?,
            broker: cpu::of_tree(self.rabbit_pid)?,
        })
    }

    /// The load generator that belongs to the server.
    ///
    /// # Errors
    /// There is none: it is part of PostgreSQL, but some distributions have a package of its own for it.
    pub(crate) fn pgbench(&self) -> Result<PathBuf> {
        let server = std::fs::read_link(format!("/proc/{}/exe", self.postgres_pid))
            .context("could not find out which program the server is")?;
        let beside = server.with_file_name("pgbench");
        let searched = std::env::var_os("PATH").unwrap_or_default();
        // A server in another root directory has its programs where they do not run: one of this machine's does.
        std::iter::once(beside.clone())
            .chain(std::env::split_paths(&searched).map(|dir| dir.join("pgbench")))
            .find(|program| program.is_file())
            .with_context(|| {
                format!(
                    "there is no pgbench, neither at {} nor in PATH: install the one of this PostgreSQL",
                    beside.display()
                )
            })
    }

    /// Waits until both servers have nothing left to do of what came before.
    ///
    /// # Errors
    /// One is still at work after a minute: a measurement would be of something else as well.
    pub(crate) async fn wait_until_quiet(&self) -> Result<()> {
        ensure!(
            self.come_to_rest(QUIET_DEADLINE).await?,
            "the servers did not come to rest within {QUIET_DEADLINE:?}"
        );
        Ok(())
    }

    /// As [`wait_until_quiet`](Self::wait_until_quiet), but not for ever: whether they did. For what keeps a server
    /// busy itself, which then belongs to what is measured.
    ///
    /// # Errors
    /// A server is gone.
    pub(crate) async fn come_to_rest(&self, at_most: Duration) -> Result<bool> {
        let end = tokio::time::Instant::now() + at_most;
        loop {
            let before = cpu::of_tree(self.postgres_pid)? + cpu::of_tree(self.rabbit_pid)?;
            tokio::time::sleep(QUIET_FOR).await;
            let after = cpu::of_tree(self.postgres_pid)? + cpu::of_tree(self.rabbit_pid)?;
            if after - before < QUIET_CORES * QUIET_FOR.as_secs_f64() {
                return Ok(true);
            }
            if tokio::time::Instant::now() >= end {
                return Ok(false);
            }
        }
    }
}

/// What a daemon's program says of itself.
///
/// # Errors
/// It cannot be run.
pub(crate) fn version_of(binary: &Path) -> Result<String> {
    let version = Command::new(binary)
        .arg("--version")
        .output()
        .with_context(|| format!("could not run {}", binary.display()))?;
    Ok(String::from_utf8_lossy(&version.stdout).trim().to_owned())
}

/// The time of day in whole seconds, as AMQP's timestamp has it.
pub(crate) fn now_in_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn postmaster(postgres: &PostgresServer) -> Result<i32> {
    let file = postgres.data_dir().join("postmaster.pid");
    std::fs::read_to_string(&file)
        .with_context(|| format!("could not read {}", file.display()))?
        .lines()
        .next()
        .and_then(|line| line.trim().parse().ok())
        .context("postmaster.pid has no process id")
}

async fn beam(rabbit: &RabbitServer) -> Result<i32> {
    unquoted(&rabbit.eval("os:getpid().").await?)
        .parse()
        .context("the broker's process id is no number")
}

/// An Erlang string without its quotes.
fn unquoted(erlang: &str) -> String {
    erlang.trim_matches('"').to_owned()
}

fn processor() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}
