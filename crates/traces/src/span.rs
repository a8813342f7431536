//! From a publish to its span, by OpenTelemetry's semantic conventions for messaging and for RabbitMQ.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};

use crate::inserting::Inserting;
use crate::publish::Publish;
use crate::settings::Settings;

/// The version of the conventions that names and attributes follow.
pub(crate) const SCHEMA: &str = "https://opentelemetry.io/schemas/1.42.0";
/// What is done to the destination, in the conventions' word for it.
const SEND: &str = "send";
/// How RabbitMQ calls the exchange with the empty name.
const DEFAULT_EXCHANGE: &str = "amq.default";

/// `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK`: what the next flag says is known.
const REMOTENESS_KNOWN: u32 = 0x100;
/// `SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`
const REMOTE: u32 = 0x200;
const SAMPLED: u32 = 1;

/// What is the same in all spans of one relay.
pub(crate) fn resource(settings: &Settings) -> Resource {
    let own = [
        ("service.name", &settings.service_name),
        ("service.version", &settings.service_version),
        ("service.instance.id", &settings.instance),
        ("postrider.outbox", &settings.outbox),
    ];
    let said = settings.resource.iter();
    let said = said.filter(|(key, _)| own.iter().all(|(name, _)| name != key));
    Resource {
        attributes: own
            .iter()
            .map(|(key, value)| text(key, value))
            .chain(said.map(|(key, value)| text(key, value)))
            .collect(),
        ..Resource::default()
    }
}

/// Who says so.
pub(crate) fn scope(settings: &Settings) -> InstrumentationScope {
    InstrumentationScope {
        name: "postrider".to_owned(),
        version: settings.service_version.clone(),
        ..InstrumentationScope::default()
    }
}

/// The span of one publish: a producer's, the root of a trace of its own, linked to the span that inserted the row.
pub(crate) fn span(publish: &Publish, broker: Option<&(String, u16)>) -> Span {
    let exchange = match &*publish.exchange {
        "" => DEFAULT_EXCHANGE,
        named => named,
    };
    Span {
        trace_id: publish.trace_id.to_vec(),
        span_id: publish.span_id.to_vec(),
        flags: SAMPLED | REMOTENESS_KNOWN,
        // The template, not the name: applications put ids into routing keys, and span names are counted by.
        name: format!("{SEND} {exchange}"),
        kind: SpanKind::Producer.into(),
        start_time_unix_nano: publish.times.began,
        end_time_unix_nano: publish.times.ended,
        attributes: attributes(publish, exchange, broker),
        links: publish.inserting.iter().map(link).collect(),
        status: publish.failure.as_ref().map(|(_, detail)| Status {
            message: detail.to_string(),
            code: StatusCode::Error.into(),
        }),
        ..Span::default()
    }
}

fn link(inserting: &Inserting) -> Link {
    Link {
        trace_id: inserting.trace_id.to_vec(),
        span_id: inserting.span_id.to_vec(),
        trace_state: inserting.state.to_string(),
        flags: u32::from(inserting.flags) | REMOTENESS_KNOWN | REMOTE,
        ..Link::default()
    }
}

fn attributes(publish: &Publish, exchange: &str, broker: Option<&(String, u16)>) -> Vec<KeyValue> {
    let mut attributes = vec![
        text("messaging.system", "rabbitmq"),
        text("messaging.operation.type", SEND),
        text("messaging.operation.name", SEND),
        text("messaging.destination.name", &destination(publish)),
        text("messaging.destination.template", exchange),
        text("messaging.message.id", &publish.id.to_string()),
        number("messaging.message.body.size", publish.body_bytes),
        number("postrider.seq", publish.seq),
    ];
    if !publish.routing_key.is_empty() {
        attributes.push(text(
            "messaging.rabbitmq.destination.routing_key",
            &publish.routing_key,
        ));
    }
    if let Some(id) = &publish.correlation_id {
        attributes.push(text("messaging.message.conversation_id", id));
    }
    if let Some((address, port)) = broker {
        attributes.push(text("server.address", address));
        attributes.push(number("server.port", *port));
    }
    if publish.attempts > 0 {
        attributes.push(number("postrider.attempts", publish.attempts));
    }
    if let Some((reason, _)) = &publish.failure {
        attributes.push(text("error.type", reason.as_str()));
    }
    attributes
}

/// As the conventions for RabbitMQ have it on a producer's side: both parts, as far as there is one.
fn destination(publish: &Publish) -> String {
    match (&*publish.exchange, &*publish.routing_key) {
        ("", "") => DEFAULT_EXCHANGE.to_owned(),
        ("", key) => key.to_owned(),
        (exchange, "") => exchange.to_owned(),
        (exchange, key) => format!("{exchange}:{key}"),
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    with(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: impl TryInto<i64>) -> KeyValue {
    with(key, Value::IntValue(value.try_into().unwrap_or(i64::MAX)))
}

fn with(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::Times;
    use postrider_core::Reason;
    use uuid::Uuid;

    fn publish(exchange: &str, routing_key: &str) -> Publish {
        Publish {
            trace_id: [1; 16],
            span_id: [2; 8],
            inserting: None,
            times: Times { began: 1, ended: 2 },
            seq: 7,
            id: Uuid::nil(),
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            correlation_id: None,
            body_bytes: u64::MAX,
            attempts: 0,
            failure: None,
        }
    }

    fn said<'a>(span: &'a Span, key: &str) -> Option<&'a Value> {
        let found = span
            .attributes
            .iter()
            .find(|attribute| attribute.key == key)?;
        found.value.as_ref()?.value.as_ref()
    }

    #[test]
    fn the_destination_is_named_by_what_there_is_of_exchange_and_routing_key() {
        for (exchange, key, name, destination) in [
            ("shop", "order.42", "send shop", "shop:order.42"),
            ("logs", "", "send logs", "logs"),
            ("", "queue", "send amq.default", "queue"),
            ("", "", "send amq.default", "amq.default"),
        ] {
            let span = span(&publish(exchange, key), None);
            assert_eq!(span.name, name);
            let value = Value::StringValue(destination.to_owned());
            assert_eq!(said(&span, "messaging.destination.name"), Some(&value));
            let routing_key = said(&span, "messaging.rabbitmq.destination.routing_key");
            assert_eq!(routing_key.is_some(), !key.is_empty());
        }
    }

    #[test]
    fn a_failure_is_an_error_by_the_name_of_its_reason_and_success_has_no_status() {
        let mut publish = publish("shop", "order");
        let confirmed = span(&publish, None);
        assert_eq!(confirmed.status, None);
        assert_eq!(said(&confirmed, "error.type"), None);
        publish.failure = Some((Reason::Nacked, "full".into()));
        publish.attempts = 3;
        let failed = span(&publish, Some(&("rabbit".to_owned(), 5672)));
        let status = failed.status.clone().unwrap();
        assert_eq!(
            (status.code(), status.message.as_str()),
            (StatusCode::Error, "full")
        );
        let nacked = Value::StringValue("nacked".to_owned());
        assert_eq!(said(&failed, "error.type"), Some(&nacked));
        assert_eq!(
            said(&failed, "postrider.attempts"),
            Some(&Value::IntValue(3))
        );
        assert_eq!(said(&failed, "server.port"), Some(&Value::IntValue(5672)));
    }
}
