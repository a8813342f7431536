//! A private RabbitMQ broker.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use lapin::{Connection, ConnectionProperties};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{Instant, timeout},
};

use crate::{
    place::Place,
    ports::free_port,
    postgres::{run, tail},
    process::Process,
    test_dir::TestDir,
    wait_until,
};

/// How long a start may take on a busy machine; recovery of queues is part of it.
const START_DEADLINE: Duration = Duration::from_secs(180);

/// How long a stop may take.
const STOP_DEADLINE: Duration = Duration::from_secs(120);

/// How long one evaluated expression may take.
const EVAL_DEADLINE: Duration = Duration::from_secs(60);

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
    process: Mutex<Option<Process>>,
    epmd: Mutex<Option<Process>>,
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
                    process: Mutex::new(None),
                    epmd: Mutex::new(None),
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
        let (success, output) = run(command, &log).await?;
        let _ = fs::remove_file(log);
        ensure!(success, "rabbitmqctl {arguments:?} failed:\n{output}");
        Ok(output)
    }

    /// Evaluates an Erlang expression (ending in a full stop) inside the broker, within a millisecond or so; its
    /// value as Erlang prints it.
    ///
    /// # Errors
    /// The broker is not there, the expression fails, or there is no answer within a minute.
    pub async fn eval(&self, expression: &str) -> Result<String> {
        let answer = timeout(EVAL_DEADLINE, self.eval_now(expression))
            .await
            .map_err(|_| anyhow!("the broker did not evaluate within {EVAL_DEADLINE:?}"))
            .flatten()
            .with_context(|| format!("could not evaluate {expression}"))?;
        match answer.split_once(' ') {
            Some(("ok", value)) => Ok(value.to_owned()),
            _ => bail!("{expression} failed: {answer}"),
        }
    }

    async fn eval_now(&self, expression: &str) -> Result<String> {
        let mut socket = UnixStream::connect(self.eval_socket()).await?;
        let length = u32::try_from(expression.len())?;
        socket.write_all(&length.to_be_bytes()).await?;
        socket.write_all(expression.as_bytes()).await?;
        let length = socket.read_u32().await?;
        let mut answer = vec![0; length as usize];
        socket.read_exact(&mut answer).await?;
        Ok(String::from_utf8(answer)?)
    }

    /// Closes all AMQP connections from the broker's side, with this reason (320, CONNECTION_FORCED).
    ///
    /// # Errors
    /// The broker is not there.
    pub async fn close_connections(&self, reason: &str) -> Result<()> {
        self.eval(&format!(
            "[rabbit_networking:close_connection(P, {}) || P <- rabbit_networking:local_connections()].",
            erlang_string(reason)
        ))
        .await?;
        Ok(())
    }

    /// Raises (or lifts) the memory alarm, and returns once it is in force: publishers are blocked from then on.
    ///
    /// # Errors
    /// The broker is not there, or the alarm does not change within a minute.
    pub async fn set_memory_alarm(&self, on: bool) -> Result<()> {
        let watermark = if on { "0.00001" } else { MEMORY_WATERMARK };
        self.eval(&format!(
            "vm_memory_monitor:set_vm_memory_high_watermark({watermark})."
        ))
        .await?;
        let wanted = if on { "true" } else { "false" };
        wait_until(
            Duration::from_secs(60),
            "the memory alarm to change",
            async || {
                self.eval("lists:any(fun({{resource_limit, memory, _}, _}) -> true; (_) -> false end, rabbit_alarm:get_alarms()).")
                    .await
                    .is_ok_and(|answer| answer == wanted)
            },
        )
        .await
    }

    /// Stops the process of a queue: it takes messages into its mailbox and answers nobody.
    ///
    /// # Errors
    /// There is no such queue, or the broker is not there.
    pub async fn suspend_queue(&self, vhost: &str, queue: &str) -> Result<()> {
        self.on_queue("suspend", vhost, queue).await
    }

    /// Lets the process of a suspended queue go on.
    ///
    /// # Errors
    /// There is no such queue, or the broker is not there.
    pub async fn resume_queue(&self, vhost: &str, queue: &str) -> Result<()> {
        self.on_queue("resume", vhost, queue).await
    }

    async fn on_queue(&self, action: &str, vhost: &str, queue: &str) -> Result<()> {
        // The process of a quorum queue is named, that of a classic one is not.
        self.expect_ok(&format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r({}, queue, {})), \
             P = case amqqueue:get_pid(Q) of {{Name, _}} -> Name; Pid -> Pid end, sys:{action}(P), ok.",
            erlang_binary(vhost),
            erlang_binary(queue)
        ))
        .await
    }

    /// Adds a user without any rights.
    ///
    /// # Errors
    /// The broker is not there or refuses.
    pub async fn add_user(&self, name: &str, password: &str) -> Result<()> {
        self.expect_ok(&format!(
            "rabbit_auth_backend_internal:add_user({}, {}, <<\"testbed\">>).",
            erlang_binary(name),
            erlang_binary(password)
        ))
        .await
    }

    /// Sets a user's rights in a virtual host: regular expressions for configure, write and read.
    ///
    /// # Errors
    /// The broker is not there or refuses.
    pub async fn set_permissions(
        &self,
        user: &str,
        vhost: &str,
        configure: &str,
        write: &str,
        read: &str,
    ) -> Result<()> {
        self.expect_ok(&format!(
            "rabbit_auth_backend_internal:set_permissions({}, {}, {}, {}, {}, <<\"testbed\">>).",
            erlang_binary(user),
            erlang_binary(vhost),
            erlang_binary(configure),
            erlang_binary(write),
            erlang_binary(read)
        ))
        .await
    }

    async fn expect_ok(&self, expression: &str) -> Result<()> {
        let answer = self.eval(expression).await?;
        ensure!(answer == "ok", "the broker refused: {answer}");
        Ok(())
    }

    /// Whether the broker's process is there; a paused one is.
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

    /// Stops the broker in good order and waits for its end.
    ///
    /// # Errors
    /// It does not run, does not end within two minutes, or belongs to another process.
    pub async fn stop(&self) -> Result<()> {
        let process = self.take_process()?;
        process.signal(Signal::TERM)?;
        process
            .wait_exit(STOP_DEADLINE)
            .await
            .context("the broker did not stop")?;
        Ok(())
    }

    /// Starts a stopped or killed broker on the same data and ports, and waits until it accepts connections.
    ///
    /// # Errors
    /// It runs already, does not come up, or belongs to another process.
    pub async fn start_again(&self) -> Result<()> {
        let own = self.own()?;
        ensure!(!self.is_running(), "the broker runs already");
        self.start_epmd()?;
        let output = File::options()
            .create(true)
            .append(true)
            .open(self.output_file())?;
        let mut command = self.command("rabbitmq-server");
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let process = Process::start(command)?;
        own.dir.record_process(process.pid())?;
        *own.process.lock().unwrap() = Some(process);
        self.wait_until_ready().await
    }

    /// [`stop`](Self::stop) and [`start_again`](Self::start_again).
    ///
    /// # Errors
    /// Those of the two.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.start_again().await
    }

    /// Kills the broker and its children with SIGKILL.
    ///
    /// Before that, RabbitMQ's small on-disk registers (dets) are written out, so this is a little kinder than a
    /// crash. RabbitMQ (3.10.8 and 4.0.5 alike) writes the register of its quorum queues up to two seconds after a
    /// declaration; a kill in between leaves such a queue without a leader and with an empty log, confirmed messages
    /// gone. No relay can mend that, and a test which declares, publishes and kills within a second would blame it.
    /// The logs of the queues themselves are not touched. To kill without it, [`pause`](Self::pause) first: a paused
    /// broker writes nothing.
    ///
    /// # Errors
    /// It does not run, or belongs to another process.
    pub async fn kill(&self) -> Result<()> {
        let process = self.take_process()?;
        // A paused broker does not answer, and is killed as it is.
        let _ = timeout(
            Duration::from_secs(2),
            self.eval("[dets:sync(T) || T <- dets:all()]."),
        )
        .await;
        process.kill().await
    }

    /// Stops the broker with SIGSTOP: connections stay open and nothing answers.
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

    /// The port mapper, in the foreground as our child: started by the broker it would outlive everything.
    fn start_epmd(&self) -> Result<()> {
        let own = self.own()?;
        let mut epmd = own.epmd.lock().unwrap();
        if epmd.as_ref().is_some_and(Process::is_alive) {
            return Ok(());
        }
        let address = &self.address;
        let mut command = address
            .place
            .command(Path::new("epmd"), None, self.directory());
        command
            .args([
                "-port",
                &address.epmd_port.to_string(),
                "-address",
                "127.0.0.1",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = Process::start(command).context("could not start epmd")?;
        own.dir.record_process(process.pid())?;
        *epmd = Some(process);
        Ok(())
    }

    async fn wait_until_ready(&self) -> Result<()> {
        let end = Instant::now() + START_DEADLINE;
        while !self.answers().await {
            if !self.is_running() {
                self.own()?.process.lock().unwrap().take();
                bail!("rabbitmq ended at its start:\n{}", tail(&self.log()));
            }
            if Instant::now() >= end {
                bail!(
                    "rabbitmq did not accept connections within {START_DEADLINE:?}:\n{}",
                    tail(&self.log())
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Whether it greets an AMQP client and has booted. (lapin would leak a thread for each refused connection.)
    async fn answers(&self) -> bool {
        let greet = async {
            ensure!(self.eval("rabbit:is_running().").await? == "true");
            let mut socket = TcpStream::connect(("127.0.0.1", self.port())).await?;
            socket.write_all(b"AMQP\x00\x00\x09\x01").await?;
            let frame_type = socket.read_u8().await?;
            ensure!(frame_type == 1, "not AMQP");
            Ok(())
        };
        matches!(timeout(Duration::from_secs(5), greet).await, Ok(Ok(())))
    }

    fn own(&self) -> Result<&Own> {
        self.own.as_ref().ok_or_else(|| {
            anyhow!(
                "the shared rabbitmq belongs to the whole test run: \
                 a test that stops or hurts a broker starts one of its own (RabbitServer::start)"
            )
        })
    }

    fn take_process(&self) -> Result<Process> {
        let process = self.own()?.process.lock().unwrap().take();
        process
            .filter(Process::is_alive)
            .context("rabbitmq does not run")
    }

    fn with_process(&self, action: impl FnOnce(&Process) -> Result<()>) -> Result<()> {
        let process = self.own()?.process.lock().unwrap();
        action(process.as_ref().context("rabbitmq does not run")?)
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

fn url(user: &str, password: &str, port: u16, vhost: &str) -> String {
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

fn erlang_string(text: &str) -> String {
    format!("{text:?}")
}

fn erlang_binary(text: &str) -> String {
    format!("<<{}/utf8>>", erlang_string(text))
}

/// The directory of `rabbitmq-server` and `rabbitmqctl`, as the place sees it. Not the wrappers of that name in the
/// path: Debian's insist on the user rabbitmq and its home.
fn find_programs(place: &Place) -> Result<PathBuf> {
    let mut candidates = vec![PathBuf::from("/usr/lib/rabbitmq/bin")];
    for parent in ["/usr/lib/rabbitmq/lib", "/usr/local/lib/rabbitmq/lib"] {
        candidates.extend(
            place
                .versions(parent, "rabbitmq_server-")
                .into_iter()
                .map(|version| version.join("sbin")),
        );
    }
    candidates.push(PathBuf::from("/opt/rabbitmq/sbin"));
    if *place == Place::Machine {
        candidates.extend(
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .filter_map(|dir| fs::canonicalize(dir.join("rabbitmq-server")).ok())
                .filter_map(|script| script.parent().map(Path::to_owned)),
        );
    }
    candidates
        .into_iter()
        .find(|dir| {
            // Every real script lives beside the environment it sources.
            ["rabbitmq-server", "rabbitmqctl", "rabbitmq-env"]
                .iter()
                .all(|program| fs::symlink_metadata(place.outside(&dir.join(program))).is_ok())
        })
        .with_context(|| {
            format!("no rabbitmq server found in {place:?}: install the package rabbitmq-server")
        })
}
