//! From what was said to validated types, one for each component.

use postrider_core::{RetryPolicy, RetryPolicyError, UnroutablePolicies};
use secrecy::{ExposeSecret, SecretString};

use super::broker_url::{self, BrokerEndpoint};
use super::database_url;
use super::exchanges;
use super::keys;
use super::kind::{Kind, quoted};
use super::reader::Reader;
use super::source::Source;
use super::{
    BrokerConfig, DatabaseConfig, DeadLettersConfig, HttpConfig, LogConfig, MetricsConfig,
    RelayConfig, WakeupConfig,
};

pub(crate) fn schema(reader: &mut Reader<'_>) -> Option<String> {
    reader.value(&keys::DATABASE_SCHEMA)
}

pub(crate) fn database(reader: &mut Reader<'_>, schema: Option<String>) -> Option<DatabaseConfig> {
    let application_name = reader.value(&keys::DATABASE_APPLICATION_NAME);
    let connect_timeout = reader.value(&keys::DATABASE_CONNECT_TIMEOUT);
    let tcp_user_timeout = reader.value(&keys::DATABASE_TCP_USER_TIMEOUT);
    let (url, source) = database_secret(reader)?;
    let parsed = match database_url::parse(url.expose_secret()) {
        Ok(parsed) => parsed,
        Err(message) => {
            reader.refuse(&source, keys::DATABASE_URL.name, message);
            return None;
        }
    };
    reader.note(keys::DATABASE_URL.name, quoted(&parsed.shown), source);
    Some(DatabaseConfig {
        url,
        shown: parsed.shown,
        database: parsed.database,
        schema: schema?,
        application_name: application_name?,
        connect_timeout: connect_timeout?,
        tcp_user_timeout: tcp_user_timeout?,
    })
}

fn database_secret(reader: &mut Reader<'_>) -> Option<(SecretString, Source)> {
    let names = [keys::DATABASE_URL.name, keys::DATABASE_URL_FILE.name];
    let before = reader.problems.len();
    match reader.one_of(&names) {
        Some((name, given, source)) if name == keys::DATABASE_URL.name => {
            reader.parsed(&keys::DATABASE_URL, &given, &source)
        }
        Some((_, given, source)) => reader
            .secret_file(&keys::DATABASE_URL_FILE, &given, &source)
            .map(|(url, path)| (url, Source::SecretFile(path))),
        None if reader.problems.len() > before => None,
        None => reader
            .credential("database-url")
            .map(|(url, _)| (url, Source::Credential("database-url"))),
    }
}

pub(crate) fn broker(reader: &mut Reader<'_>, relay_name: Option<&str>) -> Option<BrokerConfig> {
    let heartbeat = reader.value(&keys::BROKER_HEARTBEAT);
    let connect_timeout = reader.value(&keys::BROKER_CONNECT_TIMEOUT);
    let username = reader.value(&keys::BROKER_USERNAME);
    let vhost = reader.value(&keys::BROKER_VHOST);
    let password = broker_password(reader);
    let connection_name = reader.value(&keys::BROKER_CONNECTION_NAME).or_else(|| {
        let name = format!("postrider {}", relay_name?);
        reader.note(
            keys::BROKER_CONNECTION_NAME.name,
            keys::BROKER_CONNECTION_NAME.kind.show(&name),
            Source::Default,
        );
        Some(name)
    });
    let before = reader.problems.len();
    let (urls, name, source) = broker_secrets(reader)?;
    let mut endpoints = Vec::new();
    for (place, url) in urls.iter().enumerate() {
        match broker_url::parse(url.expose_secret()) {
            Ok(mut endpoint) => {
                if let Some(username) = &username {
                    endpoint.username.clone_from(username);
                }
                if let Some(password) = &password {
                    endpoint.password = password.clone();
                }
                if let Some(vhost) = &vhost {
                    endpoint.vhost.clone_from(vhost);
                }
                endpoints.push(endpoint);
            }
            Err(message) if urls.len() > 1 => {
                reader.refuse(&source, name, format!("number {}: {message}", place + 1));
            }
            Err(message) => reader.refuse(&source, name, message),
        }
    }
    if reader.problems.len() > before {
        return None;
    }
    reader.note(
        name,
        shown(&endpoints, name == keys::BROKER_URLS.name),
        source,
    );
    Some(BrokerConfig {
        endpoints,
        connection_name: connection_name?,
        heartbeat: heartbeat?,
        connect_timeout: connect_timeout?,
    })
}

fn shown(endpoints: &[BrokerEndpoint], several: bool) -> String {
    let urls: Vec<_> = endpoints
        .iter()
        .map(|endpoint| quoted(&endpoint.to_string()))
        .collect();
    if several {
        format!("[{}]", urls.join(", "))
    } else {
        urls.join(", ")
    }
}

fn broker_secrets(reader: &mut Reader<'_>) -> Option<(Vec<SecretString>, keys::KeyName, Source)> {
    let url = keys::BROKER_URL.name;
    let urls = keys::BROKER_URLS.name;
    let before = reader.problems.len();
    match reader.one_of(&[url, urls, keys::BROKER_URL_FILE.name]) {
        Some((name, given, source)) if name == url => reader
            .parsed(&keys::BROKER_URL, &given, &source)
            .map(|(secret, source)| (vec![secret], url, source)),
        Some((name, given, source)) if name == urls => reader
            .parsed(&keys::BROKER_URLS, &given, &source)
            .map(|(secrets, source)| (secrets, urls, source)),
        Some((_, given, source)) => reader
            .secret_file(&keys::BROKER_URL_FILE, &given, &source)
            .map(|(secret, path)| (vec![secret], url, Source::SecretFile(path))),
        None if reader.problems.len() > before => None,
        None => reader
            .credential("broker-url")
            .map(|(secret, _)| (vec![secret], url, Source::Credential("broker-url"))),
    }
}

fn broker_password(reader: &mut Reader<'_>) -> Option<SecretString> {
    let key = &keys::BROKER_PASSWORD_FILE;
    let (password, path, source) = match reader.one_of(&[key.name]) {
        Some((_, given, source)) => {
            let (password, path) = reader.secret_file(key, &given, &source)?;
            (password, path, source)
        }
        None => {
            let (password, path) = reader.credential("broker-password")?;
            (password, path, Source::Credential("broker-password"))
        }
    };
    reader.note(key.name, key.kind.show(&path), source);
    Some(password)
}

pub(crate) fn relay(
    reader: &mut Reader<'_>,
    host_name: &str,
    database: Option<&DatabaseConfig>,
) -> Option<RelayConfig> {
    let name = reader.value(&keys::RELAY_NAME).unwrap_or_else(|| {
        reader.note(keys::RELAY_NAME.name, quoted(host_name), Source::Default);
        host_name.to_owned()
    });
    let outbox = reader.value(&keys::RELAY_OUTBOX).unwrap_or_else(|| {
        let outbox = database
            .and_then(|database| database.database.clone())
            .unwrap_or_else(|| "outbox".to_owned());
        reader.note(keys::RELAY_OUTBOX.name, quoted(&outbox), Source::Default);
        outbox
    });
    let workers = reader.value(&keys::RELAY_WORKERS);
    let batch_rows = reader.value(&keys::RELAY_BATCH_ROWS);
    let batch_bytes = reader.value(&keys::RELAY_BATCH_BYTES);
    let max_message_bytes = reader.value(&keys::RELAY_MAX_MESSAGE_BYTES);
    let poll_interval = reader.value(&keys::RELAY_POLL_INTERVAL);
    let confirm_timeout = reader.value(&keys::RELAY_CONFIRM_TIMEOUT);
    let straggler_timeout = reader.value(&keys::RELAY_STRAGGLER_TIMEOUT);
    let shutdown_grace = reader.value(&keys::RELAY_SHUTDOWN_GRACE);
    Some(RelayConfig {
        name,
        outbox,
        workers: workers?,
        batch_rows: batch_rows?,
        batch_bytes: batch_bytes?,
        max_message_bytes: max_message_bytes?,
        poll_interval: poll_interval?,
        confirm_timeout: confirm_timeout?,
        straggler_timeout: straggler_timeout?,
        shutdown_grace: shutdown_grace?,
    })
}

pub(crate) fn retry(reader: &mut Reader<'_>) -> Option<RetryPolicy> {
    let max_attempts = reader.value(&keys::RETRY_MAX_ATTEMPTS);
    let initial_delay = reader.value(&keys::RETRY_INITIAL_DELAY);
    let max_delay = reader.value(&keys::RETRY_MAX_DELAY);
    let multiplier = reader.value(&keys::RETRY_MULTIPLIER);
    let (initial_delay, max_delay) = (initial_delay?, max_delay?);
    let built = RetryPolicy::new(max_attempts?, initial_delay, max_delay, multiplier?);
    let (name, message) = match built {
        Ok(policy) => return Some(policy),
        Err(error @ RetryPolicyError::NoAttempts) => {
            (keys::RETRY_MAX_ATTEMPTS.name, error.to_string())
        }
        Err(error @ RetryPolicyError::Multiplier) => {
            (keys::RETRY_MULTIPLIER.name, error.to_string())
        }
        Err(RetryPolicyError::Delays) => {
            let message = format!(
                "initial_delay ({}) is longer than max_delay ({})",
                keys::RETRY_INITIAL_DELAY.kind.show(&initial_delay),
                keys::RETRY_MAX_DELAY.kind.show(&max_delay),
            );
            // Whoever said only one of the two is led to that one.
            let name = match reader.source_of(keys::RETRY_MAX_DELAY.name) {
                Source::Default => keys::RETRY_INITIAL_DELAY.name,
                _ => keys::RETRY_MAX_DELAY.name,
            };
            (name, message)
        }
    };
    let source = reader.source_of(name);
    reader.refuse(&source, name, message);
    None
}

pub(crate) fn unroutable(reader: &mut Reader<'_>) -> Option<UnroutablePolicies> {
    let policy = reader.value(&keys::UNROUTABLE_POLICY);
    let by_exchange = exchanges::unroutable(reader);
    Some(UnroutablePolicies::new(policy?, by_exchange?))
}

pub(crate) fn dead_letters(reader: &mut Reader<'_>) -> DeadLettersConfig {
    DeadLettersConfig {
        retention: reader.value(&keys::DEAD_LETTERS_RETENTION),
    }
}

pub(crate) fn wakeup(reader: &mut Reader<'_>) -> Option<WakeupConfig> {
    let notify = reader.value(&keys::WAKEUP_NOTIFY);
    let quiet_above = reader.value(&keys::WAKEUP_QUIET_ABOVE);
    Some(WakeupConfig {
        notify: notify?,
        quiet_above: quiet_above?,
    })
}

pub(crate) fn metrics(reader: &mut Reader<'_>) -> Option<MetricsConfig> {
    let sample_interval = reader.value(&keys::METRICS_SAMPLE_INTERVAL);
    let backlog_limit = reader.value(&keys::METRICS_BACKLOG_LIMIT);
    let max_exchanges = reader.value(&keys::METRICS_MAX_EXCHANGES);
    Some(MetricsConfig {
        sample_interval: sample_interval?,
        backlog_limit: backlog_limit?,
        max_exchanges: max_exchanges?,
    })
}

pub(crate) fn http(reader: &mut Reader<'_>) -> Option<HttpConfig> {
    Some(HttpConfig {
        listen: reader.value(&keys::HTTP_LISTEN)?,
    })
}

pub(crate) fn log(reader: &mut Reader<'_>) -> Option<LogConfig> {
    let format = reader.value(&keys::LOG_FORMAT);
    let level = reader.value(&keys::LOG_LEVEL);
    Some(LogConfig {
        format: format?,
        level: level?,
    })
}
