//! A private PostgreSQL server.

use std::{
    fs::{self, File},
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::{task::JoinHandle, time::Instant};
use tokio_postgres::NoTls;

use crate::{
    place::{Place, User, is_root},
    ports::free_port,
    process::Process,
    test_dir::TestDir,
};

/// How long a start may take; recovery after a crash under load is part of it.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// How long a stop may take.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// What differs from the defaults.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// Lines for `postgresql.conf`; they win over the testbed's own.
    pub config: Vec<String>,
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
    process: Mutex<Option<Process>>,
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
                process: Mutex::new(None),
                dir,
            }),
        };
        server.initialise().await?;
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
        let (status, output) = run(command, &self.directory().join("initdb.log")).await?;
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

    /// Whether the server's process is there; a paused one is.
    pub fn is_running(&self) -> bool {
        match &self.own {
            Some(own) => own
                .process
                .lock()
                .unwrap()
                .as_ref()
                .is_some_and(Process::is_alive),
            None => std::net::TcpStream::connect(("127.0.0.1", self.port())).is_ok(),
        }
    }

    /// Stops the server and waits for its end.
    ///
    /// # Errors
    /// It does not run, does not end within a minute, or belongs to another process.
    pub async fn stop(&self, mode: StopMode) -> Result<()> {
        let process = self.take_process()?;
        process.signal(match mode {
            StopMode::Smart => Signal::TERM,
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        })?;
        process
            .wait_exit(STOP_DEADLINE)
            .await
            .with_context(|| format!("postgresql did not stop ({mode:?})"))?;
        Ok(())
    }

    /// Starts a stopped or killed server on the same data and port, and waits until it accepts connections.
    ///
    /// # Errors
    /// It runs already, does not come up, or belongs to another process.
    pub async fn start_again(&self) -> Result<()> {
        let own = self.own()?;
        ensure!(!self.is_running(), "postgresql runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        let mut command =
            own.place
                .command(&own.programs.join("postgres"), own.user, self.directory());
        command
            .arg("-D")
            .arg(self.data_dir())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let process = Process::start(command)?;
        own.dir.record_process(process.pid())?;
        *own.process.lock().unwrap() = Some(process);
        self.wait_until_ready().await
    }

    /// [`stop`](Self::stop) and [`start_again`](Self::start_again).
    ///
    /// # Errors
    /// Those of the two.
    pub async fn restart(&self, mode: StopMode) -> Result<()> {
        self.stop(mode).await?;
        self.start_again().await
    }

    /// Restarts the server as a standby of nobody: it answers, and takes no writes until
    /// [`promote`](Self::promote), as what is left of a primary whose failover is not finished.
    ///
    /// # Errors
    /// Those of [`restart`](Self::restart).
    pub async fn restart_as_standby(&self) -> Result<()> {
        self.stop(StopMode::Fast).await?;
        fs::write(self.data_dir().join("standby.signal"), "")?;
        self.start_again().await
    }

    /// Makes a standby take writes, and returns when it does.
    ///
    /// # Errors
    /// The server is not there, or no standby.
    pub async fn promote(&self) -> Result<()> {
        let client = self.client("postgres").await?;
        let promoted = client.query_one("SELECT pg_promote(true, 120)", &[]).await;
        ensure!(
            promoted.context("could not promote")?.get::<_, bool>(0),
            "the server was not promoted within two minutes"
        );
        Ok(())
    }

    /// Kills the postmaster and all of its children with SIGKILL: a crash of the whole server.
    ///
    /// # Errors
    /// It does not run, or belongs to another process.
    pub async fn kill(&self) -> Result<()> {
        self.take_process()?.kill().await
    }

    /// Stops all of its processes with SIGSTOP: connections stay open and nothing answers.
    ///
    /// # Errors
    /// It does not run, or belongs to another process.
    pub async fn pause(&self) -> Result<()> {
        self.with_process(Process::pause)
    }

    /// Undoes [`pause`](Self::pause).
    ///
    /// # Errors
    /// It does not run, or belongs to another process.
    pub async fn resume(&self) -> Result<()> {
        self.with_process(Process::resume)
    }

    async fn wait_until_ready(&self) -> Result<()> {
        let end = Instant::now() + START_DEADLINE;
        loop {
            let attempt =
                tokio::time::timeout(Duration::from_secs(5), self.client("postgres")).await;
            if let Ok(Ok(_)) = attempt
                && self.is_running()
            {
                return Ok(());
            }
            if !self.is_running() {
                self.own()?.process.lock().unwrap().take();
                bail!("postgresql ended at its start:\n{}", tail(&self.log()));
            }
            if Instant::now() >= end {
                bail!(
                    "postgresql did not accept connections within {START_DEADLINE:?}:\n{}",
                    tail(&self.log())
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// An error, unless this process may hurt the server.
    pub(crate) fn ensure_own(&self) -> Result<()> {
        self.own().map(|_| ())
    }

    fn own(&self) -> Result<&Own> {
        self.own.as_ref().ok_or_else(|| {
            anyhow!(
                "the shared postgresql belongs to the whole test run: \
                 a test that stops or hurts a server starts one of its own (PostgresServer::start)"
            )
        })
    }

    fn take_process(&self) -> Result<Process> {
        let process = self.own()?.process.lock().unwrap().take();
        process
            .filter(Process::is_alive)
            .context("postgresql does not run")
    }

    fn with_process(&self, action: impl FnOnce(&Process) -> Result<()>) -> Result<()> {
        let process = self.own()?.process.lock().unwrap();
        action(process.as_ref().context("postgresql does not run")?)
    }

    fn directory(&self) -> &Path {
        &self.address.dir
    }

    fn log_file(&self) -> PathBuf {
        self.directory().join("postgres.log")
    }
}

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

/// The directory of `initdb` and `postgres`, as the place sees it.
fn find_programs(place: &Place) -> Result<PathBuf> {
    let mut candidates = Vec::new();
    if *place == Place::Machine {
        candidates.extend(
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .collect::<Vec<_>>(),
        );
        if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
            candidates.push(PathBuf::from(
                String::from_utf8_lossy(&output.stdout).trim(),
            ));
        }
    }
    candidates.extend(
        place
            .versions("/usr/lib/postgresql", "")
            .into_iter()
            .map(|version| version.join("bin")),
    );
    candidates
        .into_iter()
        .find(|dir| {
            ["initdb", "postgres"]
                .iter()
                .all(|program| place.outside(&dir.join(program)).exists())
        })
        .with_context(|| {
            format!("no postgresql server found in {place:?}: install the package postgresql")
        })
}

/// Runs a command to its end; its success and what it printed.
pub(crate) async fn run(mut command: Command, log: &Path) -> Result<(bool, String)> {
    let file = File::create(log)?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let process = Process::start(command)?;
    let status = process.wait_exit(START_DEADLINE).await?;
    let output = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    Ok((status.success(), output))
}

/// The last lines of a log, for an error.
pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
