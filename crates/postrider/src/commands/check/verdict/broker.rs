//! What is known of the broker: whether it takes messages, and where to.

use postrider_core::{UnroutablePolicies, UnroutablePolicy};
use postrider_postgres::{ExchangeUse, Unroutable};
use postrider_rabbitmq::{Alarm, Found, Greeting, MayPublish};

use super::super::finding::Finding;
use crate::table;

/// The oldest that is tested.
const OLDEST: (u64, u64) = (3, 10);
/// What RabbitMQ takes unless told otherwise, in bytes: from version 4 on, and before.
const DEFAULT_SIZES: [u64; 2] = [16 << 20, 128 << 20];
/// Channels that the relay opens beside those of its workers: to ask, to probe, and to replace those that hang.
const OTHER_CHANNELS: u32 = 4;

/// An exchange, and what the broker said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exchange {
    pub(crate) name: String,
    /// `None` where only the configuration names it.
    pub(crate) used: Option<ExchangeUse>,
    pub(crate) found: Found,
    pub(crate) may_publish: MayPublish,
}

impl Exchange {
    fn shown(&self) -> String {
        format!("'{}'", table::printable(&self.name))
    }

    /// Whether messages wait for it.
    fn is_needed(&self) -> bool {
        self.used.is_some_and(|used| used.to_send)
    }

    fn named_by(&self) -> &'static str {
        match self.used {
            Some(ExchangeUse { to_send: true, .. }) => "messages that wait",
            Some(_) => "dead letters",
            None => "the configuration",
        }
    }
}

/// The brokers of the configuration, each with what is wrong with it.
pub(crate) fn connection(check: &'static str, nodes: &[(String, Option<String>)]) -> Finding {
    let away: Vec<&str> = nodes
        .iter()
        .filter_map(|(_, error)| error.as_deref())
        .collect();
    let there: Vec<&str> = nodes
        .iter()
        .filter(|(_, error)| error.is_none())
        .map(|(node, _)| node.as_str())
        .collect();
    if there.is_empty() {
        Finding::failure(
            check,
            away.join("; "),
            "messages wait in the outbox until a broker can be reached",
        )
    } else if away.is_empty() {
        Finding::ok(check, there.join(", "))
    } else {
        Finding::warning(
            check,
            format!(
                "connected to {}, but not all: {}",
                there.join(", "),
                away.join("; ")
            ),
            "mend those, or take them out of [broker] urls",
        )
    }
}

pub(crate) fn version(check: &'static str, greeting: Option<&Greeting>) -> Finding {
    let Some(Greeting { product, version }) = greeting else {
        return Finding::warning(
            check,
            "the broker did not say what it is",
            "see that [broker] url leads to RabbitMQ itself",
        );
    };
    let shown = format!(
        "{} {}",
        table::printable(product),
        table::printable(version)
    );
    if product != "RabbitMQ" {
        return Finding::warning(
            check,
            format!("{shown}: nothing but RabbitMQ is tested"),
            "use RabbitMQ, or test what you rely on",
        );
    }
    match major_minor(version) {
        Some(found) if found < OLDEST => Finding::warning(
            check,
            format!(
                "{shown} is older than what is tested ({}.{})",
                OLDEST.0, OLDEST.1
            ),
            "upgrade the broker",
        ),
        Some(_) | None => Finding::ok(check, shown),
    }
}

fn major_minor(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(crate) fn alarm(check: &'static str, alarm: &Alarm) -> Finding {
    match alarm {
        Alarm::None => Finding::ok(check, "none: the broker takes messages"),
        Alarm::Raised(reason) => Finding::failure(
            check,
            format!("the broker takes no messages: {reason}; they wait in the outbox"),
            "free memory or disk there; it goes on by itself",
        ),
        Alarm::Unknown => Finding::warning(
            check,
            "the broker did not answer whether it takes messages",
            "see the broker's log",
        ),
    }
}

/// `channel_max` is 0 for any number.
pub(crate) fn channels(check: &'static str, channel_max: u16, workers: u32) -> Finding {
    let needed = workers.saturating_add(OTHER_CHANNELS);
    if channel_max != 0 && u32::from(channel_max) < needed {
        Finding::failure(
            check,
            format!(
                "the broker allows {channel_max} channels on a connection, the relay needs up to {needed}"
            ),
            "raise channel_max in rabbitmq.conf, or lower [relay] workers",
        )
    } else {
        Finding::ok(
            check,
            format!("the relay needs up to {needed} on a connection"),
        )
    }
}

/// One finding for each that is missing, or one for all. `capped`: there are more than were asked for.
pub(crate) fn exchanges(check: &'static str, exchanges: &[Exchange], capped: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for exchange in exchanges {
        let Found::No(_) = &exchange.found else {
            continue;
        };
        let text = format!(
            "there is no exchange {}, which {} name",
            exchange.shown(),
            exchange.named_by()
        );
        findings.push(if exchange.is_needed() {
            Finding::failure(
                check,
                text,
                "declare it, or correct the rows: what waits for it goes out then",
            )
        } else {
            Finding::warning(check, text, "declare it before something is sent there")
        });
    }
    let unknown = exchanges
        .iter()
        .filter(|exchange| exchange.found == Found::Unknown);
    findings.extend(unanswered(check, unknown.count()));
    if findings.is_empty() {
        let more = if capped {
            "; there are more than were asked for"
        } else {
            ""
        };
        let text = match exchanges.len() {
            0 => "neither the outbox nor the configuration names one".to_owned(),
            1 => "the one that is named exists".to_owned(),
            count => format!("all {count} that are named exist{more}"),
        };
        findings.push(Finding::ok(check, text));
    }
    findings
}

/// Of those that exist: one finding for each that is forbidden, or one for all.
pub(crate) fn permissions(check: &'static str, exchanges: &[Exchange]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let existing = exchanges
        .iter()
        .filter(|exchange| exchange.found == Found::Yes);
    for exchange in existing.clone() {
        let MayPublish::No(said) = &exchange.may_publish else {
            continue;
        };
        let text = format!(
            "the broker's user may not publish to exchange {}, which {} name: {said}",
            exchange.shown(),
            exchange.named_by()
        );
        let action = "grant it write there with `rabbitmqctl set_permissions` (the default exchange is amq.default)";
        findings.push(if exchange.is_needed() {
            Finding::failure(check, text, action)
        } else {
            Finding::warning(check, text, action)
        });
    }
    let unknown = existing
        .clone()
        .filter(|exchange| exchange.may_publish == MayPublish::Unknown);
    findings.extend(unanswered(check, unknown.count()));
    if findings.is_empty() {
        findings.push(Finding::ok(
            check,
            format!(
                "the broker's user may publish to all that exist ({}); topic permissions are not looked at",
                existing.count()
            ),
        ));
    }
    findings
}

fn unanswered(check: &'static str, count: usize) -> Option<Finding> {
    (count > 0).then(|| {
        Finding::warning(
            check,
            format!("the broker did not answer for {count} of the exchanges"),
            "see whether it is overloaded or has raised an alarm, and check again",
        )
    })
}

/// `delays`: whether the broker knows exchanges that delay messages. They return each message, and deliver it later.
pub(crate) fn unroutable(
    check: &'static str,
    failed: &[Unroutable],
    policies: &UnroutablePolicies,
    delays: Option<bool>,
) -> Vec<Finding> {
    let mut findings: Vec<Finding> = failed
        .iter()
        .filter(|failed| policies.of(&failed.exchange) == UnroutablePolicy::Retry)
        .map(|failed| {
            let name = table::printable(&failed.exchange);
            let bind = "bind a queue for them, and retry the dead letters";
            let action = match delays {
                Some(false) => bind.to_owned(),
                Some(true) | None => format!(
                    "{bind}; if it is of type x-delayed-message, which returns all that it takes, set \
                     [exchanges.\"{name}\"] unroutable = \"accept\""
                ),
            };
            let text = format!(
                "{} to exchange '{name}' failed because no queue was bound for them",
                match failed.messages {
                    1 => "1 message".to_owned(),
                    count => format!("{count} messages"),
                }
            );
            Finding::warning(check, text, action)
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok(
            check,
            match delays {
                Some(true) => {
                    "no message is known that no queue was bound for; exchanges of type x-delayed-message, which this \
                     broker knows, need unroutable = \"accept\""
                }
                Some(false) | None => "no message is known that no queue was bound for",
            },
        ));
    }
    findings
}

pub(crate) fn message_size(
    check: &'static str,
    max_message_bytes: u64,
    greeting: Option<&Greeting>,
) -> Finding {
    let [now, before] = DEFAULT_SIZES;
    let version = greeting.and_then(|greeting| major_minor(&greeting.version));
    let default = match version {
        Some((major, _)) if major < 4 => before,
        Some(_) | None => now,
    };
    if max_message_bytes > default {
        Finding::warning(
            check,
            format!(
                "[relay] max_message_bytes is {max_message_bytes}, and such a broker takes {default} unless told otherwise; \
                 it does not say what it was told, and refuses what is larger: it becomes a dead letter"
            ),
            "see that max_message_size in rabbitmq.conf is as large, or lower max_message_bytes",
        )
    } else {
        Finding::ok(
            check,
            format!(
                "[relay] max_message_bytes is {max_message_bytes}, no more than a broker takes by default"
            ),
        )
    }
}

#[cfg(test)]
mod tests;
