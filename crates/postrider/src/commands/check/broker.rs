//! Asks the broker. What AMQP does not tell is not guessed: of which type an exchange is, and which queues are bound
//! to it.

use postrider_core::with_causes;
use postrider_postgres::{NamedExchanges, Unroutable};
use postrider_rabbitmq::{
    Alarm, Connection, Found, MayPublish, Settings, examine_exchange_type, greeting,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::PATIENCE;
use super::finding::Finding;
use super::verdict::{self, broker as judge, broker::Exchange};
use crate::config::{BrokerConfig, Config, is_loopback};

const CONNECTION: &str = "broker_connection";
const ENCRYPTION: &str = "broker_encryption";
const VERSION: &str = "broker_version";
const CHANNELS: &str = "broker_channels";
const ALARM: &str = "broker_alarm";
const EXCHANGES: &str = "exchanges";
const PERMISSIONS: &str = "exchange_permissions";
const UNROUTABLE: &str = "unroutable";
const SIZE: &str = "message_size";

/// The type of a plugin's exchanges that return what they deliver later.
const DELAYED: &str = "x-delayed-message";

/// Which exchanges to ask for.
pub(super) struct Named {
    /// `None` where the outbox could not be looked into.
    pub(super) by_outbox: Option<NamedExchanges>,
    pub(super) by_configuration: Vec<String>,
    pub(super) unroutable: Option<Vec<Unroutable>>,
}

/// The brokers, as they are shown, each with what is wrong with it; and one that is there.
pub(super) struct Nodes {
    tried: Vec<(String, Option<String>)>,
    connection: Option<(Connection, Settings)>,
}

/// Connects to all of them at once.
pub(super) async fn connect(settings: &Settings, config: &BrokerConfig) -> Nodes {
    let mut opening = JoinSet::new();
    for (position, broker) in settings.brokers.iter().enumerate() {
        let alone = Settings {
            brokers: vec![broker.clone()],
            ..settings.clone()
        };
        opening.spawn(async move { (position, Connection::open(&alone, 0).await, alone) });
    }
    let mut opened = opening.join_all().await;
    opened.sort_by_key(|(position, ..)| *position);
    let mut nodes = Nodes {
        tried: Vec::new(),
        connection: None,
    };
    for ((_, opened, alone), endpoint) in opened.into_iter().zip(&config.endpoints) {
        let error = match opened {
            Ok(connection) => {
                nodes.connection.get_or_insert((connection, alone));
                None
            }
            Err(error) => Some(with_causes(&error)),
        };
        nodes.tried.push((endpoint.to_string(), error));
    }
    nodes
}

/// Asks for everything, until the deadline.
pub(super) async fn examine(
    nodes: Nodes,
    settings: &Settings,
    config: &Config,
    named: Named,
    deadline: Instant,
) -> Vec<Finding> {
    let mut findings = vec![judge::connection(CONNECTION, &nodes.tried)];
    let mode = config.broker.tls.as_ref().map(|tls| tls.settings().mode);
    let elsewhere = settings
        .brokers
        .iter()
        .any(|broker| !is_loopback(&broker.host));
    let Some((connection, settings)) = nodes.connection else {
        findings.extend(
            [
                ENCRYPTION,
                VERSION,
                CHANNELS,
                ALARM,
                EXCHANGES,
                PERMISSIONS,
                UNROUTABLE,
                SIZE,
            ]
            .map(|check| Finding::skipped(check, "no broker can be reached")),
        );
        return findings;
    };
    findings.push(verdict::encryption(
        ENCRYPTION,
        "broker.tls",
        mode,
        None,
        elsewhere,
    ));
    // An alarm, and a kind of exchange that is not known, cost the connection on which they are asked for.
    let (said, alarm, delays, exchanges) = tokio::join!(
        greeting(&settings, connection.peer()),
        alarm(&settings),
        examine_exchange_type(&settings, DELAYED),
        look_at(&connection, &named, deadline),
    );
    let delays = delays.ok().flatten();
    findings.extend([
        judge::version(VERSION, said.as_ref()),
        judge::channels(CHANNELS, connection.channel_max(), config.relay.workers),
        judge::alarm(ALARM, &alarm),
    ]);
    let capped = named.by_outbox.as_ref().is_some_and(|named| named.capped);
    if named.by_outbox.is_none() {
        let why =
            "the outbox cannot be looked into; only what the configuration names was asked for";
        findings.push(Finding::skipped(EXCHANGES, why));
    }
    findings.extend(judge::exchanges(EXCHANGES, &exchanges, capped));
    findings.extend(judge::permissions(PERMISSIONS, &exchanges));
    match &named.unroutable {
        None => findings.push(Finding::skipped(
            UNROUTABLE,
            "the outbox cannot be looked into",
        )),
        Some(failed) => findings.extend(judge::unroutable(
            UNROUTABLE,
            failed,
            &config.unroutable,
            delays,
        )),
    }
    findings.push(judge::message_size(
        SIZE,
        config.relay.max_message_bytes,
        said.as_ref(),
    ));
    connection.close(PATIENCE).await;
    findings
}

async fn alarm(settings: &Settings) -> Alarm {
    match Connection::open(settings, 0).await {
        Ok(connection) => connection.alarm().await,
        Err(error) => {
            tracing::debug!(%error, "no second connection");
            Alarm::Unknown
        }
    }
}

/// The exchanges one after the other. The default one last: under an alarm nothing is heard after it.
async fn look_at(connection: &Connection, named: &Named, deadline: Instant) -> Vec<Exchange> {
    let mut used = named
        .by_outbox
        .as_ref()
        .map(|named| named.found.clone())
        .unwrap_or_default()
        .into_iter()
        .map(|(name, used)| (name, Some(used)))
        .collect::<std::collections::BTreeMap<_, _>>();
    for name in &named.by_configuration {
        used.entry(name.clone()).or_default();
    }
    let mut exchanges = Vec::new();
    for (name, used) in used.into_iter().rev() {
        let asked = async {
            let found = connection.find_exchange(&name).await;
            let may_publish = match found {
                Found::Yes => connection.may_publish(&name).await,
                Found::No(_) | Found::Unknown => MayPublish::Unknown,
            };
            (found, may_publish)
        };
        let (found, may_publish) = timeout_at(deadline, asked)
            .await
            .unwrap_or((Found::Unknown, MayPublish::Unknown));
        exchanges.push(Exchange {
            name,
            used,
            found,
            may_publish,
        });
    }
    exchanges.reverse();
    exchanges
}
