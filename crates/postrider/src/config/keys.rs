//! The one table of keys: what may be said, in which section, under which variable, with which default.
//!
//! Unknown keys, the names of variables, `config show` and the tests of `config/postrider.toml` and
//! `docs/configuration.md` all follow from it.

use std::time::Duration;

use postrider_core::{RetryPolicy, UnroutablePolicy};
use postrider_relay::AfterDeadLetter;
use postrider_tls::Mode;

use super::kind::{
    FilePath, Form, Header, Integer, Kind, Listen, LogFilter, Number, OneOf, Secret, SecretPath,
    Secrets, Size, Switch, Text, Time,
};
use super::{BrokerAuth, LogFormat, TlsMode};

/// One key of one section.
pub(crate) struct Key<K> {
    pub(crate) name: KeyName,
    pub(crate) kind: K,
    /// The default in the form of a variable; `None` when the key is required, optional, or its
    /// default is found out at run time.
    pub(crate) default: Option<&'static str>,
}

/// What identifies a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct KeyName {
    pub(crate) section: &'static str,
    pub(crate) key: &'static str,
}

impl KeyName {
    /// The environment variable of the key.
    pub(crate) fn variable(self) -> String {
        format!("POSTRIDER_{}_{}", self.section, self.key)
            .replace('.', "_")
            .to_ascii_uppercase()
    }
}

impl std::fmt::Display for KeyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}] {}", self.section, self.key)
    }
}

/// A key without its type.
pub(crate) trait AnyKey: Sync {
    /// What identifies it.
    fn name(&self) -> KeyName;

    /// Its default as TOML, `None` when it has no fixed one.
    #[cfg(test)]
    fn default_toml(&self) -> Option<String>;
}

impl<K: Kind + Sync> AnyKey for Key<K> {
    fn name(&self) -> KeyName {
        self.name
    }

    #[cfg(test)]
    fn default_toml(&self) -> Option<String> {
        let given = super::kind::Given::Variable(self.default?.to_owned());
        let value = self.kind.parse(&given).ok()?;
        Some(self.kind.show(&value))
    }
}

macro_rules! keys {
    ($($ident:ident = [$section:ident $(. $part:ident)?] $key:ident: $type:ty = $kind:expr, $default:expr;)*) => {
        $(
            pub(crate) static $ident: Key<$type> = Key {
                name: KeyName {
                    section: concat!(stringify!($section) $(, ".", stringify!($part))?),
                    key: stringify!($key),
                },
                kind: $kind,
                default: $default,
            };
        )*

        /// Every key, in the order of the documentation.
        pub(crate) static ALL: &[&dyn AnyKey] = &[$(&$ident),*];
    };
}

const fn time(min: Duration, max: Duration) -> Time {
    Time {
        min,
        max,
        whole_seconds: false,
    }
}

const fn line(max_bytes: usize) -> Text {
    Text {
        max_bytes,
        form: Form::Line,
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const TEN_YEARS: Duration = Duration::from_secs(3650 * 24 * 3600);

/// The words for what to do with messages that no queue is bound for, for all exchanges and for one.
const UNROUTABLE: OneOf<UnroutablePolicy> = OneOf(&[
    ("retry", UnroutablePolicy::Retry),
    ("accept", UnroutablePolicy::Accept),
]);

/// libpq's words for what is verified.
const TLS_MODE: OneOf<TlsMode> = OneOf(&[
    ("disable", TlsMode::Disable),
    ("require", TlsMode::On(Mode::Require)),
    ("verify-ca", TlsMode::On(Mode::VerifyCa)),
    ("verify-full", TlsMode::On(Mode::VerifyFull)),
]);

/// The section of tables that are named after exchanges: `[exchanges."NAME"]`.
pub(crate) const EXCHANGES: &str = "exchanges";

/// The only key of a table in [`EXCHANGES`]. Not among [`ALL`]: its section is named by whoever
/// writes the file, so it has no variable.
pub(crate) static EXCHANGE_UNROUTABLE: Key<OneOf<UnroutablePolicy>> = Key {
    name: KeyName {
        section: EXCHANGES,
        key: "unroutable",
    },
    kind: UNROUTABLE,
    default: None,
};

keys! {
    DATABASE_URL = [database] url: Secret = Secret, None;
    DATABASE_URL_FILE = [database] url_file: SecretPath = SecretPath, None;
    // The wake-up channel carries the name behind `postrider_`, and PostgreSQL ends names at 63 bytes.
    DATABASE_SCHEMA = [database] schema: Text = Text { max_bytes: 48, form: Form::Identifier }, Some("outbox");
    DATABASE_APPLICATION_NAME = [database] application_name: Text = Text { max_bytes: 63, form: Form::Ascii }, Some("postrider");
    DATABASE_CONNECT_TIMEOUT = [database] connect_timeout: Time = time(Duration::from_millis(100), Duration::from_secs(300)), Some("5s");
    DATABASE_TCP_USER_TIMEOUT = [database] tcp_user_timeout: Time = time(SECOND, Duration::from_secs(600)), Some("15s");

    DATABASE_TLS_MODE = [database.tls] mode: OneOf<TlsMode> = TLS_MODE, None;
    DATABASE_TLS_CA_FILE = [database.tls] ca_file: FilePath = FilePath, None;
    DATABASE_TLS_CERT_FILE = [database.tls] cert_file: FilePath = FilePath, None;
    DATABASE_TLS_KEY_FILE = [database.tls] key_file: FilePath = FilePath, None;
    // No name in DNS is longer.
    DATABASE_TLS_SERVER_NAME = [database.tls] server_name: Text = line(253), None;

    BROKER_URL = [broker] url: Secret = Secret, None;
    BROKER_URLS = [broker] urls: Secrets = Secrets, None;
    BROKER_URL_FILE = [broker] url_file: SecretPath = SecretPath, None;
    BROKER_USERNAME = [broker] username: Text = line(255), None;
    BROKER_PASSWORD_FILE = [broker] password_file: SecretPath = SecretPath, None;
    BROKER_TOKEN_FILE = [broker] token_file: SecretPath = SecretPath, None;
    BROKER_AUTH = [broker] auth: OneOf<BrokerAuth> = OneOf(&[("plain", BrokerAuth::Plain), ("external", BrokerAuth::External)]), None;
    BROKER_VHOST = [broker] vhost: Text = line(255), None;
    BROKER_CONNECTION_NAME = [broker] connection_name: Text = line(255), None;
    // AMQP carries it as whole seconds.
    BROKER_HEARTBEAT = [broker] heartbeat: Time = Time { min: SECOND, max: Duration::from_secs(600), whole_seconds: true }, Some("10s");
    BROKER_CONNECT_TIMEOUT = [broker] connect_timeout: Time = time(Duration::from_millis(100), Duration::from_secs(300)), Some("10s");

    BROKER_TLS_MODE = [broker.tls] mode: OneOf<TlsMode> = TLS_MODE, None;
    BROKER_TLS_CA_FILE = [broker.tls] ca_file: FilePath = FilePath, None;
    BROKER_TLS_CERT_FILE = [broker.tls] cert_file: FilePath = FilePath, None;
    BROKER_TLS_KEY_FILE = [broker.tls] key_file: FilePath = FilePath, None;
    // No name in DNS is longer.
    BROKER_TLS_SERVER_NAME = [broker.tls] server_name: Text = line(253), None;

    RELAY_NAME = [relay] name: Text = line(200), None;
    RELAY_OUTBOX = [relay] outbox: Text = line(200), None;
    RELAY_WORKERS = [relay] workers: Integer = Integer { min: 1, max: 64 }, Some("2");
    RELAY_BATCH_ROWS = [relay] batch_rows: Integer = Integer { min: 1, max: 10_000 }, Some("1000");
    RELAY_BATCH_BYTES = [relay] batch_bytes: Size = Size { min: 1, max: 1 << 30 }, Some("4MiB");
    // RabbitMQ's own upper bound for a message is 512 MiB.
    RELAY_MAX_MESSAGE_BYTES = [relay] max_message_bytes: Size = Size { min: 1, max: 512 << 20 }, Some("16MiB");
    RELAY_POLL_INTERVAL = [relay] poll_interval: Time = time(Duration::from_millis(10), Duration::from_secs(30)), Some("1s");
    RELAY_CONFIRM_TIMEOUT = [relay] confirm_timeout: Time = time(SECOND, HOUR), Some("30s");
    RELAY_STRAGGLER_TIMEOUT = [relay] straggler_timeout: Time = time(Duration::from_millis(100), HOUR), Some("2s");
    RELAY_SHUTDOWN_GRACE = [relay] shutdown_grace: Time = time(SECOND, HOUR), Some("20s");

    RETRY_MAX_ATTEMPTS = [retry] max_attempts: Integer = Integer { min: 1, max: 1_000_000 }, Some("20");
    // No wait is shorter than the policy's own bound, so none can be asked for.
    RETRY_INITIAL_DELAY = [retry] initial_delay: Time = time(RetryPolicy::SHORTEST, DAY), Some("1s");
    RETRY_MAX_DELAY = [retry] max_delay: Time = time(RetryPolicy::SHORTEST, DAY), Some("5min");
    RETRY_MULTIPLIER = [retry] multiplier: Number = Number { min: 1.0, max: 100.0 }, Some("2.0");

    UNROUTABLE_POLICY = [unroutable] policy: OneOf<UnroutablePolicy> = UNROUTABLE, Some("retry");

    // Less would delete what nobody can have seen yet.
    DEAD_LETTERS_RETENTION = [dead_letters] retention: Time = time(HOUR, TEN_YEARS), None;

    ORDERING_HORIZON = [ordering] horizon: Switch = Switch, Some("false");
    ORDERING_AFTER_DEAD_LETTER = [ordering] after_dead_letter: OneOf<AfterDeadLetter> = OneOf(&[("block", AfterDeadLetter::Block), ("continue", AfterDeadLetter::Continue)]), Some("block");
    ORDERING_IN_FLIGHT_PER_KEY = [ordering] in_flight_per_key: Integer = Integer { min: 1, max: 1_000 }, Some("1");
    ORDERING_KEY_HEADER = [ordering] key_header: Header = Header, Some("x-ordering-key");
    ORDERING_SEQ_HEADER = [ordering] seq_header: Header = Header, Some("x-ordering-seq");

    WAKEUP_NOTIFY = [wakeup] notify: Switch = Switch, Some("true");
    WAKEUP_QUIET_ABOVE = [wakeup] quiet_above: Integer = Integer { min: 1, max: 1_000_000 }, Some("2000");

    METRICS_SAMPLE_INTERVAL = [metrics] sample_interval: Time = time(Duration::from_millis(100), MINUTE), Some("1s");
    METRICS_BACKLOG_LIMIT = [metrics] backlog_limit: Integer = Integer { min: 1, max: 10_000_000 }, Some("100000");
    METRICS_MAX_EXCHANGES = [metrics] max_exchanges: Integer = Integer { min: 1, max: 10_000 }, Some("100");

    TRACING_ENDPOINT = [tracing] endpoint: Text = line(1024), None;
    TRACING_SERVICE_NAME = [tracing] service_name: Text = line(255), Some("postrider");
    TRACING_RESOURCE_ATTRIBUTES = [tracing] resource_attributes: Text = line(8192), None;
    TRACING_SAMPLE_RATIO = [tracing] sample_ratio: Number = Number { min: 0.0, max: 1.0 }, Some("1.0");
    TRACING_TIMEOUT = [tracing] timeout: Time = time(Duration::from_millis(100), MINUTE), Some("10s");
    // What waits is in memory, half a KiB each.
    TRACING_MAX_QUEUED_SPANS = [tracing] max_queued_spans: Integer = Integer { min: 1, max: 1_000_000 }, Some("4096");

    TRACING_TLS_MODE = [tracing.tls] mode: OneOf<TlsMode> = TLS_MODE, None;
    TRACING_TLS_CA_FILE = [tracing.tls] ca_file: FilePath = FilePath, None;
    TRACING_TLS_CERT_FILE = [tracing.tls] cert_file: FilePath = FilePath, None;
    TRACING_TLS_KEY_FILE = [tracing.tls] key_file: FilePath = FilePath, None;
    // No name in DNS is longer.
    TRACING_TLS_SERVER_NAME = [tracing.tls] server_name: Text = line(253), None;

    HTTP_LISTEN = [http] listen: Listen = Listen, Some("127.0.0.1:7617");

    LOG_FORMAT = [log] format: OneOf<LogFormat> = OneOf(&[("text", LogFormat::Text), ("json", LogFormat::Json)]), Some("text");
    LOG_LEVEL = [log] level: LogFilter = LogFilter, Some("info");
}

/// The sections with a fixed name, in the order of the documentation.
pub(crate) fn sections() -> Vec<&'static str> {
    let mut sections: Vec<_> = ALL.iter().map(|key| key.name().section).collect();
    sections.dedup();
    sections
}

/// The names of a section's keys; empty for a section that does not exist.
pub(crate) fn keys_of(section: &str) -> Vec<&'static str> {
    ALL.iter()
        .map(|key| key.name())
        .filter(|name| name.section == section)
        .map(|name| name.key)
        .collect()
}
