//! `outbox.publish`: what it stores, what it refuses, who may call it, and from which clients.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::path::{Path, PathBuf};
use std::process::Command;

use fresh::settling::settle_whole;
use fresh::{Outbox, client, done, fetched, outbox};
use postrider_core::{Message, Origin};
use postrider_postgres::{NewMessage, NewPayload};
use serde_json::{Value, json};
use tokio_postgres::types::Type;

const TRICKY: &str = r#"{"a": "C:\\new", "b": "é"}"#;

/// What was published, in order.
async fn published(outbox: &Outbox) -> Vec<Message> {
    let mut claim = outbox.claim(Origin::Messages).await;
    let messages = claim.take_messages();
    claim.release().await.unwrap();
    messages
}

fn find<'a>(messages: &'a [Message], routing_key: &str) -> &'a Message {
    messages
        .iter()
        .find(|message| message.routing_key == routing_key)
        .unwrap()
}

fn content_type(message: &Message) -> Option<&str> {
    message.properties.content_type.as_deref()
}

/// What every client sends as "all".
fn assert_all(message: &Message) {
    assert_eq!(fetched(message), b"plain");
    assert_eq!(content_type(message), Some("text/plain"));
    assert_eq!(
        Value::Object(message.headers.parse().unwrap()),
        json!({"n": 1})
    );
    assert_eq!(message.properties.priority, Some(5));
    assert_eq!(message.properties.app_id, None);
}

#[tokio::test]
async fn each_kind_of_payload_is_stored_as_it_was_given() {
    let outbox = outbox().await;
    for (payload, arguments, stored, stored_type) in [
        // Without a type it is text, and text is JSON unless it says otherwise.
        ("'{}'", "", "{}", "application/json"),
        (
            r#"'{"b" :1,  "a":2}'"#,
            "",
            r#"{"b" :1,  "a":2}"#,
            "application/json",
        ),
        (
            r#"'{"b" :1,  "a":2}'::json"#,
            "",
            r#"{"b" :1,  "a":2}"#,
            "application/json",
        ),
        (
            r#"'{"b" :1,  "a":2}'::jsonb"#,
            "",
            r#"{"a": 2, "b": 1}"#,
            "application/json",
        ),
        (
            r"'\x00ff'::bytea",
            "",
            "\0\u{fffd}",
            "application/octet-stream",
        ),
        ("''::bytea", "", "", "application/octet-stream"),
        (
            "'é'::varchar",
            "content_type => 'text/plain'",
            "é",
            "text/plain",
        ),
        (
            "'[1]'",
            "content_type => 'Application/Vnd.x+JSON; v=1'",
            "[1]",
            "Application/Vnd.x+JSON; v=1",
        ),
        (
            "'{}'",
            "content_type => NULL, headers => NULL, id => NULL, supersede => NULL",
            "{}",
            "application/json",
        ),
        (
            r"'{}'::bytea",
            "content_type => 'application/json'",
            "{}",
            "application/json",
        ),
    ] {
        let separator = if arguments.is_empty() { "" } else { ", " };
        let row = outbox
            .client
            .query_one(
                &format!("SELECT outbox.publish('x', 'y', {payload}{separator}{arguments})"),
                &[],
            )
            .await
            .unwrap();
        let mut claim = outbox.claim(Origin::Messages).await;
        let message = claim.take_messages().remove(0);
        assert_eq!(
            String::from_utf8_lossy(fetched(&message)),
            stored,
            "{payload}"
        );
        assert_eq!(content_type(&message), Some(stored_type), "{payload}");
        assert_eq!(message.id, row.get::<_, uuid::Uuid>(0));
        settle_whole(claim, &done(&[message.seq])).await;
    }
}

#[tokio::test]
async fn what_cannot_be_published_is_refused_in_words_that_name_it() {
    let outbox = outbox().await;
    for (arguments, code, word) in [
        ("'x', 'y', 'hello'", "22P02", "json"),
        ("'x', 'y', ''", "22P02", "json"),
        (
            "'x', 'y', '{', content_type => 'a/b+json;charset=utf-8'",
            "22P02",
            "json",
        ),
        ("'x', 'y', NULL", "22004", "payload"),
        ("'x', 'y', NULL::jsonb", "22004", "payload"),
        ("'x', 'y', NULL::bytea", "22004", "payload"),
        ("NULL, 'y', '1'", "22004", "exchange"),
        ("'x', NULL, '1'", "22004", "routing_key"),
        (
            "'x', 'y', '1', ordering_key => ''",
            "23514",
            "ordering_key_is_not_empty",
        ),
        (
            "'x', 'y', '1', ordering_key => 'k', priority => 1",
            "23514",
            "priority_or_ordering_key_not_both",
        ),
        // Due already or not: what is refused must not depend on when it is tried.
        (
            "'x', 'y', '1', ordering_key => 'k', deliver_at => now() + interval '1 hour'",
            "22023",
            "deliver_at",
        ),
        (
            "'x', 'y', '1', ordering_key => 'k', deliver_at => '2001-01-01'",
            "22023",
            "deliver_at",
        ),
        (
            "'x', 'y', '1', deliver_at => 'infinity'",
            "23514",
            "due_at_is_finite",
        ),
        ("'x', 'y', '1', supersede => true", "22023", "ordering_key"),
        (
            "'x', 'y', '1', priority => 256",
            "23514",
            "priority_within_0_to_255",
        ),
    ] {
        let error = outbox
            .client
            .batch_execute(&format!("SELECT outbox.publish({arguments})"))
            .await
            .unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), code, "{arguments}: {error}");
        assert!(error.message().contains(word), "{arguments}: {error}");
    }
    assert!(published(&outbox).await.is_empty());
}

#[tokio::test]
async fn execute_on_publish_is_all_a_producer_needs_and_nobody_has_it_unasked() {
    let outbox = outbox().await;
    let role = format!("producer_{}", outbox.name);
    outbox
        .client
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA outbox TO {role}"
        ))
        .await
        .unwrap();
    let producer = client(&outbox.url.replace("postgres@", &format!("{role}@"))).await;
    let publish = |payload: &str| format!("SELECT outbox.publish('x', 'y', {payload})");
    let payloads = ["'{}'", "'{}'::json", "'{}'::jsonb", "'{}'::bytea"];
    for payload in payloads {
        let error = producer.batch_execute(&publish(payload)).await.unwrap_err();
        assert_eq!(error.as_db_error().unwrap().code().code(), "42501");
    }
    outbox
        .client
        .batch_execute(&format!("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA outbox TO {role}; REVOKE EXECUTE ON FUNCTION outbox.enqueue FROM {role}"))
        .await
        .unwrap();
    for payload in payloads {
        producer.batch_execute(&publish(payload)).await.unwrap();
    }
    for forbidden in [
        "SELECT * FROM outbox.messages",
        "INSERT INTO outbox.messages (exchange, routing_key, payload) VALUES ('', '', '')",
        "DELETE FROM outbox.messages",
    ] {
        let error = producer.batch_execute(forbidden).await.unwrap_err();
        assert_eq!(
            error.as_db_error().unwrap().code().code(),
            "42501",
            "{forbidden}"
        );
    }
    assert_eq!(published(&outbox).await.len(), 4);
}

#[tokio::test]
async fn the_command_line_publishes_text_and_bytes() {
    let outbox = outbox().await;
    let mut text = NewMessage::new("cli", "all", NewPayload::Text("plain".into()));
    text.content_type = Some("text/plain".into());
    text.headers.insert("n".into(), json!(1));
    text.priority = Some(5);
    let id = outbox.database.publish(&text).await.unwrap();
    let bytes = NewMessage::new("cli", "bytes", NewPayload::Bytes(vec![0, 255]));
    outbox.database.publish(&bytes).await.unwrap();
    let secret = NewMessage::new("cli", "bad", NewPayload::Text("{secret".into()));
    let error = outbox.database.publish(&secret).await.unwrap_err();
    assert!(!error.to_string().contains("secret"), "{error}");

    let messages = published(&outbox).await;
    assert_all(find(&messages, "all"));
    assert_eq!(find(&messages, "all").id, id);
    assert_eq!(fetched(find(&messages, "bytes")), [0, 255]);
}

/// A client that tells the server the type of every parameter, as pgx and JDBC do.
#[tokio::test]
async fn a_typed_client_publishes_with_its_ordinary_parameters() {
    let outbox = outbox().await;
    let bytes: &[u8] = &[0, 255, 92, 120];
    for (key, ty, payload) in [
        (
            "text",
            Type::TEXT,
            &TRICKY as &(dyn tokio_postgres::types::ToSql + Sync),
        ),
        ("varchar", Type::VARCHAR, &TRICKY),
        ("json", Type::JSON, &json!({"a": "C:\\new"})),
        ("jsonb", Type::JSONB, &json!({"a": "C:\\new"})),
        ("bytea", Type::BYTEA, &bytes),
    ] {
        let publish = outbox
            .client
            .prepare_typed(
                "SELECT outbox.publish($1, $2, $3)",
                &[Type::TEXT, Type::TEXT, ty],
            )
            .await
            .unwrap();
        outbox
            .client
            .query_one(&publish, &[&"typed", &key, payload])
            .await
            .unwrap();
    }
    // Left to the server, the payload is text.
    outbox
        .client
        .query_one(
            "SELECT outbox.publish($1, $2, $3, headers => $4, content_type => $5, priority => $6, app_id => $7)",
            &[&"typed", &"all", &"plain", &json!({"n": 1}), &"text/plain", &5_i32, &None::<String>],
        )
        .await
        .unwrap();
    let messages = published(&outbox).await;
    assert_eq!(fetched(find(&messages, "text")), TRICKY.as_bytes());
    assert_eq!(fetched(find(&messages, "varchar")), TRICKY.as_bytes());
    assert_eq!(fetched(find(&messages, "json")), br#"{"a":"C:\\new"}"#);
    assert_eq!(fetched(find(&messages, "jsonb")), br#"{"a": "C:\\new"}"#);
    assert_eq!(fetched(find(&messages, "bytea")), bytes);
    assert_all(find(&messages, "all"));
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(name)
}

/// Runs a program that must succeed.
fn run(command: &mut Command, needs: &str) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; {needs}"));
    assert!(
        output.status.success(),
        "{command:?} failed; {needs}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The same that `TRICKY`'s parsed form is, whatever spaces a client writes.
fn parsed(message: &Message) -> Value {
    serde_json::from_slice(fetched(message)).unwrap()
}

#[tokio::test]
async fn psycopg_publishes_with_its_ordinary_parameters() {
    let outbox = outbox().await;
    // Debian's own interpreter: it is the one that sees Debian's packages.
    run(
        Command::new("/usr/bin/python3")
            .arg(script("with_psycopg.py"))
            .arg(&outbox.url),
        "this test needs psycopg: apt-get install python3-psycopg",
    );
    let messages = published(&outbox).await;
    assert_eq!(messages.len(), 5);
    assert_eq!(
        parsed(find(&messages, "str")),
        json!({"a": "C:\\new", "b": "é"})
    );
    assert_eq!(parsed(find(&messages, "json")), json!({"a": "C:\\new"}));
    assert_eq!(parsed(find(&messages, "jsonb")), json!({"a": "C:\\new"}));
    assert_eq!(fetched(find(&messages, "bytes")), [0, 255, 92, 120]);
    assert_eq!(
        content_type(find(&messages, "bytes")),
        Some("application/octet-stream")
    );
    let all = find(&messages, "all");
    assert_all(all);
    assert_eq!(all.id.as_u128(), 7);
    assert_eq!(all.properties.expiration_ms, Some(60_000));
}

#[tokio::test]
async fn psycopg2_publishes_with_its_ordinary_parameters() {
    let outbox = outbox().await;
    run(
        Command::new("/usr/bin/python3")
            .arg(script("with_psycopg2.py"))
            .arg(&outbox.url),
        "this test needs psycopg2: apt-get install python3-psycopg2",
    );
    let messages = published(&outbox).await;
    assert_eq!(messages.len(), 4);
    assert_eq!(
        parsed(find(&messages, "str")),
        json!({"a": "C:\\new", "b": "é"})
    );
    assert_eq!(parsed(find(&messages, "json")), json!({"a": "C:\\new"}));
    assert_eq!(fetched(find(&messages, "bytes")), [0, 255, 92, 120]);
    assert_all(find(&messages, "all"));
}

/// Debian's package installs to places that its own node looks into; another node is told, or has the
/// package put into the build directory by npm.
fn node_path() -> String {
    const DEBIAN: &str = "/usr/share/nodejs:/usr/lib/nodejs";
    let found = Command::new("node")
        .args(["-e", "require('pg')"])
        .env("NODE_PATH", DEBIAN)
        .output()
        .is_ok_and(|output| output.status.success());
    if found {
        return DEBIAN.to_owned();
    }
    let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join("node-pg");
    std::fs::create_dir_all(&prefix).unwrap();
    run(
        Command::new("npm")
            .args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"])
            .arg(&prefix)
            .arg("pg@8"),
        "this test needs node-pg: apt-get install node-pg (or node with npm)",
    );
    prefix.join("node_modules").display().to_string()
}

#[tokio::test]
async fn node_pg_publishes_with_its_ordinary_parameters() {
    let outbox = outbox().await;
    run(
        Command::new("node")
            .arg(script("node-pg.cjs"))
            .arg(&outbox.url)
            .env("NODE_PATH", node_path()),
        "this test needs node-pg: apt-get install node-pg",
    );
    let messages = published(&outbox).await;
    assert_eq!(messages.len(), 4);
    assert_eq!(
        parsed(find(&messages, "str")),
        json!({"a": "C:\\new", "b": "é"})
    );
    assert_eq!(parsed(find(&messages, "object")), json!({"a": "C:\\new"}));
    assert_eq!(fetched(find(&messages, "buffer")), [0, 255, 92, 120]);
    let all = find(&messages, "all");
    assert_all(all);
    assert_eq!(all.id.as_u128(), 7);
}
