//! Every rule for messages refuses what its name says, and nothing less.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use fresh::keyed::all_lanes;
use fresh::{LIMITS, outbox};
use postrider_core::Origin;

/// A row that is fine but for these columns, and the constraint that refuses it, if one does.
struct Case {
    columns: &'static str,
    values: String,
    refused_by: Option<&'static str>,
}

fn case(
    columns: &'static str,
    values: impl Into<String>,
    refused_by: Option<&'static str>,
) -> Case {
    Case {
        columns,
        values: values.into(),
        refused_by,
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // In bytes, not in characters: é is two.
    for (column, constraint) in [
        ("exchange", "exchange_at_most_255_bytes"),
        ("routing_key", "routing_key_at_most_255_bytes"),
        ("content_type", "content_type_at_most_255_bytes"),
        ("type", "type_at_most_255_bytes"),
        ("content_encoding", "content_encoding_at_most_255_bytes"),
        ("correlation_id", "correlation_id_at_most_255_bytes"),
        ("reply_to", "reply_to_at_most_255_bytes"),
        ("app_id", "app_id_at_most_255_bytes"),
    ] {
        cases.push(case(column, "repeat('é', 127) || 'x'", None));
        cases.push(case(column, "repeat('é', 128)", Some(constraint)));
        cases.push(case(column, "''", None));
    }
    let exactly_one = Some("payload_or_payload_json_exactly_one");
    cases.push(case("payload, payload_json", r"'\x', '{}'", exactly_one));
    cases.push(case("payload, payload_json", "NULL, NULL", exactly_one));
    cases.push(case("payload, payload_json", r"'\x', NULL", None));

    let direct = Some("reply_to_is_not_direct_reply_to");
    cases.push(case("reply_to", "'amq.rabbitmq.reply-to'", direct));
    cases.push(case("reply_to", "'amq.rabbitmq.reply-to.x'", None));
    let direct = Some("default_exchange_is_not_for_direct_reply_to");
    cases.push(case(
        "exchange, routing_key",
        "'', 'amq.rabbitmq.reply-to.g1'",
        direct,
    ));
    cases.push(case(
        "exchange, routing_key",
        "'x', 'amq.rabbitmq.reply-to.g1'",
        None,
    ));
    let copies =
        |header: &str| format!(r#"'', '{{"{header}": ["a", "amq.rabbitmq.reply-to.g1"]}}'"#);
    cases.push(case("exchange, headers", copies("CC"), direct));
    cases.push(case("exchange, headers", copies("BCC"), direct));
    cases.push(case("exchange, headers", copies("other"), None));

    let priority = Some("priority_within_0_to_255");
    for (value, refused_by) in [
        ("-1", priority),
        ("0", None),
        ("255", None),
        ("256", priority),
    ] {
        cases.push(case("priority", value, refused_by));
    }
    let expiration = Some("expiration_within_0_to_315360000000_ms");
    for (value, refused_by) in [
        ("-1", expiration),
        ("0", None),
        ("315360000000", None),
        ("315360000001", expiration),
    ] {
        cases.push(case("expiration", value, refused_by));
    }
    cases.push(case(
        "ordering_key, priority",
        "'k', 1",
        Some("priority_or_ordering_key_not_both"),
    ));
    let empty = Some("ordering_key_is_not_empty");
    let long = Some("ordering_key_at_most_255_bytes");
    for (value, refused_by) in [
        ("'k'", None),
        ("''", empty),
        ("repeat('é', 127) || 'x'", None),
        ("repeat('é', 128)", long),
    ] {
        cases.push(case("ordering_key", value, refused_by));
    }
    let alone = Some("supersede_needs_ordering_key");
    cases.push(case("supersede", "true", alone));
    cases.push(case("ordering_key, supersede", "'k', true", None));

    let object = Some("headers_is_json_object");
    for value in ["'[]'", "'1'", "'\"x\"'", "'null'"] {
        cases.push(case("headers", value, object));
    }
    // {"a": "x..."} is 9 bytes and the x.
    let stream = Some("headers_stream_filter_value_is_string_of_at_most_255_bytes");
    for (value, broken) in [
        (r#"'{"x-stream-filter-value": 42}'"#.to_owned(), stream),
        (r#"'{"x-stream-filter-value": null}'"#.to_owned(), stream),
        (
            format!(r#"'{{"x-stream-filter-value": "{}"}}'"#, "v".repeat(256)),
            stream,
        ),
        (
            format!(r#"'{{"x-stream-filter-value": "{}"}}'"#, "v".repeat(255)),
            None,
        ),
        (
            r#"'{"x-amqp-1.0-footer": "f"}'"#.to_owned(),
            Some("headers_are_not_those_of_amqp_1_0"),
        ),
    ] {
        cases.push(case("headers", value, broken));
    }
    cases.push(case("type", "'amqp-1.0'", Some("type_is_not_amqp_1_0")));

    let size = Some("headers_at_most_64_kib");
    cases.push(case(
        "headers",
        "jsonb_build_object('a', repeat('x', 65527))",
        None,
    ));
    cases.push(case(
        "headers",
        "jsonb_build_object('a', repeat('x', 65528))",
        size,
    ));

    let copies = Some("headers_cc_and_bcc_are_arrays_of_strings");
    for header in ["CC", "BCC"] {
        for (value, refused_by) in [
            (r#"["a", "b"]"#, None),
            ("[]", None),
            (r#""a""#, copies),
            ("null", copies),
            (r#"["a", 1]"#, copies),
            (r#"{"a": 1}"#, copies),
        ] {
            cases.push(case(
                "headers",
                format!(r#"'{{"x": 1, "{header}": {value}}}'"#),
                refused_by,
            ));
        }
    }
    cases.push(case("headers", r#"'{"cc": 1, "a": {"CC": 1}}'"#, None));

    let depth = Some("headers_nested_at_most_64_deep");
    let nested = |arrays| {
        format!(
            r#"'{{"a": {}1{}}}'"#,
            "[".repeat(arrays),
            "]".repeat(arrays)
        )
    };
    cases.push(case("headers", nested(63), None));
    cases.push(case("headers", nested(64), depth));

    let numbers = Some("headers_numbers_fit_a_double");
    for (number, refused_by) in [
        ("1.797e308", None),
        ("-1.797e308", None),
        ("1.7971e308", numbers),
        ("-1e309", numbers),
        ("1e-400", None),
    ] {
        cases.push(case(
            "headers",
            format!(r#"'{{"a": {number}}}'"#),
            refused_by,
        ));
        cases.push(case(
            "headers",
            format!(r#"'{{"a": [{{"b": {number}}}]}}'"#),
            refused_by,
        ));
    }

    let names = Some("headers_names_at_most_255_bytes");
    for (name, refused_by) in [
        ("repeat('é', 127) || 'x'", None),
        ("repeat('é', 128)", names),
        ("''", None),
    ] {
        cases.push(case(
            "headers",
            format!("jsonb_build_object({name}, 1)"),
            refused_by,
        ));
        cases.push(case(
            "headers",
            format!("jsonb_build_object('a', jsonb_build_array(1, jsonb_build_object({name}, 1)))"),
            refused_by,
        ));
    }
    cases
}

#[tokio::test]
async fn each_constraint_refuses_what_it_names_and_what_passes_can_be_claimed() {
    let outbox = outbox().await;
    let client = &outbox.client;
    let mut refused = std::collections::BTreeSet::new();
    let mut accepted = 0;
    for Case {
        columns,
        values,
        refused_by,
    } in cases()
    {
        let mut names = columns.to_owned();
        let mut all = values.clone();
        for (column, value) in [
            ("exchange", "'e'"),
            ("routing_key", "'k'"),
            ("payload_json", "'{}'"),
        ] {
            if !columns.split(", ").any(|name| name == column) {
                names.push_str(&format!(", {column}"));
                all.push_str(&format!(", {value}"));
            }
        }
        let result = client
            .batch_execute(&format!(
                "INSERT INTO outbox.messages ({names}) VALUES ({all})"
            ))
            .await;
        let by = result.err().map(|error| {
            let error = error.as_db_error().unwrap();
            error.constraint().unwrap_or(error.message()).to_owned()
        });
        assert_eq!(by.as_deref(), refused_by, "{columns}: {values}");
        match by {
            Some(by) => {
                refused.insert(by);
            }
            None => accepted += 1,
        }
    }
    let rules: Vec<String> = client
        .query(
            r"SELECT DISTINCT rule[1] FROM pg_proc, regexp_matches(prosrc, 'THEN ''(\w+)''', 'g') AS m (rule) WHERE proname = 'is_publishable'",
            &[],
        )
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(rules.len() > 20, "{rules:?}");
    for rule in rules {
        assert!(refused.contains(&rule), "{rule} is not tested");
    }
    // Whatever passes, the relay can read.
    let without = outbox.claim(Origin::Messages).await;
    let claim = all_lanes(&outbox.database, LIMITS).await;
    assert_eq!(without.len() + claim.rows.len(), accepted);
    without.release().await.unwrap();
    claim.claim.release().await.unwrap();
}

/// Its text goes to the server's log, where payloads have no place.
#[tokio::test]
async fn a_refusal_names_the_rule_and_shows_nothing_of_the_message() {
    let outbox = outbox().await;
    let error = outbox
        .client
        .batch_execute("INSERT INTO outbox.messages (exchange, routing_key, payload, priority) VALUES ('e', 'k', 's3cret', 256)")
        .await
        .unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "23514");
    assert_eq!(
        error.message(),
        r#"the message violates check constraint "priority_within_0_to_255""#
    );
    assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
}

/// Old rows obeyed the same rules when they came, and are looked at again without keeping anybody out.
#[tokio::test]
async fn the_rules_are_validated_on_both_tables_and_hold_for_updates_too() {
    let outbox = outbox().await;
    let validated: i64 = outbox
        .client
        .query_one(
            "SELECT count(*) FROM pg_constraint WHERE conname = 'is_publishable' AND convalidated \
             AND conrelid IN ('outbox.messages'::regclass, 'outbox.deferred'::regclass)",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(validated, 2);
    let error = outbox
        .client
        .batch_execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload) VALUES ('e', 'k', ''); \
             UPDATE outbox.messages SET priority = 256",
        )
        .await
        .unwrap_err();
    assert_eq!(
        error.as_db_error().unwrap().constraint(),
        Some("priority_within_0_to_255")
    );
}

#[tokio::test]
async fn an_exchange_or_routing_key_that_is_forgotten_is_an_error() {
    let outbox = outbox().await;
    for (columns, missing) in [("exchange", "routing_key"), ("routing_key", "exchange")] {
        let error = outbox
            .client
            .batch_execute(&format!(
                "INSERT INTO outbox.messages ({columns}, payload) VALUES ('x', '')"
            ))
            .await
            .unwrap_err();
        assert_eq!(error.as_db_error().unwrap().column(), Some(missing));
    }
}

#[tokio::test]
async fn a_client_cannot_choose_the_seq() {
    let outbox = outbox().await;
    let error = outbox
        .client
        .batch_execute("INSERT INTO outbox.messages (seq, exchange, routing_key, payload) VALUES (1, '', '', '')")
        .await
        .unwrap_err();
    assert_eq!(error.as_db_error().unwrap().code().code(), "428C9");
}
