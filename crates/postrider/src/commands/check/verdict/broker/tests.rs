use std::collections::HashMap;

use super::super::super::finding::Status;
use super::*;

const TO_SEND: Option<ExchangeUse> = Some(ExchangeUse {
    to_send: true,
    dead: false,
});
const DEAD: Option<ExchangeUse> = Some(ExchangeUse {
    to_send: false,
    dead: true,
});

fn exchange(used: Option<ExchangeUse>, found: Found, may_publish: MayPublish) -> Exchange {
    Exchange {
        name: "orders".to_owned(),
        used,
        found,
        may_publish,
    }
}

fn statuses(findings: &[Finding]) -> Vec<Status> {
    findings.iter().map(|finding| finding.status).collect()
}

fn greeting(product: &str, version: &str) -> Option<Greeting> {
    Some(Greeting {
        product: product.to_owned(),
        version: version.to_owned(),
    })
}

#[test]
fn one_broker_of_several_that_is_away_is_a_warning_and_all_of_them_a_failure() {
    let there = ("a".to_owned(), None);
    let away = ("b".to_owned(), Some("cannot reach b".to_owned()));
    let status = |nodes: &[(String, Option<String>)]| connection("c", nodes).status;
    assert_eq!(status(std::slice::from_ref(&there)), Status::Ok);
    assert_eq!(status(&[there, away.clone()]), Status::Warning);
    assert_eq!(status(&[away]), Status::Failure);
}

#[test]
fn a_broker_that_is_not_tested_is_a_warning() {
    let status = |said: Option<Greeting>| version("c", said.as_ref()).status;
    for tested in ["3.10.0", "3.13.7", "4.0.5", "4.3.0-rc.1"] {
        assert_eq!(status(greeting("RabbitMQ", tested)), Status::Ok, "{tested}");
    }
    assert_eq!(status(greeting("RabbitMQ", "3.9.29")), Status::Warning);
    assert_eq!(status(greeting("LavinMQ", "4.0.0")), Status::Warning);
    assert_eq!(status(None), Status::Warning);
}

#[test]
fn an_alarm_is_a_failure_and_silence_a_warning() {
    assert_eq!(alarm("c", &Alarm::None).status, Status::Ok);
    assert_eq!(alarm("c", &Alarm::Unknown).status, Status::Warning);
    let raised = alarm("c", &Alarm::Raised("low on disk".to_owned()));
    assert_eq!(raised.status, Status::Failure);
    assert!(raised.message.contains("low on disk"));
}

#[test]
fn too_few_channels_are_a_failure() {
    assert_eq!(channels("c", 0, 64).status, Status::Ok);
    assert_eq!(channels("c", 2047, 64).status, Status::Ok);
    assert_eq!(channels("c", 8, 4).status, Status::Ok);
    assert_eq!(channels("c", 7, 4).status, Status::Failure);
}

#[test]
fn a_missing_exchange_is_a_failure_only_where_messages_wait_for_it() {
    let missing = |used| exchange(used, Found::No("404".to_owned()), MayPublish::Unknown);
    let found = exchanges(
        "c",
        &[missing(TO_SEND), missing(DEAD), missing(None)],
        false,
    );
    assert_eq!(
        statuses(&found),
        [Status::Failure, Status::Warning, Status::Warning]
    );
    let there = exchange(TO_SEND, Found::Yes, MayPublish::Yes);
    assert_eq!(statuses(&exchanges("c", &[there], false)), [Status::Ok]);
    assert_eq!(statuses(&exchanges("c", &[], false)), [Status::Ok]);
    let unknown = exchange(TO_SEND, Found::Unknown, MayPublish::Unknown);
    assert_eq!(
        statuses(&exchanges("c", &[unknown], false)),
        [Status::Warning]
    );
}

#[test]
fn an_exchange_that_is_forbidden_is_a_failure_only_where_messages_wait_for_it() {
    let forbidden = |used| exchange(used, Found::Yes, MayPublish::No("403".to_owned()));
    let found = permissions("c", &[forbidden(TO_SEND), forbidden(DEAD)]);
    assert_eq!(statuses(&found), [Status::Failure, Status::Warning]);
    // What does not exist is no matter of rights.
    let missing = exchange(TO_SEND, Found::No("404".to_owned()), MayPublish::Unknown);
    assert_eq!(statuses(&permissions("c", &[missing])), [Status::Ok]);
    let unknown = exchange(TO_SEND, Found::Yes, MayPublish::Unknown);
    assert_eq!(statuses(&permissions("c", &[unknown])), [Status::Warning]);
}

#[test]
fn messages_without_a_route_are_a_warning_unless_they_are_accepted() {
    let failed = [Unroutable {
        exchange: "later".to_owned(),
        messages: 3,
    }];
    let retry = UnroutablePolicies::new(UnroutablePolicy::Retry, HashMap::new());
    for (delays, told) in [(Some(true), true), (None, true), (Some(false), false)] {
        let found = unroutable("c", &failed, &retry, delays);
        assert_eq!(statuses(&found), [Status::Warning]);
        let action = found[0].action.as_deref().unwrap();
        assert_eq!(action.contains("x-delayed-message"), told, "{action}");
        assert_eq!(
            statuses(&unroutable("c", &[], &retry, delays)),
            [Status::Ok]
        );
    }
    let accepted = HashMap::from([("later".to_owned(), UnroutablePolicy::Accept)]);
    let accept = UnroutablePolicies::new(UnroutablePolicy::Retry, accepted);
    assert_eq!(
        statuses(&unroutable("c", &failed, &accept, Some(true))),
        [Status::Ok]
    );
}

#[test]
fn messages_larger_than_a_broker_takes_by_default_are_a_warning() {
    let status =
        |size: u64, version| message_size("c", size, greeting("RabbitMQ", version).as_ref()).status;
    assert_eq!(status(16 << 20, "4.0.5"), Status::Ok);
    assert_eq!(status(17 << 20, "4.0.5"), Status::Warning);
    assert_eq!(status(17 << 20, "3.13.7"), Status::Ok);
    assert_eq!(status(129 << 20, "3.13.7"), Status::Warning);
    assert_eq!(message_size("c", 17 << 20, None).status, Status::Warning);
}
