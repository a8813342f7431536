//! From what was said to validated types, one for each component.

use std::num::NonZeroU32;

use postrider_core::{RetryPolicy, RetryPolicyError, UnroutablePolicies};
use postrider_rabbitmq::OrderingSettings;
use postrider_relay::Ordering;
use postrider_tls::Tls;
use secrecy::{ExposeSecret, SecretString};

use super::database_url::{self, DatabaseUrl};
use super::exchanges;
use super::keys;
use super::kind::{Kind, quoted};
use super::reader::Reader;
use super::source::Source;
use super::tls;
use super::{
    DatabaseConfig, DeadLettersConfig, HttpConfig, LogConfig, MetricsConfig, OrderingConfig,
    RelayConfig, TlsMode, WakeupConfig,
};

pub(crate) fn schema(reader: &mut Reader<'_>) -> Option<String> {
    reader.value(&keys::DATABASE_SCHEMA)
}

pub(crate) fn database(reader: &mut Reader<'_>, schema: Option<String>) -> Option<DatabaseConfig> {
    let application_name = reader.value(&keys::DATABASE_APPLICATION_NAME);
    let connect_timeout = reader.value(&keys::DATABASE_CONNECT_TIMEOUT);
    let tcp_user_timeout = reader.value(&keys::DATABASE_TCP_USER_TIMEOUT);
    let Some((url, source)) = database_secret(reader) else {
        // What is wrong with it is said all the same.
        tls::DATABASE.read(reader);
        return None;
    };
    let parsed = match database_url::parse(url.expose_secret()) {
        Ok(parsed) => parsed,
        Err(message) => {
            reader.refuse(&source, keys::DATABASE_URL.name, message);
            tls::DATABASE.read(reader);
            return None;
        }
    };
    let tls = database_tls(reader, &parsed, &source)?;
    reader.note(keys::DATABASE_URL.name, quoted(&parsed.shown), source);
    Some(DatabaseConfig {
        url: parsed.url,
        tls,
        shown: parsed.shown,
        database: parsed.database,
        schema: schema?,
        application_name: application_name?,
        connect_timeout: connect_timeout?,
        tcp_user_timeout: tcp_user_timeout?,
    })
}

/// TLS or not, by the section, `sslmode`, and where nobody says anything by the hosts.
fn database_tls(
    reader: &mut Reader<'_>,
    url: &DatabaseUrl,
    source: &Source,
) -> Option<Option<Tls>> {
    let section = &tls::DATABASE;
    let said = section.read(reader)?;
    let mode = match (url.sslmode, said.mode) {
        (Some(in_url), Some(in_section)) if in_url != in_section => {
            let place = reader.source_of(section.mode.name);
            reader.refuse(
                &place,
                section.mode.name,
                format!("is another than `sslmode` in the database's URL ({source}): keep one of the two"),
            );
            return None;
        }
        (Some(mode), _) | (None, Some(mode)) => mode,
        (None, None) if url.local && section.said_beside_mode(reader).is_none() => TlsMode::Disable,
        (None, None) => tls::VERIFY_FULL,
    };
    section.note_default(reader, mode);
    match mode {
        TlsMode::Disable if url.channel_binding => {
            reader.refuse(
                source,
                keys::DATABASE_URL.name,
                "has `channel_binding=require`, which needs TLS: set [database.tls] mode = \"verify-full\"",
            );
            None
        }
        TlsMode::Disable => {
            section.disabled(reader);
            Some(None)
        }
        TlsMode::On(_) if url.unix_socket => {
            reader.refuse(
                source,
                keys::DATABASE_URL.name,
                "names a Unix socket, which knows no TLS: connect by TCP, or leave [database.tls] and `sslmode` out",
            );
            None
        }
        TlsMode::On(mode) => section.enabled(reader, said, mode).map(Some),
    }
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
        if let Some(database) = database {
            warn_of_shared_label(reader, database, &outbox);
        }
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

/// Another schema is for a database that holds several outboxes, and nobody set the label, so that all of them get the same. Not
/// refused: there may be but one.
fn warn_of_shared_label(reader: &mut Reader<'_>, database: &DatabaseConfig, outbox: &str) {
    let schema = database.schema.as_str();
    let name = keys::RELAY_OUTBOX.name;
    if keys::DATABASE_SCHEMA.default != Some(schema) {
        reader.warnings.push(format!(
            "{name}: is not set, so the metrics of the outbox in schema {schema} have the label outbox={}, as have those of any other \
             outbox in this database: an alert takes them for one, and where one stands still it is hidden by another that is well. \
             Set it (or {}) to a name of this outbox alone",
            quoted(outbox),
            name.variable()
        ));
    }
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

pub(crate) fn ordering(reader: &mut Reader<'_>) -> Option<OrderingConfig> {
    let horizon = reader.value(&keys::ORDERING_HORIZON);
    let after_dead_letter = reader.value(&keys::ORDERING_AFTER_DEAD_LETTER);
    let in_flight_per_key = reader.value(&keys::ORDERING_IN_FLIGHT_PER_KEY);
    let key_header = reader.value(&keys::ORDERING_KEY_HEADER);
    let seq_header = reader.value(&keys::ORDERING_SEQ_HEADER);
    if let (Some(Some(key)), Some(Some(seq))) = (&key_header, &seq_header)
        && key == seq
    {
        let name = match reader.source_of(keys::ORDERING_SEQ_HEADER.name) {
            Source::Default => keys::ORDERING_KEY_HEADER.name,
            _ => keys::ORDERING_SEQ_HEADER.name,
        };
        let source = reader.source_of(name);
        let message = format!(
            "{} would be the header of both the key and the place: choose another name, or \"off\"",
            quoted(seq.as_str())
        );
        reader.refuse(&source, name, message);
        return None;
    }
    Some(OrderingConfig {
        policy: Ordering {
            horizon: horizon?,
            after_dead_letter: after_dead_letter?,
        },
        sending: OrderingSettings {
            // The key's bounds keep it above nothing.
            in_flight_per_key: NonZeroU32::new(in_flight_per_key?).unwrap_or(NonZeroU32::MIN),
            key_header: key_header?,
            seq_header: seq_header?,
            ..OrderingSettings::default()
        },
    })
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
