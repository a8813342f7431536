//! Reads file, environment and credentials, and hands out what a command needs.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use postrider_core::{RetryPolicy, UnroutablePolicies};

use super::broker;
use super::keys::{self, AnyKey, KeyName};
use super::layer::{self, Layer};
use super::reader::{Reader, Setting};
use super::report::{ConfigError, Problem};
use super::source::Source;
use super::{
    BrokerConfig, Config, DEFAULT_PATH, DatabaseConfig, DeadLettersConfig, HttpConfig, LogConfig,
    MetricsConfig, OrderingConfig, RelayConfig, TracingConfig, WakeupConfig, passwords, resolve,
    tracing,
};

/// What decides the configuration; passed in, so that tests need not touch the process.
pub(crate) struct Inputs {
    /// The file named on the command line.
    pub(crate) file: Option<PathBuf>,
    /// Where a file is taken from if it is there and nobody names another.
    pub(crate) default_file: PathBuf,
    /// All environment variables.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// The host's name.
    pub(crate) host_name: String,
}

impl Inputs {
    /// The process's own.
    pub(crate) fn of_this_process(file: Option<PathBuf>) -> Self {
        Self {
            file,
            default_file: PathBuf::from(DEFAULT_PATH),
            environment: std::env::vars_os().collect(),
            host_name: host_name(),
        }
    }

    fn variable(&self, name: &str) -> Option<&OsString> {
        self.environment
            .iter()
            .find(|(known, value)| known == name && !value.is_empty())
            .map(|(_, value)| value)
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "postrider".to_owned())
}

/// A configuration in which nothing is wrong. The URLs may be missing: not every command needs them.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    /// The file that was read, if any.
    pub(crate) file: Option<PathBuf>,
    /// What should be mended but stops nothing.
    pub(crate) warnings: Vec<String>,
    /// Every effective value and where it comes from, in the order of the documentation.
    pub(crate) settings: Vec<Setting>,
    /// The schema of the outbox; known also when no URL is set.
    pub(crate) schema: String,
    database: Option<DatabaseConfig>,
    broker: Option<BrokerConfig>,
    /// The loop's settings.
    pub(crate) relay: RelayConfig,
    retry: RetryPolicy,
    unroutable: UnroutablePolicies,
    dead_letters: DeadLettersConfig,
    ordering: OrderingConfig,
    /// How the loop hears of new rows.
    pub(crate) wakeup: WakeupConfig,
    /// What is measured.
    pub(crate) metrics: MetricsConfig,
    tracing: TracingConfig,
    /// The admin endpoint.
    pub(crate) http: HttpConfig,
    /// The log.
    pub(crate) log: LogConfig,
}

impl Loaded {
    /// Reads and checks everything that was said.
    ///
    /// # Errors
    /// Every problem at once; a URL that is not set is none yet.
    pub(crate) fn from(inputs: &Inputs) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let mut warnings = Vec::new();
        let environment =
            layer::from_environment(&inputs.environment, &mut problems, &mut warnings);
        let (file, file_layer) = match read_file(inputs) {
            Ok(Some((path, text))) => {
                let layer = layer::from_toml(&text, &path, &mut problems);
                (Some(path), layer)
            }
            Ok(None) => (None, Layer::default()),
            Err(problem) => {
                problems.push(problem);
                (None, Layer::default())
            }
        };
        let credentials = inputs.variable("CREDENTIALS_DIRECTORY").map(Path::new);

        let mut reader = Reader::new(&environment, &file_layer, credentials);
        let schema = resolve::schema(&mut reader);
        let database = resolve::database(&mut reader, schema.clone());
        let relay = resolve::relay(&mut reader, &inputs.host_name, database.as_ref());
        let relay_name = relay.as_ref().map(|relay| relay.name.as_str());
        let broker = broker::broker(&mut reader, relay_name);
        let retry = resolve::retry(&mut reader);
        let unroutable = resolve::unroutable(&mut reader);
        let dead_letters = resolve::dead_letters(&mut reader);
        let ordering = resolve::ordering(&mut reader);
        let wakeup = resolve::wakeup(&mut reader);
        let metrics = resolve::metrics(&mut reader);
        let tracing = tracing::tracing(&mut reader);
        let http = resolve::http(&mut reader);
        let log = resolve::log(&mut reader);
        passwords::warn_of_readers(&mut reader);
        problems.append(&mut reader.problems);
        warnings.append(&mut reader.warnings);
        let mut settings = reader.settings;
        settings.sort_by_cached_key(|setting| (position(setting.name), setting.exchange.clone()));
        if !problems.is_empty() {
            return Err(ConfigError::new(problems));
        }

        let loaded = || {
            Some(Self {
                file,
                warnings,
                settings,
                schema: schema?,
                database,
                broker,
                relay: relay?,
                retry: retry?,
                unroutable: unroutable?,
                dead_letters,
                ordering: ordering?,
                wakeup: wakeup?,
                metrics: metrics?,
                tracing: tracing?,
                http: http?,
                log: log?,
            })
        };
        loaded().ok_or_else(|| ConfigError::new(problems))
    }

    /// The database, for commands that need nothing else.
    ///
    /// # Errors
    /// When no URL is set; it says how to set one.
    pub(crate) fn database(&self) -> Result<&DatabaseConfig, ConfigError> {
        self.database
            .as_ref()
            .ok_or_else(|| ConfigError::new(vec![self.missing_database()]))
    }

    /// Everything, for `run` and `check-config`.
    ///
    /// # Errors
    /// When a URL is not set, for each; it says how to set one.
    pub(crate) fn complete(self) -> Result<Config, ConfigError> {
        let mut problems = Vec::new();
        if self.database.is_none() {
            problems.push(self.missing_database());
        }
        if self.broker.is_none() {
            problems.push(self.missing_broker());
        }
        match (self.database, self.broker) {
            (Some(database), Some(broker)) => Ok(Config {
                database,
                broker,
                relay: self.relay,
                retry: self.retry,
                unroutable: self.unroutable,
                dead_letters: self.dead_letters,
                ordering: self.ordering,
                wakeup: self.wakeup,
                metrics: self.metrics,
                tracing: self.tracing,
                http: self.http,
                log: self.log,
            }),
            _ => Err(ConfigError::new(problems)),
        }
    }

    fn missing_database(&self) -> Problem {
        self.missing(
            keys::DATABASE_URL.name,
            "postgres://USER:PASSWORD@HOST:5432/DATABASE",
        )
    }

    fn missing_broker(&self) -> Problem {
        self.missing(
            keys::BROKER_URL.name,
            "amqps://USER:PASSWORD@HOST:5671/VHOST",
        )
    }

    fn missing(&self, name: KeyName, example: &str) -> Problem {
        let file = match &self.file {
            Some(path) => path.display().to_string(),
            None => format!("{DEFAULT_PATH} (or the file that --config names)"),
        };
        let problem = Problem {
            at: None,
            key: Some(name.to_string()),
            message: "is not set".to_owned(),
            hints: Vec::new(),
        }
        .hint(format!(
            "in {file}: {} = \"{example}\" under [{}]",
            name.key, name.section
        ))
        .hint(format!(
            "or in the environment: {}, or {}_FILE with the name of a file that holds it",
            name.variable(),
            name.variable()
        ));
        if self.file.is_some() {
            problem.hint("`postrider config show` prints what is set, and where")
        } else {
            problem.hint("`postrider config default` prints a commented file to begin with")
        }
    }
}

fn position(name: KeyName) -> usize {
    // What is said of one exchange stands behind what is said of all.
    let name = match name.section {
        keys::EXCHANGES => keys::UNROUTABLE_POLICY.name,
        _ => name,
    };
    keys::ALL
        .iter()
        .position(|key: &&dyn AnyKey| key.name() == name)
        .unwrap_or(usize::MAX)
}

/// The file's path and text. A file that somebody named must be there; the default one need not.
fn read_file(inputs: &Inputs) -> Result<Option<(PathBuf, String)>, Problem> {
    let named = inputs
        .file
        .clone()
        .or_else(|| inputs.variable("POSTRIDER_CONFIG").map(PathBuf::from));
    let must_exist = named.is_some();
    let path = named.unwrap_or_else(|| inputs.default_file.clone());
    let problem = |message: String| {
        let source = Source::File {
            path: path.clone(),
            line: 0,
        };
        Err(Problem::at(source, message))
    };
    match std::fs::read(&path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some((path, text))),
            Err(_) => problem("the configuration file is not valid UTF-8".to_owned()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => Ok(None),
        Err(error) => problem(format!("the configuration file cannot be read: {error}")),
    }
}
