//! The relay, producers and operators, each with what `postrider grants` gives them, and a broker's user that may
//! do nothing but write.

use std::process::{Command, Output};

use postrider_testbed::consumer::{bind, declare_exchange};
use postrider_testbed::{Daemon, shared};
use serde_json::Value;
use uuid::Uuid;

use crate::stage::{DEADLINE, EXCHANGE, KEY, QUEUE, Stage, insert, wait_for_rows};

impl Stage {
    /// The URL of somebody new who logs in and is a member of a group that `grants` with these arguments has made.
    pub(crate) async fn member_of(&self, group: &[&str]) -> String {
        let role = format!("{} {}", group.join(" "), self.database.name);
        let mut arguments = vec!["grants"];
        arguments.extend(group);
        arguments.extend(["--role", &role]);
        let granted = self.run(&arguments);
        assert!(granted.status.success(), "{granted:?}");
        let sql = String::from_utf8(granted.stdout).unwrap();
        let name = format!(
            "{}_{}",
            group.join("_").replace('-', ""),
            self.database.name
        );
        let sql = format!("{sql}; CREATE ROLE {name} LOGIN; GRANT \"{role}\" TO {name}");
        self.sql().await.batch_execute(&sql).await.unwrap();
        self.database.url_for(&name, self.database.port)
    }
}

/// Runs a command as whoever the URL says.
fn run_as(url: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_postrider"))
        .args(arguments)
        .env("POSTRIDER_DATABASE_URL", url)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn denied(output: &Output) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("SQLSTATE 42501"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_rights_that_are_granted_and_no_others_everything_is_done() {
    let stage = Stage::new().await;
    let relay = stage.member_of(&["relay"]).await;
    let caller = stage.member_of(&["producer"]).await;
    let inserter = stage.member_of(&["producer", "--insert"]).await;
    let operator = stage.member_of(&["operator"]).await;
    let _consumer = stage.consumer();
    let user = format!("relay-{}", Uuid::now_v7().simple());
    let rabbit = shared::rabbit().await;
    rabbit.add_user(&user, "secret").await.unwrap();
    let write = format!("^({EXCHANGE}|later|amq\\.default)$");
    rabbit
        .set_permissions(&user, &stage.vhost.name, "^$", &write, "^$")
        .await
        .unwrap();
    let options = stage
        .options()
        .env("POSTRIDER_DATABASE_URL", &relay)
        .env(
            "POSTRIDER_BROKER_URL",
            stage.vhost.url_for(&user, "secret", stage.vhost.port),
        )
        .env("POSTRIDER_RETRY_MAX_ATTEMPTS", "3")
        .env("POSTRIDER_RETRY_INITIAL_DELAY", "50ms")
        .env("POSTRIDER_DEAD_LETTERS_RETENTION", "1h");
    let daemon = Daemon::start(options).await.unwrap();

    // Producers, to an exchange and to RabbitMQ's default one.
    let publish = ["publish", "-k", KEY, "-e", EXCHANGE, "{}"];
    let published = stdout(&run_as(&caller, &publish));
    let to_default = stdout(&run_as(&caller, &["publish", "-k", QUEUE, "-e", "", "{}"]));
    let inserts = postrider_testbed::Client::connect(&inserter).await.unwrap();
    let inserted = insert(&inserts, EXCHANGE, KEY, b"x").await;
    let ids = [published, to_default].map(|id| id.trim().parse().unwrap());
    stage.audit.committed(ids.into_iter().chain([inserted]));
    stage
        .audit
        .wait_until_all_delivered(DEADLINE)
        .await
        .unwrap();
    denied(&run_as(&caller, &["status"]));
    denied(&run_as(
        &caller,
        &["dead-letters", "discard", "--all", "--yes"],
    ));

    // What nobody listens to, what is not there and what is forbidden is tried again and given up.
    let unroutable = insert(&inserts, EXCHANGE, "nobody.listens", b"a secret").await;
    let missing = insert(&inserts, "later", KEY, b"x").await;
    let client = stage.sql().await;
    wait_for_rows(&client, "dead_letters", 2).await;
    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    declare_exchange(&channel, "sealed").await.unwrap();
    // Two exchanges out of order at once look like an outage, which charges nobody.
    let later = [("exchange", "later"), ("reason", "exchange_missing")];
    let suspended = "postrider_suspended_routes";
    daemon
        .wait_for_metric(suspended, &later, |routes| routes == 0.0, DEADLINE)
        .await
        .unwrap();
    insert(&inserts, "sealed", KEY, b"x").await;
    wait_for_rows(&client, "dead_letters", 3).await;
    let reasons = client
        .query(
            "SELECT reason FROM outbox.dead_letters ORDER BY reason",
            &[],
        )
        .await
        .unwrap();
    let reasons: Vec<String> = reasons.iter().map(|row| row.get(0)).collect();
    assert_eq!(reasons, ["exchange_missing", "forbidden", "unroutable"]);

    // The operator.
    let status: Value =
        serde_json::from_str(&stdout(&run_as(&operator, &["status", "--json"]))).unwrap();
    assert_eq!(status["dead_letters"], 3);
    assert_eq!(status["relays"].as_array().unwrap().len(), 1, "{status}");
    let shown = stdout(&run_as(
        &operator,
        &["dead-letters", "show", &unroutable.to_string()],
    ));
    assert!(shown.contains("a secret"), "{shown}");
    declare_exchange(&channel, "later").await.unwrap();
    bind(&channel, QUEUE, "later", KEY).await.unwrap();
    stage.audit.committed([missing]);
    let blocked = stdout(&run_as(&operator, &["keys", "list"]));
    assert!(blocked.contains("no ordering key"), "{blocked}");
    let unknown = run_as(&operator, &["keys", "show", "nobody's"]);
    let said = String::from_utf8(unknown.stderr).unwrap();
    assert!(said.starts_with("nothing of the ordering key"), "{said}");
    let retry = ["dead-letters", "retry", "--exchange", "later"];
    stdout(&run_as(&operator, &retry));
    stage.assert_clean().await;
    stdout(&run_as(
        &operator,
        &["dead-letters", "discard", "--all", "--yes"],
    ));
    wait_for_rows(&client, "dead_letters", 0).await;
    let scheduled = "SELECT outbox.publish($1, $2, '{}', deliver_at => now() + interval '1 day')";
    let caller = postrider_testbed::Client::connect(&caller).await.unwrap();
    let row = caller.query_one(scheduled, &[&EXCHANGE, &KEY]).await;
    stage.audit.committed([row.unwrap().get::<_, Uuid>(0)]);
    let listed = stdout(&run_as(&operator, &["deferred", "list"]));
    assert!(listed.contains("scheduled"), "{listed}");
    stdout(&run_as(&operator, &["deferred", "release", "--all"]));
    stage.assert_clean().await;
    denied(&run_as(&operator, &publish));

    assert!(daemon.is_running());
    for forbidden in ["database_lost", "42501", "panicked"] {
        assert!(!daemon.log().contains(forbidden), "{}", daemon.log());
    }
}
