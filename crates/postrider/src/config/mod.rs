//! The configuration: read once, checked completely, turned into one small type for each component.
//!
//! Environment over file over systemd credential over default; every value keeps where it came from.
//! All problems are reported together. [`keys`] is the single table behind it.

mod authority;
mod broker;
mod broker_url;
mod changes;
mod database_url;
mod exchanges;
pub(crate) mod keys;
pub(crate) mod kind;
mod layer;
mod load;
mod passwords;
mod permissions;
mod reader;
mod report;
mod resolve;
mod secret_file;
mod source;
mod suggest;
#[cfg(test)]
mod tests;
mod tls;
mod tracing;

use std::net::SocketAddr;
use std::time::Duration;

use postrider_core::{RetryPolicy, UnroutablePolicies};
use postrider_rabbitmq::{OrderingSettings, TokenFile};
use postrider_relay::Ordering;
use postrider_tls::{Mode, Tls};
use secrecy::SecretString;

pub(crate) use authority::is_loopback;
pub(crate) use broker_url::{BrokerEndpoint, BrokerLogin};
pub(crate) use changes::{Changes, Effective};
pub(crate) use exchanges::heading as exchange_heading;
pub(crate) use load::{Inputs, Loaded};
pub(crate) use reader::Setting;
pub(crate) use report::ConfigError;

/// Where the file is looked for when nobody names one.
pub(crate) const DEFAULT_PATH: &str = "/etc/postrider/postrider.toml";

/// The commented file that `config default` prints.
pub(crate) const DEFAULT_FILE: &str = include_str!("../../../../config/postrider.toml");

/// Everything that `run` needs.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// How to reach PostgreSQL.
    pub(crate) database: DatabaseConfig,
    /// How to reach RabbitMQ.
    pub(crate) broker: BrokerConfig,
    /// The loop.
    pub(crate) relay: RelayConfig,
    /// When a failed message is tried again, and how often.
    pub(crate) retry: RetryPolicy,
    /// What is done with messages that no queue is bound for.
    pub(crate) unroutable: UnroutablePolicies,
    /// What becomes of dead letters.
    pub(crate) dead_letters: DeadLettersConfig,
    /// What holds for messages with an ordering key.
    pub(crate) ordering: OrderingConfig,
    /// How the loop hears of new rows.
    pub(crate) wakeup: WakeupConfig,
    /// What is measured.
    pub(crate) metrics: MetricsConfig,
    /// The spans.
    pub(crate) tracing: TracingConfig,
    /// The admin endpoint.
    pub(crate) http: HttpConfig,
    /// The log.
    pub(crate) log: LogConfig,
}

/// `[database]`
#[derive(Debug, Clone)]
pub(crate) struct DatabaseConfig {
    /// The URL with its password; checked, and without `sslmode`.
    pub(crate) url: SecretString,
    /// TLS to every host of it; `None` for plain text, which is then to this machine or was asked for.
    pub(crate) tls: Option<Tls>,
    /// The URL with `***` for the password: for logs.
    pub(crate) shown: String,
    /// The database's name as far as the URL says it.
    pub(crate) database: Option<String>,
    /// The schema of the outbox, a plain SQL identifier.
    pub(crate) schema: String,
    /// What `pg_stat_activity` shows.
    pub(crate) application_name: String,
    /// The longest wait for one connection.
    pub(crate) connect_timeout: Duration,
    /// How long sent data may stay unacknowledged.
    pub(crate) tcp_user_timeout: Duration,
}

/// `[broker]`
#[derive(Debug, Clone)]
pub(crate) struct BrokerConfig {
    /// At least one; tried in turn. User, password and virtual host are final.
    pub(crate) endpoints: Vec<BrokerEndpoint>,
    /// TLS to all of them; `None` for plain text, which is then to this machine or was asked for.
    pub(crate) tls: Option<Tls>,
    /// What RabbitMQ's management page shows.
    pub(crate) connection_name: String,
    /// Whole seconds.
    pub(crate) heartbeat: Duration,
    /// The longest wait for one connection.
    pub(crate) connect_timeout: Duration,
}

impl BrokerConfig {
    /// The URLs without their passwords.
    pub(crate) fn shown(&self) -> String {
        let shown: Vec<_> = self.endpoints.iter().map(ToString::to_string).collect();
        shown.join(",")
    }

    /// The file with the token that logs in, where one does. All endpoints share it.
    pub(crate) fn token_file(&self) -> Option<&TokenFile> {
        self.endpoints
            .iter()
            .find_map(|endpoint| match &endpoint.login {
                BrokerLogin::Token { file, .. } => Some(file),
                BrokerLogin::Password { .. } | BrokerLogin::Certificate => None,
            })
    }
}

/// `[database.tls] mode`, `[broker.tls] mode` and `[tracing.tls] mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsMode {
    /// Plain text, whoever may read it on the way.
    Disable,
    /// TLS.
    On(Mode),
}

/// `[broker] auth`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BrokerAuth {
    /// With user name and password, or with a token.
    Plain,
    /// With the client certificate.
    External,
}

/// `[relay]`
#[derive(Debug, Clone)]
pub(crate) struct RelayConfig {
    /// This relay's name among others.
    pub(crate) name: String,
    /// The value of the label `outbox`.
    pub(crate) outbox: String,
    /// 1 to 64.
    pub(crate) workers: u32,
    /// 1 to 10,000.
    pub(crate) batch_rows: u32,
    /// At least 1.
    pub(crate) batch_bytes: u64,
    /// At least 1.
    pub(crate) max_message_bytes: u64,
    /// The safety poll.
    pub(crate) poll_interval: Duration,
    /// The longest wait for the broker's confirm.
    pub(crate) confirm_timeout: Duration,
    /// The longest silence while others of a batch are confirmed.
    pub(crate) straggler_timeout: Duration,
    /// How long a shutdown waits for what is in flight.
    pub(crate) shutdown_grace: Duration,
}

/// `[dead_letters]`
#[derive(Debug, Clone)]
pub(crate) struct DeadLettersConfig {
    /// After how long they are deleted; `None` keeps them until a person decides.
    pub(crate) retention: Option<Duration>,
}

/// `[ordering]`
#[derive(Debug, Clone)]
pub(crate) struct OrderingConfig {
    /// What the loop does.
    pub(crate) policy: Ordering,
    /// How they are sent.
    pub(crate) sending: OrderingSettings,
}

/// `[wakeup]`
#[derive(Debug, Clone)]
pub(crate) struct WakeupConfig {
    /// Whether the relay listens for notifications.
    pub(crate) notify: bool,
    /// From how many messages a second on producers need not notify.
    pub(crate) quiet_above: u32,
}

/// `[metrics]`
#[derive(Debug, Clone)]
pub(crate) struct MetricsConfig {
    /// How often lag and backlog are measured.
    pub(crate) sample_interval: Duration,
    /// Up to where the backlog is counted.
    pub(crate) backlog_limit: u32,
    /// How many exchanges get a series of their own.
    pub(crate) max_exchanges: u32,
}

/// `[tracing]`
#[derive(Debug, Clone)]
#[cfg_attr(
    not(feature = "opentelemetry"),
    expect(dead_code, reason = "nothing sends spans")
)]
pub(crate) struct TracingConfig {
    /// Where spans go, `None` for nowhere.
    pub(crate) collector: Option<CollectorConfig>,
    /// `service.name`
    pub(crate) service_name: String,
    /// What else is said of this process in all spans.
    pub(crate) resource: Vec<(String, String)>,
    /// Which part of the messages without a trace context get a span, 0 to 1.
    pub(crate) sample_ratio: f64,
    /// The longest wait for the collector's answer.
    pub(crate) timeout: Duration,
    /// How many spans may wait.
    pub(crate) max_queued_spans: u32,
}

/// `[tracing] endpoint` and `[tracing.tls]`
#[derive(Debug, Clone)]
#[cfg_attr(
    not(feature = "opentelemetry"),
    expect(dead_code, reason = "nothing sends spans")
)]
pub(crate) struct CollectorConfig {
    /// Host name or IP address, an IPv6 address without brackets.
    pub(crate) host: String,
    /// TCP port.
    pub(crate) port: u16,
    /// `None` for plain text, which is then to this machine or was asked for.
    pub(crate) tls: Option<Tls>,
}

/// `[http]`
#[derive(Debug, Clone)]
pub(crate) struct HttpConfig {
    /// Where to listen, `None` for not at all.
    pub(crate) listen: Option<SocketAddr>,
}

/// `[log]`
#[derive(Debug, Clone)]
pub(crate) struct LogConfig {
    /// For people or for collectors.
    pub(crate) format: LogFormat,
    /// Checked directives for tracing's `EnvFilter`.
    pub(crate) level: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One flat JSON object a line.
    Json,
}
