//! The commands over ordering keys whose messages wait.

use std::process::Output;

use postrider_testbed::consumer::{bind, declare_exchange};
use postrider_testbed::daemon::Daemon;
use postrider_testbed::{Client, wait_until};
use serde_json::Value;
use uuid::Uuid;

use crate::stage::{DEADLINE, EXCHANGE, KEY, QUEUE, Stage, rows_of, wait_for_rows};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The output of a command that succeeded.
fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap()
}

/// Messages of one key to an exchange that is made later.
async fn publish(client: &Client, key: &str, messages: i32) -> Vec<Uuid> {
    client
        .query(
            "SELECT outbox.publish('made.later', $1, '{}'::json, ordering_key => $2) FROM generate_series(1, $3)",
            &[&KEY, &key, &messages],
        )
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect()
}

/// Two keys, of each of which the first message is given up and the others are parked, with the daemon that did it.
async fn two_blocked_keys(stage: &Stage, client: &Client) -> (Daemon, Vec<Uuid>, Vec<Uuid>) {
    let first = publish(client, "order-17", 3).await;
    let second = publish(client, "it's order 18", 2).await;
    let options = stage
        .options()
        .env("POSTRIDER_RETRY_MAX_ATTEMPTS", "2")
        .env("POSTRIDER_RETRY_INITIAL_DELAY", "20ms")
        .env("POSTRIDER_RETRY_MAX_DELAY", "20ms");
    let daemon = Daemon::start(options).await.unwrap();
    wait_for_rows(client, "dead_letters", 2).await;
    wait_for_rows(client, "parked", 3).await;
    (daemon, first, second)
}

async fn wait_until_no_key_is_blocked(client: &Client) {
    wait_until(DEADLINE, "no key is blocked", async || {
        rows_of(client, "blocked_keys").await == 0
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_waits_for_a_person_is_listed_with_what_to_do_and_goes_on_when_that_is_done() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let none = stage.run(&["keys", "list"]);
    assert!(
        stdout(&none).contains("no ordering key is blocked"),
        "{none:?}"
    );
    let (daemon, first, second) = two_blocked_keys(&stage, &client).await;
    let head = first[0].to_string();

    let listed = json(&stage.run(&["keys", "list", "--blocked", "--json"]));
    let names: Vec<&str> = listed["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["key"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["it's order 18", "order-17"]);
    let key = &listed["keys"][1];
    assert_eq!(key["waits_in"], "dead_letters");
    assert_eq!(key["next"], "person");
    assert_eq!(key["parked"], 2);
    assert_eq!(key["head"]["id"], head);
    assert_eq!(key["head"]["reason"], "exchange_missing");
    assert_eq!(key["head"]["attempts"], 2);
    let one = json(&stage.run(&["keys", "list", "--limit", "1", "--json"]));
    assert_eq!(
        (one["keys"].as_array().unwrap().len(), &one["more"]),
        (1, &Value::from(true))
    );
    let table = stdout(&stage.run(&["keys", "list"]));
    assert!(table.starts_with("KEY "), "{table}");
    assert!(
        table.contains(&format!(
            "a person decides: dead-letters retry|discard {head}"
        )),
        "{table}"
    );

    let shown = stdout(&stage.run(&["keys", "show", "order-17"]));
    for part in [
        head.as_str(),
        "made.later",
        "exchange_missing; 2 attempts were charged",
        &format!("`postrider dead-letters retry {head}`"),
        "parked       2",
    ] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let places = |key: &str| -> Vec<(String, String)> {
        let shown = json(&stage.run(&["keys", "show", key, "--json"]));
        let waiting = shown["waiting"].as_array().unwrap();
        let place = |message: &Value| {
            let part = |name: &str| message[name].as_str().unwrap().to_owned();
            (part("id"), part("waits_in"))
        };
        waiting.iter().map(place).collect()
    };
    let tables = ["dead_letters", "parked", "parked"];
    let expected: Vec<(String, String)> = first
        .iter()
        .map(Uuid::to_string)
        .zip(tables.map(str::to_owned))
        .collect();
    assert_eq!(places("order-17"), expected);

    let status = json(&stage.run(&["status", "--json"]));
    assert_eq!(status["keys"]["blocked"], 2);
    assert_eq!(status["keys"]["parked_messages"], 3);
    assert!(status["keys"]["longest_blocked_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(status["backlog"], 0);
    let status = stdout(&stage.run(&["status"]));
    assert!(status.contains("keys     2 blocked"), "{status}");
    daemon
        .wait_for_metric("postrider_blocked_keys", &[], |keys| keys == 2.0, DEADLINE)
        .await
        .unwrap();
    daemon
        .wait_for_metric(
            "postrider_parked_messages",
            &[],
            |parked| parked == 3.0,
            DEADLINE,
        )
        .await
        .unwrap();
    daemon
        .wait_for_metric(
            "postrider_blocked_key_age_seconds",
            &[],
            |age| age > 0.0,
            DEADLINE,
        )
        .await
        .unwrap();
    let letters = json(&stage.run(&["dead-letters", "list", "--json"]));
    assert_eq!(letters["dead_letters"][0]["ordering_key"], "order-17");
    assert_eq!(letters["dead_letters"][0]["blocks"], true);
    let table = stdout(&stage.run(&["dead-letters", "list"]));
    assert!(
        table.contains("ORDERING KEY") && table.contains("it's order 18"),
        "{table}"
    );
    let letter = stdout(&stage.run(&["dead-letters", "show", &head]));
    assert!(
        letter.contains("order-17, which waits for this message"),
        "{letter}"
    );

    let checked = stage.run(&["check", "--json"]);
    let findings: Vec<Value> = serde_json::from_slice(&checked.stdout).unwrap();
    let mut findings = findings.iter();
    let found = findings
        .find(|finding| finding["check"] == "blocked_keys")
        .unwrap();
    assert_eq!(found["status"], "warning", "{found}");

    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    declare_exchange(&channel, "made.later").await.unwrap();
    bind(&channel, QUEUE, "made.later", KEY).await.unwrap();
    let _consumer = stage.consumer();
    stage.audit.committed(first);
    let retried = stdout(&stage.run(&["dead-letters", "retry", &head]));
    assert!(
        retried.starts_with("retried 1 dead letter\n1 ordering key "),
        "{retried}"
    );
    stage.audit.committed(second[1..].iter().copied());
    let discarded = stage.run(&["dlq", "discard", &second[0].to_string(), "--yes", "--json"]);
    assert_eq!(json(&discarded)["released_keys"], 1);
    stage.assert_clean().await;
    wait_until_no_key_is_blocked(&client).await;
    let unknown = stage.run(&["keys", "show", "order-17"]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    let said = text(&unknown.stderr);
    assert!(
        said.contains("nothing of the ordering key order-17 waits"),
        "{said}"
    );
    assert!(said.contains("postrider keys list"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_shown_while_it_waits_for_a_retry_for_its_turn_and_for_what_was_parked() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let ids = publish(&client, "k", 2).await;
    let shown = stdout(&stage.run(&["keys", "show", "k"]));
    assert!(shown.contains("nothing holds it back"), "{shown}");
    assert!(shown.contains(&ids[1].to_string()), "{shown}");
    // As a relay would have: the first failed, the second was parked.
    client
        .batch_execute(
            "WITH gone AS (DELETE FROM outbox.messages WHERE seq = (SELECT min(seq) FROM outbox.messages) RETURNING *)
             INSERT INTO outbox.deferred (seq, id, exchange, routing_key, payload_json, headers, ordering_key, supersede, created_at,
                 attempts, due_at, cause, reason, error)
             SELECT seq, id, exchange, routing_key, payload_json, headers, ordering_key, supersede, created_at,
                 1, now() + interval '1 hour', 'retry', 'nacked', 'the queue is full' FROM gone;
             WITH gone AS (DELETE FROM outbox.messages RETURNING *)
             INSERT INTO outbox.parked (seq, id, exchange, routing_key, payload_json, headers, ordering_key, supersede, created_at)
             SELECT seq, id, exchange, routing_key, payload_json, headers, ordering_key, supersede, created_at FROM gone;
             UPDATE outbox.blocked_keys SET parked = 1",
        )
        .await
        .unwrap();
    let key = |arguments: &[&str]| json(&stage.run(arguments))["keys"][0].clone();
    let listed = key(&["keys", "list", "--json"]);
    assert_eq!(
        (&listed["waits_in"], &listed["next"]),
        (&"deferred".into(), &"retry".into())
    );
    assert!(listed["head"]["due_at"].is_string());
    let table = stdout(&stage.run(&["keys", "list"]));
    assert!(table.contains("tried again in 59m"), "{table}");
    let deferred = json(&stage.run(&["deferred", "list", "--json"]));
    assert_eq!(deferred["deferred"][0]["ordering_key"], "k");
    assert_eq!(deferred["deferred"][0]["waits_for_its_turn"], false);
    let shown = stdout(&stage.run(&["keys", "show", "k"]));
    let advice = format!("`postrider deferred release {}`", ids[0]);
    assert!(
        shown.contains(&advice) && shown.contains("the queue is full"),
        "{shown}"
    );

    client
        .batch_execute("DELETE FROM outbox.deferred")
        .await
        .unwrap();
    assert_eq!(key(&["keys", "list", "--json"])["next"], "going_out");
    let held_back = json(&stage.run(&["keys", "list", "--blocked", "--json"]));
    assert_eq!(held_back["keys"], Value::Array(Vec::new()));
}

/// Keys whose heads wait for a retry.
async fn defer_heads(client: &Client, schema: &str, keys: &[&str]) {
    let insert = format!(
        "INSERT INTO {schema}.deferred (seq, id, exchange, routing_key, payload_json, headers, ordering_key, supersede, created_at,
             attempts, due_at, cause, reason, error)
         VALUES ($1, gen_random_uuid(), 'e', 'r', '{{}}', '{{}}', $2, false, now(), 1, now() + interval '1 hour', 'retry', 'nacked', 'full')"
    );
    for (seq, key) in (1_i64..).zip(keys) {
        client.execute(&insert, &[&seq, key]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_statement_that_frees_a_key_whose_message_is_gone_frees_that_key_of_that_outbox_and_nothing_else()
 {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    stdout(&stage.run_in_schema("billing", &["migrate"]));
    let keys = [
        "order-17",
        "it's \"17\"",
        "a\\b",
        "\\'",
        "a\tb\nc",
        "\u{1b}[31m\u{202e}ä\u{a0}\u{e0001}",
    ];
    for schema in ["outbox", "billing"] {
        defer_heads(&client, schema, &keys).await;
    }
    let shown = stdout(&stage.run_in_schema("billing", &["keys", "show", keys[0]]));
    assert!(shown.contains("billing.deferred: nacked"), "{shown}");
    // In a way that no trigger sees.
    client
        .batch_execute(
            "SET session_replication_role = replica; DELETE FROM billing.deferred; DELETE FROM outbox.deferred; \
             SET session_replication_role = origin",
        )
        .await
        .unwrap();
    for key in keys {
        let shown = stdout(&stage.run_in_schema("billing", &["keys", "show", key]));
        let statement = shown
            .lines()
            .find_map(|line| line.split_once("As the outbox's owner: "))
            .unwrap_or_else(|| panic!("{shown}"))
            .1;
        assert_eq!(client.execute(statement, &[]).await.unwrap(), 1, "{shown}");
        let freed = client
            .query_one(
                "SELECT head_seq IS NULL FROM billing.blocked_keys WHERE ordering_key = $1",
                &[&key],
            )
            .await
            .unwrap();
        assert!(freed.get::<_, bool>(0), "{shown}");
    }
    let elsewhere = client
        .query_one("SELECT count(head_seq) FROM outbox.blocked_keys", &[])
        .await
        .unwrap();
    assert_eq!(elsewhere.get::<_, i64>(0), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_takes_an_ordering_key_and_what_may_stand_for_the_message() {
    let stage = Stage::new().await;
    let base = ["publish", "-e", EXCHANGE, "-k", KEY, "{}"];
    let with = |more: &[&str]| stage.run(&[&base[..], more].concat());
    stdout(&with(&["--ordering-key", "k"]));
    stdout(&with(&["--ordering-key", "k", "--supersede"]));
    let client = stage.sql().await;
    let rows = client
        .query(
            "SELECT ordering_key, supersede FROM outbox.messages ORDER BY seq",
            &[],
        )
        .await
        .unwrap();
    let rows: Vec<(String, bool)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(rows, [("k".to_owned(), false), ("k".to_owned(), true)]);
    for usage in [
        &["--supersede"][..],
        &["--ordering-key", "k", "--priority", "1"],
    ] {
        let refused = with(usage);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    }
    let empty = with(&["--ordering-key", ""]);
    assert_eq!(empty.status.code(), Some(1), "{empty:?}");
    assert!(
        text(&empty.stderr).contains("ordering_key_is_not_empty"),
        "{empty:?}"
    );
}
