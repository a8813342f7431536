//! The commands over what was given up and over what waits for a time.

use std::process::Output;

use postrider_testbed::consumer::{bind, declare_exchange};
use postrider_testbed::daemon::Daemon;
use postrider_testbed::{Client, wait_until};
use serde_json::Value;
use uuid::Uuid;

use crate::stage::{DEADLINE, EXCHANGE, KEY, QUEUE, Stage, insert};

/// Columns that a row put aside by a test need not differ in.
const DEAD: &str = "INSERT INTO outbox.dead_letters \
     (seq, id, exchange, routing_key, payload, content_type, headers, supersede, created_at, attempts, reason, error, given_up_at) \
     SELECT nextval(pg_get_serial_sequence('outbox.messages', 'seq')), gen_random_uuid(), $1, $2, $3, 'text/plain', \
            '{\"tenant\": 7}', false, now() - interval '3 hours', 20, $4, $5, now() - interval '2 hours' \
     FROM generate_series(1, $6) RETURNING id";

/// Puts dead letters into the table as the relay would have, two hours ago.
async fn dead(client: &Client, exchange: &str, payload: &[u8], reason: &str, rows: i32) -> Uuid {
    let error = "nobody\u{1b}[31m listens";
    let inserted = client
        .query(DEAD, &[&exchange, &KEY, &payload, &reason, &error, &rows])
        .await
        .unwrap();
    inserted[0].get(0)
}

async fn count(client: &Client, table: &str) -> i64 {
    client
        .query_one(&format!("SELECT count(*) FROM outbox.{table}"), &[])
        .await
        .unwrap()
        .get(0)
}

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

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_given_up_can_be_listed_shown_and_sent_again_with_its_message_id() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let id = insert(&client, "made.later", KEY, b"payload of a dead letter").await;
    let options = stage
        .options()
        .env("POSTRIDER_RETRY_MAX_ATTEMPTS", "2")
        .env("POSTRIDER_RETRY_INITIAL_DELAY", "20ms");
    let daemon = Daemon::start(options).await.unwrap();
    daemon
        .wait_for_metric("postrider_dead_letters", &[], |dead| dead == 1.0, DEADLINE)
        .await
        .unwrap();

    let listed = json(&stage.run(&["dead-letters", "list", "--json"]));
    let letter = &listed["dead_letters"][0];
    assert_eq!(letter["id"], id.to_string());
    assert_eq!(letter["exchange"], "made.later");
    assert_eq!(letter["reason"], "exchange_missing");
    assert_eq!(letter["attempts"], 2);
    let shown = stdout(&stage.run(&["dlq", "show", &id.to_string()]));
    for part in [
        id.to_string().as_str(),
        "made.later",
        KEY,
        "exchange_missing",
        "payload of a dead letter",
    ] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let status = json(&stage.run(&["status", "--json"]));
    assert_eq!(status["dead_letters"], 1);
    assert_eq!(status["backlog"], 0);

    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    declare_exchange(&channel, "made.later").await.unwrap();
    bind(&channel, QUEUE, "made.later", KEY).await.unwrap();
    let _consumer = stage.consumer();
    stage.audit.committed([id]);
    let retried = json(&stage.run(&["dead-letters", "retry", &id.to_string(), "--json"]));
    assert_eq!(retried["retried"], 1);
    stage.assert_clean().await;
    wait_until(DEADLINE, "the message is in no table", async || {
        count(&client, "deferred").await == 0
    })
    .await
    .unwrap();
    assert_eq!(count(&client, "dead_letters").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_by_exchange_reason_age_and_id_and_more_than_the_limit_is_said() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let first = dead(&client, "a", b"1", "nacked", 1).await;
    let second = dead(&client, "", b"2", "too_large", 1).await;
    dead(&client, "b", b"3", "nacked", 3).await;
    let listed = |selection: &[&str]| {
        let arguments = [&["dead-letters", "list", "--json"][..], selection].concat();
        let listed = json(&stage.run(&arguments));
        (
            listed["dead_letters"].as_array().unwrap().len(),
            listed["more"].as_bool().unwrap(),
        )
    };
    assert_eq!(listed(&[]), (5, false));
    assert_eq!(listed(&["--exchange", "a"]), (1, false));
    assert_eq!(listed(&["--exchange", ""]), (1, false));
    assert_eq!(listed(&["--reason", "nacked"]), (4, false));
    assert_eq!(listed(&["-e", "b", "--reason", "too_large"]), (0, false));
    assert_eq!(listed(&["--older-than", "1h"]), (5, false));
    assert_eq!(listed(&["--older-than", "3h"]), (0, false));
    assert_eq!(listed(&["--newer-than", "1h"]), (0, false));
    assert_eq!(listed(&["--limit", "4"]), (4, true));
    assert_eq!(listed(&["--limit", "5"]), (5, false));
    let (first, second) = (first.to_string(), second.to_string());
    assert_eq!(listed(&[&first, &second]), (2, false));

    let table = stdout(&stage.run(&["dead-letters", "list", "--limit", "2"]));
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("ID "), "{table}");
    assert!(lines[1].starts_with(&first), "{table}");
    assert!(
        lines[2].contains("''") && lines[2].contains("too_large"),
        "{table}"
    );
    assert!(
        lines[1].contains("2h 0m") && lines[1].contains("20"),
        "{table}"
    );
    assert!(
        table.contains("\\u{1b}[31m") && !table.contains('\u{1b}'),
        "{table}"
    );
    assert!(lines[3].contains("more"), "{table}");
    let nothing = stage.run(&["dead-letters", "list", "-e", "c"]);
    assert!(stdout(&nothing).contains("no dead letters"), "{nothing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_shown_with_any_payload_and_one_that_is_not_there_is_said_to_be_missing() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let binary = dead(&client, "a", &[0, 0xff, 0x10], "nacked", 1)
        .await
        .to_string();
    let shown = stdout(&stage.run(&["dead-letters", "show", &binary]));
    assert!(shown.contains("00ff10"), "{shown}");
    let shown = json(&stage.run(&["dead-letters", "show", &binary, "--json"]));
    assert_eq!(shown["payload_base64"], "AP8Q");
    assert_eq!(shown["headers"]["tenant"], 7);
    let words = dead(&client, "a", "zwei\nZeilen\u{7}".as_bytes(), "nacked", 1)
        .await
        .to_string();
    let shown = stdout(&stage.run(&["dead-letters", "show", &words]));
    assert!(
        shown.contains("zwei\n") && shown.contains("Zeilen\\u{7}"),
        "{shown}"
    );
    let shown = json(&stage.run(&["dead-letters", "show", &words, "--json"]));
    assert_eq!(shown["payload"], "zwei\nZeilen\u{7}");
    let absent = Uuid::nil().to_string();
    for arguments in [
        &["dead-letters", "show", &absent][..],
        &["dead-letters", "retry", &absent],
        &["dead-letters", "retry", &absent, &binary],
        &["deferred", "release", &absent],
    ] {
        let output = stage.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(!output.stderr.is_empty(), "{output:?}");
    }
    assert_eq!(count(&client, "dead_letters").await, 1);
    assert_eq!(count(&client, "deferred").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn discarding_needs_a_yes_and_takes_only_what_was_selected() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    dead(&client, "a", b"1", "nacked", 2).await;
    dead(&client, "a", b"1", "too_large", 3).await;
    let selection = ["dead-letters", "discard", "--reason", "too_large"];
    // Nobody is there to be asked: standard input is no terminal.
    let refused = stage.run(&selection);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(text(&refused.stderr).contains("--yes"), "{refused:?}");
    let counted = stage.run(&[&selection[..], &["--dry-run"]].concat());
    assert!(stdout(&counted).contains('3'), "{counted:?}");
    assert_eq!(count(&client, "dead_letters").await, 5);

    let discarded = stage.run(&[&selection[..], &["--yes", "--json"]].concat());
    assert_eq!(json(&discarded)["discarded"], 3);
    let left: Vec<String> = client
        .query("SELECT DISTINCT reason FROM outbox.dead_letters", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(left, ["nacked"]);
    assert_eq!(count(&client, "deferred").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_how_many_and_changes_nothing() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    dead(&client, "a", b"1", "nacked", 3).await;
    client
        .batch_execute(
            "SELECT outbox.publish('shop', 'order.placed', '{}'::text, deliver_at => now() + interval '1 hour')",
        )
        .await
        .unwrap();
    for (arguments, matching) in [
        (["dead-letters", "retry"], 3),
        (["dead-letters", "discard"], 3),
        (["deferred", "release"], 1),
    ] {
        let run =
            |more: &[&str]| stage.run(&[&arguments[..], &["--all", "--dry-run"], more].concat());
        let said = stdout(&run(&[]));
        assert!(said.contains(&format!("would {} ", arguments[1])), "{said}");
        let said = json(&run(&["--json"]));
        assert_eq!(said["matching"], matching);
        assert_eq!(said["dry_run"], true);
    }
    assert_eq!(count(&client, "dead_letters").await, 3);
    let due: bool = client
        .query_one("SELECT bool_or(due_at <= now()) FROM outbox.deferred", &[])
        .await
        .unwrap()
        .get(0);
    assert!(!due);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_holds_all_it_takes_to_put_a_row_back() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    dead(&client, "a", &[0, 0xff, b'\n'], "nacked", 1_500).await;
    client
        .batch_execute(
            "UPDATE outbox.dead_letters \
             SET payload = NULL, payload_json = E'{\"b\":  1.50,\\n\"b\": \"ü\"}', type = 't', priority = 3, \
                 expiration = 60000, correlation_id = 'c', reply_to = 'r', app_id = 'a', content_encoding = 'e', \
                 ordering_key = 'k', supersede = true, blocks = true \
             WHERE seq % 2 = 0; \
             CREATE TABLE before AS TABLE outbox.dead_letters",
        )
        .await
        .unwrap();
    let exported = stdout(&stage.run(&["dead-letters", "export"]));
    let lines: Vec<&str> = exported.lines().collect();
    assert_eq!(lines.len(), 1_500);
    let some = stdout(&stage.run(&["dead-letters", "export", "--reason", "too_large"]));
    assert_eq!(some, "");

    client
        .batch_execute("TRUNCATE outbox.dead_letters")
        .await
        .unwrap();
    client
        .execute(
            "INSERT INTO outbox.dead_letters \
             SELECT row.* FROM unnest($1::text[]) AS line, json_populate_record(NULL::outbox.dead_letters, line::json) AS row",
            &[&lines],
        )
        .await
        .unwrap();
    // As text: json has no equality, and all that was written must be there but the breaks of lines.
    let differing: i64 = client
        .query_one(
            "SELECT count(*) FROM outbox.dead_letters AS a FULL JOIN before AS b USING (seq) \
             WHERE a::text IS DISTINCT FROM replace(b::text, E'\\n', ' ')",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(differing, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_dead_letters_are_listed_and_retried_in_bounded_transactions() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    dead(&client, "a", b"1", "nacked", 100_000).await;
    let listed = json(&stage.run(&["dead-letters", "list", "--json"]));
    assert_eq!(listed["dead_letters"].as_array().unwrap().len(), 50);
    assert_eq!(listed["more"], true);
    let retried = stage.run(&["dead-letters", "retry", "--all"]);
    assert!(stdout(&retried).contains("100000"), "{retried:?}");
    let progress = text(&retried.stderr);
    assert!(progress.starts_with("1000 of 100000 "), "{progress}");
    assert_eq!(count(&client, "dead_letters").await, 0);
    let row = client
        .query_one(
            "SELECT sum(rows)::bigint, max(rows)::bigint, bool_and(due) \
             FROM (SELECT count(*) AS rows, bool_and(due_at <= now()) AS due \
                   FROM outbox.deferred GROUP BY xmin::text) AS transactions",
            &[],
        )
        .await
        .unwrap();
    let (moved, largest, due): (i64, i64, bool) = (row.get(0), row.get(1), row.get(2));
    assert_eq!(moved, 100_000);
    assert_eq!(largest, 1_000);
    assert!(due);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_message_is_listed_as_such_and_delivered_when_it_is_released() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let id: Uuid = client
        .query_one(
            "SELECT outbox.publish($1, $2, '{}'::text, deliver_at => now() + interval '1 day')",
            &[&EXCHANGE, &KEY],
        )
        .await
        .unwrap()
        .get(0);
    stage.audit.committed([id]);
    let status = json(&stage.run(&["status", "--json"]));
    assert_eq!(status["deferred"]["scheduled"], 1);
    assert_eq!(status["deferred"]["retry"], 0);
    assert_eq!(status["backlog"], 0);
    let listed = json(&stage.run(&["deferred", "list", "--json"]));
    let message = &listed["deferred"][0];
    assert_eq!(message["id"], id.to_string());
    assert_eq!(message["cause"], "scheduled");
    assert!(message["due_in_seconds"].as_f64().unwrap() > 80_000.0);
    let table = stdout(&stage.run(&["deferred", "list"]));
    assert!(
        table.contains(&id.to_string()) && table.contains("scheduled"),
        "{table}"
    );

    let _consumer = stage.consumer();
    let _daemon = stage.daemon().await;
    let released = stage.run(&["deferred", "release", "--exchange", EXCHANGE]);
    assert!(stdout(&released).contains("released 1 "), "{released:?}");
    stage.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unroutable_message_is_accepted_as_sent_only_where_the_policy_says_so() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    declare_exchange(&channel, "audit.events").await.unwrap();
    insert(&client, "audit.events", KEY, b"nobody has to listen").await;
    let kept = insert(&client, EXCHANGE, "nobody.listens", b"somebody should").await;
    let options = stage
        .options()
        .config("[exchanges.\"audit.events\"]\nunroutable = \"accept\"\n")
        .env("POSTRIDER_RETRY_MAX_ATTEMPTS", "1");
    let _daemon = Daemon::start(options).await.unwrap();
    stage.wait_until_outbox_holds(0).await;
    let dead: Vec<Uuid> = client
        .query("SELECT id FROM outbox.dead_letters", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(dead, [kept]);
    assert_eq!(count(&client, "deferred").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_deleted_when_their_retention_is_over_and_not_before() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    dead(&client, "a", b"1", "nacked", 2).await;
    let kept = dead(&client, "b", b"2", "nacked", 1).await;
    client
        .execute(
            "UPDATE outbox.dead_letters SET given_up_at = now() - interval '50 minutes' WHERE id = $1",
            &[&kept],
        )
        .await
        .unwrap();
    let options = stage
        .options()
        .env("POSTRIDER_DEAD_LETTERS_RETENTION", "1h");
    let _daemon = Daemon::start(options).await.unwrap();
    wait_until(DEADLINE, "the old ones are gone", async || {
        count(&client, "dead_letters").await == 1
    })
    .await
    .unwrap();
    let left: Uuid = client
        .query_one("SELECT id FROM outbox.dead_letters", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, kept);
}
