//! What has changed between two configurations, key by key, and whether a running daemon can take it over.

use secrecy::ExposeSecret;

use super::exchanges::heading;
use super::keys::{self, AnyKey, KeyName};
use super::load::Loaded;
use super::reader::Setting;
use super::report::ConfigError;
use super::{BrokerLogin, Config};

/// The keys that a running daemon takes over, beside those of [`keys::EXCHANGES`]. Everything else was used up when the
/// daemon started: in connections, in tasks, in the names of metrics.
pub(crate) static RELOADED: &[&dyn AnyKey] = &[
    &keys::RELAY_BATCH_ROWS,
    &keys::RELAY_BATCH_BYTES,
    &keys::RELAY_MAX_MESSAGE_BYTES,
    &keys::RELAY_POLL_INTERVAL,
    &keys::RELAY_STRAGGLER_TIMEOUT,
    &keys::RELAY_SHUTDOWN_GRACE,
    &keys::RETRY_MAX_ATTEMPTS,
    &keys::RETRY_INITIAL_DELAY,
    &keys::RETRY_MAX_DELAY,
    &keys::RETRY_MULTIPLIER,
    &keys::UNROUTABLE_POLICY,
    &keys::DEAD_LETTERS_RETENTION,
    &keys::ORDERING_HORIZON,
    &keys::ORDERING_AFTER_DEAD_LETTER,
    &keys::WAKEUP_QUIET_ABOVE,
    &keys::METRICS_SAMPLE_INTERVAL,
    &keys::METRICS_BACKLOG_LIMIT,
    &keys::LOG_LEVEL,
];

/// A complete configuration with every effective value as it may be shown.
#[derive(Debug, Clone)]
pub(crate) struct Effective {
    pub(crate) config: Config,
    settings: Vec<Setting>,
}

impl Loaded {
    /// Everything, for `run`.
    ///
    /// # Errors
    /// As [`Loaded::complete`].
    pub(crate) fn effective(self) -> Result<Effective, ConfigError> {
        let settings = self.settings.clone();
        Ok(Effective {
            config: self.complete()?,
            settings,
        })
    }
}

/// Keys as people look for them, `[relay] workers`, in the order of the documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Those that are taken over.
    pub(crate) reloaded: Vec<String>,
    /// Those that stay as they were until the next start.
    pub(crate) need_restart: Vec<String>,
}

impl Changes {
    /// What is new in `now`. The daemon started with `start`, and `running` is what it took over last.
    pub(crate) fn between(start: &Effective, running: &Effective, now: &Effective) -> Self {
        Self {
            reloaded: different(running, now, true),
            need_restart: different(start, now, false),
        }
    }
}

/// Whether a running daemon takes the key over.
pub(crate) fn reloads(name: KeyName) -> bool {
    name.section == keys::EXCHANGES || RELOADED.iter().any(|key| key.name() == name)
}

fn different(before: &Effective, now: &Effective, reloaded: bool) -> Vec<String> {
    let mut names = Vec::new();
    let both = before.settings.iter().chain(&now.settings);
    for setting in both.filter(|setting| reloads(setting.name) == reloaded) {
        let secret = is_url(setting.name) && !same_secrets(setting.name, before, now);
        if secret || value(before, setting) != value(now, setting) {
            let name = shown(setting);
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

fn value<'a>(of: &'a Effective, asked: &Setting) -> Option<&'a str> {
    of.settings
        .iter()
        .find(|setting| setting.name == asked.name && setting.exchange == asked.exchange)
        .map(|setting| setting.value.as_str())
}

fn shown(setting: &Setting) -> String {
    match &setting.exchange {
        Some(exchange) => format!("{} {}", heading(exchange), setting.name.key),
        None => setting.name.to_string(),
    }
}

/// Whether passwords are hidden in what is shown of the key.
fn is_url(name: KeyName) -> bool {
    [
        keys::DATABASE_URL.name,
        keys::BROKER_URL.name,
        keys::BROKER_URLS.name,
    ]
    .contains(&name)
}

fn same_secrets(name: KeyName, before: &Effective, now: &Effective) -> bool {
    let (before, now) = (&before.config, &now.config);
    if name == keys::DATABASE_URL.name {
        return before.database.url.expose_secret() == now.database.url.expose_secret();
    }
    fn passwords(config: &Config) -> impl Iterator<Item = Option<&str>> {
        let endpoints = config.broker.endpoints.iter();
        endpoints.map(|endpoint| match &endpoint.login {
            BrokerLogin::Password { password, .. } => Some(password.expose_secret()),
            BrokerLogin::Certificate | BrokerLogin::Token { .. } => None,
        })
    }
    passwords(before).eq(passwords(now))
}
