//! From the configuration to the settings of each component. No component sees the configuration.

use std::time::Duration;

use postrider_postgres::{Database, Schema, Settings as DatabaseSettings};
use postrider_rabbitmq::Login;
use postrider_relay::Link;
use secrecy::ExposeSecret;

use crate::config::{BrokerConfig, BrokerLogin, Config, DatabaseConfig};

/// No statement of the relay takes long; one that does is in the way of something, or the server is.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How much longer than the broker's time to confirm a claim may stay open before the server ends
/// it. A relay that was paused, or lost its power, holds its rows for this long at most.
const CLAIM_MARGIN: Duration = Duration::from_secs(30);
/// Beside the workers' connections: for lag and backlog, to watch the outbox, for due times, to look after blocked keys beside them, for
/// probes, for late confirms.
const SERVICE_CONNECTIONS: usize = 6;
/// For retention, where there is one: no worker waits for what purges.
const RETENTION_CONNECTIONS: usize = 1;
/// Beside the pool: the session that listens.
const LISTENER_CONNECTIONS: usize = 1;

/// The database for a command that looks or writes once.
///
/// # Errors
/// When the URL or the schema's name cannot be used.
pub(crate) fn database_for_command(
    config: &DatabaseConfig,
) -> Result<Database, postrider_postgres::Error> {
    Database::new(DatabaseSettings {
        connections: 1,
        ..database_settings(config)?
    })
}

/// The database for the relay: a connection for each worker, and those for what measures, watches and probes.
///
/// # Errors
/// When the URL or the schema's name cannot be used.
pub(crate) fn database_for_relay(config: &Config) -> Result<Database, postrider_postgres::Error> {
    Database::new(DatabaseSettings {
        // Room for retention, which a reload may turn on; nothing is opened before it is used.
        connections: workers(config) + SERVICE_CONNECTIONS + RETENTION_CONNECTIONS,
        idle_in_transaction_timeout: config.relay.confirm_timeout + CLAIM_MARGIN,
        ..database_settings(&config.database)?
    })
}

/// How many connections the relay opens to the database at most.
pub(crate) fn database_connections(config: &Config) -> usize {
    let retention = match config.dead_letters.retention {
        Some(_) => RETENTION_CONNECTIONS,
        None => 0,
    };
    workers(config) + SERVICE_CONNECTIONS + retention + LISTENER_CONNECTIONS
}

/// The database for a look at it that takes no longer than this for any one question. One of its two connections
/// is there to see whether the other is shared.
///
/// # Errors
/// When the URL or the schema's name cannot be used.
pub(crate) fn database_for_check(
    config: &DatabaseConfig,
    patience: Duration,
) -> Result<Database, postrider_postgres::Error> {
    Database::new(DatabaseSettings {
        connections: 2,
        connect_timeout: config.connect_timeout.min(patience),
        statement_timeout: patience,
        ..database_settings(config)?
    })
}

fn database_settings(
    config: &DatabaseConfig,
) -> Result<DatabaseSettings, postrider_postgres::Error> {
    Ok(DatabaseSettings {
        tls: config.tls.clone(),
        schema: Schema::new(&config.schema)?,
        application_name: config.application_name.clone(),
        connect_timeout: config.connect_timeout,
        tcp_user_timeout: config.tcp_user_timeout,
        statement_timeout: STATEMENT_TIMEOUT,
        ..DatabaseSettings::new(config.url.expose_secret())
    })
}

/// The broker, or brokers.
pub(crate) fn broker(config: &Config) -> Link {
    Link::new(postrider_rabbitmq::Settings {
        ordering: config.ordering.sending.clone(),
        ..broker_settings(&config.broker)
    })
}

/// How to reach it.
pub(crate) fn broker_settings(config: &BrokerConfig) -> postrider_rabbitmq::Settings {
    postrider_rabbitmq::Settings {
        brokers: config
            .endpoints
            .iter()
            .map(|endpoint| postrider_rabbitmq::Broker {
                host: endpoint.host.clone(),
                port: endpoint.port,
                login: match &endpoint.login {
                    BrokerLogin::Password { username, password } => Login::Password {
                        username: username.clone(),
                        password: password.expose_secret().to_owned(),
                    },
                    BrokerLogin::Certificate => Login::Certificate,
                    BrokerLogin::Token { username, file } => Login::Token {
                        username: username.clone().unwrap_or_default(),
                        file: file.clone(),
                    },
                },
                vhost: endpoint.vhost.clone(),
            })
            .collect(),
        tls: config.tls.clone(),
        connection_name: config.connection_name.clone(),
        heartbeat: config.heartbeat,
        connect_timeout: config.connect_timeout,
        ordering: postrider_rabbitmq::OrderingSettings::default(),
    }
}

/// The loop. Nobody is told of its publishes.
pub(crate) fn relay(config: &Config) -> postrider_relay::Settings {
    let relay = &config.relay;
    postrider_relay::Settings {
        name: relay.name.clone(),
        workers: workers(config),
        confirm_timeout: relay.confirm_timeout,
        notify: config.wakeup.notify,
        observer: None,
        reloadable: reloadable(config),
    }
}

/// What of it a running loop takes over.
pub(crate) fn reloadable(config: &Config) -> postrider_relay::Reloadable {
    let relay = &config.relay;
    postrider_relay::Reloadable {
        batch_rows: relay.batch_rows,
        batch_bytes: relay.batch_bytes,
        max_message_bytes: relay.max_message_bytes,
        poll_interval: relay.poll_interval,
        straggler_timeout: relay.straggler_timeout,
        shutdown_grace: relay.shutdown_grace,
        quiet_above: config.wakeup.quiet_above,
        sample_interval: config.metrics.sample_interval,
        backlog_limit: u64::from(config.metrics.backlog_limit),
        retry: config.retry,
        unroutable: config.unroutable.clone(),
        ordering: config.ordering.policy,
        dead_letter_retention: config.dead_letters.retention,
    }
}

fn workers(config: &Config) -> usize {
    usize::try_from(config.relay.workers).unwrap_or(usize::MAX)
}
