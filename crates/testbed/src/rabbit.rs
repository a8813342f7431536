//! A private RabbitMQ broker.

mod eval;
mod faults;
mod lifecycle;
mod programs;
mod tls;
mod tokens;
mod users;
mod vhost;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    place::Place, ports::free_port, process::run, server_process::ServerProcess, test_dir::TestDir,
};
use programs::find_programs;
use vhost::url;

pub use tls::ClientCertificates;
pub use tokens::TokenIssuer;
pub use vhost::TestVhost;

/// How long `rabbitmqctl` may take on a busy machine.
const CTL_DEADLINE: Duration = Duration::from_secs(120);

/// The share of memory that is allowed by default.
const MEMORY_WATERMARK: &str = "0.6";

const EVAL_SERVER: &str = include_str!("eval.erl");

/// What differs from the defaults.
#[derive(Clone, Debug, Default)]
pub struct RabbitOptions {
    /// Lines for `rabbitmq.conf`; they win over the testbed's own.
    pub config: Vec<String>,
    /// Plugins to enable, such as `rabbitmq_management`. None by default.
    pub plugins: Vec<String>,
}

/// What another process needs to use a broker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RabbitAddress {
    place: Place,
    programs: PathBuf,
    port: u16,
    distribution_port: u16,
    epmd_port: u16,
    node: String,
    dir: PathBuf,
}

/// A private RabbitMQ broker on a free loopback port, with a port mapper daemon (epmd) of its own. Dropping it kills
/// it and removes its directory.
#[derive(Debug)]
pub struct RabbitServer {
    address: RabbitAddress,
    own: Option<Own>,
}

/// The part of a broker that only the process that started it has.
#[derive(Debug)]
struct Own {
    // Before `dir`, so that they are dropped before the directory is removed.
    broker: ServerProcess,
    epmd: ServerProcess,
    dir: TestDir,
}

impl RabbitServer {
    /// Starts a broker and waits until it accepts connections. The programs are those of [`Place::from_environment`].
    ///
    /// # Errors
    /// No RabbitMQ is installed, or it does not start: the error holds the end of its log.
    pub async fn start(options: RabbitOptions) -> Result<Self> {
        Self::start_in(Place::from_environment()?, options).await
    }

    /// [`start`](Self::start) with programs of a given place.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_in(place: Place, options: RabbitOptions) -> Result<Self> {
        let programs = find_programs(&place)?;
        for attempt in 1.. {
            let dir = TestDir::create()?;
            let address = RabbitAddress {
                place: place.clone(),
                programs: programs.clone(),
                port: free_port()?,
                distribution_port: free_port()?,
                epmd_port: free_port()?,
                node: format!("testbed-{}@localhost", uuid::Uuid::now_v7().simple()),
                dir: dir.path().to_owned(),
            };
            for port in [address.port, address.distribution_port, address.epmd_port] {
                dir.reserve_port(port)?;
            }
            let server = Self {
                address,
                own: Some(Own {
                    broker: ServerProcess::new("rabbitmq"),
                    epmd: ServerProcess::new("epmd"),
                    dir,
                }),
            };
            server.configure(&options)?;
            match server.start_again().await {
                Ok(()) => return Ok(server),
                // The ports were free a moment ago; another may have been quicker.
                Err(_) if attempt < 5 && server.log().contains("eaddrinuse") => {}
                Err(error) => return Err(error),
            }
        }
        unreachable!("the loop returns")
    }

    /// The broker that another process started and described by [`RabbitServer::address`].
    pub(crate) fn attach(address: RabbitAddress) -> Self {
        Self { address, own: None }
    }

    pub(crate) fn address(&self) -> &RabbitAddress {
        &self.address
    }

    fn configure(&self, options: &RabbitOptions) -> Result<()> {
        let dir = self.directory();
        fs::create_dir(dir.join("conf.d"))?;
        let mut config = format!(
            "disk_free_limit.absolute = 50MB\n\
             vm_memory_high_watermark.relative = {MEMORY_WATERMARK}\n\
             log.file.level = info\n"
        );
        for line in &options.config {
            config.push_str(line);
            config.push('\n');
        }
        fs::write(dir.join("rabbitmq.conf"), config)?;
        fs::write(dir.join("advanced.config"), "[].\n")?;
        fs::write(dir.join("rabbitmq-env.conf"), "")?;
        fs::write(
            dir.join("enabled_plugins"),
            format!("[{}].\n", options.plugins.join(",")),
        )?;
        fs::write(
            dir.join("eval.erl"),
            EVAL_SERVER.replace("@SOCKET@", &self.eval_socket().display().to_string()),
        )?;
        Ok(())
    }

    /// One of RabbitMQ's own scripts, with the environment that keeps it away from any other broker.
    fn command(&self, program: &str) -> Command {
        let address = &self.address;
        let dir = self.directory();
        let mut command =
            address
                .place
                .command(&address.programs.join(program), None, &address.dir);
        command
            .env("RABBITMQ_NODENAME", &address.node)
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", address.port.to_string())
            .env("RABBITMQ_DIST_PORT", address.distribution_port.to_string())
            .env("RABBITMQ_CONF_ENV_FILE", dir.join("rabbitmq-env.conf"))
            .env("RABBITMQ_CONFIG_FILE", dir.join("rabbitmq.conf"))
            .env("RABBITMQ_CONFIG_FILES", dir.join("conf.d"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", dir.join("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", dir.join("mnesia"))
            .env("RABBITMQ_LOG_BASE", dir.join("log"))
            .env("RABBITMQ_LOGS", dir.join("log").join("rabbit.log"))
            .env("RABBITMQ_PID_FILE", dir.join("rabbit.pid"))
            .env("ERL_EPMD_PORT", address.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_CRASH_DUMP_SECONDS", "0")
            // The script execs the broker instead of standing between it and our signals.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                format!(
                    "+sbwt none +sbwtdcpu none +sbwtdio none \
                     -kernel inet_dist_use_interface {{127,0,0,1}} \
                     -eval file:eval(\"{}\").",
                    dir.join("eval.erl").display()
                ),
            );
        command
    }

    /// The AMQP URL of a virtual host, as guest.
    pub fn url(&self, vhost: &str) -> String {
        url("guest", "guest", self.address.port, vhost)
    }

    /// The AMQP port on 127.0.0.1; the same after every restart.
    pub fn port(&self) -> u16 {
        self.address.port
    }

    /// What the broker has logged since its first start.
    pub fn log(&self) -> String {
        [
            self.output_file(),
            self.directory().join("log").join("rabbit.log"),
        ]
        .iter()
        .filter_map(|file| fs::read(file).ok())
        .map(|log| String::from_utf8_lossy(&log).into_owned())
        .collect()
    }

    /// A new virtual host with a unique name, to which guest has all rights.
    ///
    /// # Errors
    /// The broker is not there.
    pub async fn create_vhost(&self) -> Result<TestVhost> {
        let name = format!("test-{}", uuid::Uuid::now_v7().simple());
        let answer = self
            .eval(&format!(
                "ok = rabbit_vhost:add(<<\"{name}\">>, <<\"testbed\">>), \
                 rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, <<\"{name}\">>, \
                 <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"testbed\">>)."
            ))
            .await
            .with_context(|| format!("could not create virtual host {name}"))?;
        ensure!(
            answer == "ok",
            "could not give guest virtual host {name}: {answer}"
        );
        Ok(TestVhost {
            url: self.url(&name),
            name,
            port: self.port(),
        })
    }

    /// Runs `rabbitmqctl` on this broker (a second or two); its output.
    ///
    /// # Errors
    /// It fails: the error holds its output.
    pub async fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command("rabbitmqctl");
        command.args(arguments);
        let log = self
            .directory()
            .join(format!("ctl-{}.log", uuid::Uuid::now_v7().simple()));
        let (success, output) = run(command, &log, CTL_DEADLINE).await?;
        let _ = fs::remove_file(log);
        ensure!(success, "rabbitmqctl {arguments:?} failed:\n{output}");
        Ok(output)
    }

    fn own(&self) -> Result<&Own> {
        self.own.as_ref().ok_or_else(|| {
            anyhow!(
                "the shared rabbitmq belongs to the whole test run: \
                 a test that stops or hurts a broker starts one of its own (RabbitServer::start)"
            )
        })
    }

    fn directory(&self) -> &Path {
        &self.address.dir
    }

    fn output_file(&self) -> PathBuf {
        self.directory().join("rabbit.out")
    }

    fn eval_socket(&self) -> PathBuf {
        self.directory().join("eval.socket")
    }
}
