//! What the SQL of `grants` lets each group do, and what it does not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use fresh::keyed::{all_lanes, done, park, resuming};
use fresh::settling::{dead, retry, settle_whole};
use fresh::{Outbox, client, outbox};
use postrider_core::Seq;
use postrider_postgres::{
    Database, DeadLetterFilter, DeferredFilter, Group, RoleName, Settings, Settlement, grants_sql,
    revokes_sql,
};

const CALLER: Group = Group::Producer { insert: false };
const INSERTER: Group = Group::Producer { insert: true };

/// Who logs in, and is a member of a group with an awkward name and nothing else.
struct Member {
    group: RoleName,
    name: String,
    url: String,
}

impl Member {
    async fn of(outbox: &Outbox, group: Group) -> Self {
        let kind = match group {
            INSERTER => "inserter",
            other => other.as_str(),
        };
        // The server's roles are shared by all its databases.
        let shown = format!("{kind} \"of\" it's {}", outbox.name);
        let role = RoleName::new(&shown).unwrap();
        let sql = grants_sql(group, &role, outbox.database.schema());
        // Again: nothing is in its way.
        for _ in 0..2 {
            outbox.client.batch_execute(&sql).await.unwrap();
        }
        let name = format!("{kind}_{}", outbox.name);
        let quoted = shown.replace('"', "\"\"");
        let login = format!("CREATE ROLE {name} LOGIN; GRANT \"{quoted}\" TO {name}");
        outbox.client.batch_execute(&login).await.unwrap();
        let url = outbox.url.replace("postgres@", &format!("{name}@"));
        Self {
            group: role,
            name,
            url,
        }
    }

    async fn client(&self) -> tokio_postgres::Client {
        client(&self.url).await
    }
}

/// The SQLSTATE of a statement, rolled back in any case; `None` where it is done.
async fn refusal(client: &tokio_postgres::Client, statement: &str) -> Option<String> {
    client.batch_execute("BEGIN").await.unwrap();
    let done = client.batch_execute(statement).await;
    client.batch_execute("ROLLBACK").await.unwrap();
    done.err()
        .map(|error| error.code().unwrap().code().to_owned())
}

/// What each of the four may do: caller, inserter, relay, operator.
const MATRIX: &[(&str, [bool; 4])] = &[
    // Producing.
    (
        "SELECT outbox.publish('e', 'k', '{}')",
        [true, true, false, false],
    ),
    (
        "SELECT outbox.publish('e', 'k', '{}'::json)",
        [true, true, false, false],
    ),
    (
        "SELECT outbox.publish('e', 'k', '{}'::jsonb, deliver_at => now() + interval '1 hour')",
        [true, true, false, false],
    ),
    (
        "SELECT outbox.publish('e', 'k', ''::bytea, headers => jsonb_build_object('a', repeat('x', 400)))",
        [true, true, false, false],
    ),
    (
        "INSERT INTO outbox.messages (id, exchange, routing_key, payload, payload_json, content_type, headers, \
             ordering_key, type, content_encoding, correlation_id, reply_to, app_id, priority, expiration, supersede) \
         VALUES (gen_random_uuid(), 'e', 'k', NULL, '{}', 'a/b', jsonb_build_object('a', repeat('x', 400)), \
             NULL, 't', 'c', 'c', 'r', 'a', 1, 1, false) \
         RETURNING seq, id, exchange, content_type, headers, created_at",
        [false, true, false, false],
    ),
    (
        "INSERT INTO outbox.messages (exchange, routing_key, payload, created_at) VALUES ('', '', '', now())",
        [false; 4],
    ),
    (
        "INSERT INTO outbox.messages (seq, exchange, routing_key, payload) \
         OVERRIDING SYSTEM VALUE VALUES (9, '', '', '')",
        [false; 4],
    ),
    (
        "SELECT nextval(pg_get_serial_sequence('outbox.messages', 'seq'))",
        [false; 4],
    ),
    (
        "SELECT outbox.enqueue('e', 'k', '', NULL, '{}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, \
             NULL::integer, NULL, false)",
        [false; 4],
    ),
    // Reading what others wrote.
    (
        "SELECT seq, id, exchange, created_at FROM outbox.messages",
        [false, true, true, true],
    ),
    (
        "SELECT routing_key FROM outbox.messages",
        [false, false, true, true],
    ),
    (
        "SELECT payload, payload_json, headers FROM outbox.messages",
        [false, false, true, false],
    ),
    (
        "SELECT payload, payload_json, headers FROM outbox.deferred",
        [false, false, true, false],
    ),
    (
        "SELECT payload, payload_json, headers FROM outbox.dead_letters",
        [false, false, true, true],
    ),
    (
        "SELECT version FROM outbox.postrider_migrations",
        [false, false, true, true],
    ),
    // Sending, and giving up.
    (
        "SELECT FROM outbox.messages WHERE seq = 1 FOR UPDATE",
        [false, false, true, false],
    ),
    ("DELETE FROM outbox.messages", [false, false, true, false]),
    (
        "WITH gone AS (DELETE FROM outbox.messages WHERE seq = 1 RETURNING *) \
         INSERT INTO outbox.dead_letters (seq, id, exchange, routing_key, payload_json, headers, supersede, created_at, \
             attempts, reason, error) \
         SELECT seq, id, exchange, routing_key, payload_json, headers, supersede, created_at, 1, 'nacked', '' FROM gone",
        [false, false, true, false],
    ),
    ("DELETE FROM outbox.deferred", [false, false, true, false]),
    (
        "UPDATE outbox.deferred SET attempts = 9",
        [false, false, true, false],
    ),
    // Looking after what waits.
    (
        "UPDATE outbox.deferred SET due_at = now()",
        [false, false, true, true],
    ),
    (
        "DELETE FROM outbox.dead_letters",
        [false, false, true, true],
    ),
    // Keys that are blocked, and what waits behind them.
    (
        "SELECT ordering_key, head_seq, parked FROM outbox.blocked_keys",
        [false, false, true, true],
    ),
    (
        "SELECT seq, id, exchange, routing_key, ordering_key, created_at, parked_at FROM outbox.parked",
        [false, false, true, true],
    ),
    (
        "SELECT payload, payload_json, headers FROM outbox.parked",
        [false, false, true, false],
    ),
    ("DELETE FROM outbox.parked", [false, false, true, false]),
    (
        "DELETE FROM outbox.blocked_keys",
        [false, false, true, false],
    ),
    (
        "UPDATE outbox.blocked_keys SET parked = 0, resume_from = 0",
        [false, false, true, false],
    ),
    // To lock it.
    (
        "UPDATE outbox.blocked_keys SET blocked_at = blocked_at",
        [false, false, false, true],
    ),
    ("UPDATE outbox.blocked_keys SET head_seq = NULL", [false; 4]),
    (
        "INSERT INTO outbox.blocked_keys (ordering_key) VALUES ('k')",
        [false; 4],
    ),
    ("UPDATE outbox.parked SET payload_json = '{}'", [false; 4]),
    ("TRUNCATE outbox.parked", [false; 4]),
    // Changing what somebody wrote, in any table.
    ("UPDATE outbox.messages SET payload_json = '{}'", [false; 4]),
    ("UPDATE outbox.messages SET exchange = ''", [false; 4]),
    ("UPDATE outbox.deferred SET payload_json = '{}'", [false; 4]),
    (
        "UPDATE outbox.dead_letters SET payload_json = '{}'",
        [false; 4],
    ),
    ("UPDATE outbox.dead_letters SET exchange = ''", [false; 4]),
    // The schema.
    ("TRUNCATE outbox.messages", [false; 4]),
    ("TRUNCATE outbox.dead_letters", [false; 4]),
    ("ALTER TABLE outbox.messages ADD extra text", [false; 4]),
    (
        "CREATE TRIGGER t AFTER INSERT ON outbox.messages EXECUTE FUNCTION outbox.messages_inserted()",
        [false; 4],
    ),
    ("DROP TABLE outbox.messages", [false; 4]),
    ("CREATE TABLE outbox.extra ()", [false; 4]),
    (
        "INSERT INTO outbox.postrider_migrations (version, name, checksum) VALUES (99, 'x', 'x')",
        [false; 4],
    ),
    ("DELETE FROM outbox.postrider_migrations", [false; 4]),
    ("CREATE ROLE outbox_accomplice", [false; 4]),
];

#[tokio::test]
async fn each_group_may_do_what_it_is_for_and_nothing_else() {
    let outbox = outbox().await;
    outbox.insert(1).await;
    let groups = [CALLER, INSERTER, Group::Relay, Group::Operator];
    for (position, group) in groups.into_iter().enumerate() {
        let member = Member::of(&outbox, group).await;
        let client = member.client().await;
        for (statement, may) in MATRIX {
            let expected = (!may[position]).then(|| "42501".to_owned());
            assert_eq!(
                refusal(&client, statement).await,
                expected,
                "{group:?}: {statement}"
            );
        }
    }
}

#[tokio::test]
async fn a_group_cannot_log_in_and_one_that_is_there_stays_as_it_is() {
    let outbox = outbox().await;
    let member = Member::of(&outbox, Group::Relay).await;
    let login = "SELECT rolcanlogin FROM pg_roles WHERE rolname = $1";
    let group = format!("relay \"of\" it's {}", outbox.name);
    let row = outbox.client.query_one(login, &[&group]).await.unwrap();
    assert!(!row.get::<_, bool>(0));
    // One that logs in itself may be granted the same.
    let own = RoleName::new(&member.name).unwrap();
    let sql = grants_sql(Group::Operator, &own, outbox.database.schema());
    outbox.client.batch_execute(&sql).await.unwrap();
    let row = outbox.client.query_one(login, &[&member.name]).await;
    assert!(row.unwrap().get::<_, bool>(0));
}

#[tokio::test]
async fn where_functions_are_nobodys_by_default_each_group_still_may_do_what_it_is_for() {
    let outbox = outbox().await;
    outbox
        .client
        .batch_execute(
            "REVOKE EXECUTE ON FUNCTION outbox.is_publishable, outbox.header_names_are_at_most_255_bytes, outbox.next_seq \
             FROM PUBLIC",
        )
        .await
        .unwrap();
    let inserter = Member::of(&outbox, INSERTER).await.client().await;
    let insert = "INSERT INTO outbox.messages (exchange, routing_key, payload_json, headers) \
         VALUES ('e', 'k', '{}', jsonb_build_object('a', repeat('x', 400)))";
    inserter.batch_execute(insert).await.unwrap();
    let relay = Member::of(&outbox, Group::Relay).await;
    let database = Database::new(Settings::new(&relay.url)).unwrap();
    database.check_rights().await.unwrap();
    assert_eq!(
        database
            .watch_outbox()
            .await
            .unwrap()
            .look()
            .await
            .unwrap()
            .next
            .0,
        2
    );
}

#[tokio::test]
async fn a_role_whose_rights_are_revoked_is_told_all_that_a_relay_lacks() {
    let outbox = outbox().await;
    let relay = Member::of(&outbox, Group::Relay).await;
    let database = Database::new(Settings::new(&relay.url)).unwrap();
    database.check_rights().await.unwrap();
    let revoke = revokes_sql(&relay.group, outbox.database.schema());
    for _ in 0..2 {
        outbox.client.batch_execute(&revoke).await.unwrap();
    }
    let text = database.check_rights().await.unwrap_err().to_string();
    for lacking in [
        "USAGE on the schema",
        "UPDATE on messages (seq)",
        "DELETE on dead_letters",
        "SELECT on postrider_migrations",
        "postrider grants relay",
    ] {
        assert!(text.contains(lacking), "{lacking}: {text}");
    }
    let client = relay.client().await;
    let denied = refusal(&client, "SELECT seq FROM outbox.messages").await;
    assert_eq!(denied.as_deref(), Some("42501"));
}

/// Whatever blocks and frees a key is done by triggers, with their owner's rights.
#[tokio::test]
async fn messages_of_a_key_are_parked_and_resumed_and_released_with_the_rights_of_the_groups_alone()
{
    let outbox = outbox().await;
    let producer = Member::of(&outbox, CALLER).await.client().await;
    producer
        .batch_execute(
            "SELECT outbox.publish('e', 'k', '1', ordering_key => 'a') FROM generate_series(1, 4)",
        )
        .await
        .unwrap();
    let relay = Member::of(&outbox, Group::Relay).await;
    let relay = Database::new(Settings::new(&relay.url)).unwrap();
    let operator = Member::of(&outbox, Group::Operator).await;
    let operator = Database::new(Settings::new(&operator.url)).unwrap();
    relay.check_rights().await.unwrap();

    let claim = all_lanes(&relay, fresh::LIMITS).await;
    let settlement = Settlement {
        done: vec![Seq(1)],
        dead: vec![dead(2)],
        blocking: vec![Seq(2)],
        ..Settlement::default()
    };
    settle_whole(claim.claim, &settlement).await;
    let claim = all_lanes(&relay, fresh::LIMITS).await;
    settle_whole(claim.claim, &park(&[3, 4])).await;
    let blocked = operator.blocked_keys(None, 10).await.unwrap();
    assert_eq!((blocked.len(), blocked[0].parked), (1, 2));
    let state = operator.key("a", 10).await.unwrap();
    assert_eq!((state.dead_letters.len(), state.parked.len()), (1, 2));
    let all = DeadLetterFilter::default();
    assert_eq!(
        operator
            .retry_dead_letters(&all, None, 10)
            .await
            .unwrap()
            .rows,
        1
    );

    let claim = relay.claim_due(fresh::LIMITS, &[], None).await.unwrap();
    let settlement = Settlement {
        retry: vec![retry(2, fresh::settling::HOUR)],
        ..Settlement::default()
    };
    settle_whole(claim, &settlement).await;
    let filter = DeferredFilter::default();
    assert_eq!(
        operator
            .release_deferred(&filter, None, 10)
            .await
            .unwrap()
            .rows,
        1
    );
    let claim = relay.claim_due(fresh::LIMITS, &[], None).await.unwrap();
    settle_whole(claim, &done(&[2])).await;
    let claim = resuming(&relay, fresh::LIMITS).await;
    let settlement = Settlement {
        done: vec![Seq(3)],
        dead: vec![dead(4)],
        blocking: vec![Seq(4)],
        ..Settlement::default()
    };
    settle_whole(claim.claim, &settlement).await;
    assert_eq!(outbox.blocked().await, "a:4:0");
    assert_eq!(
        operator
            .discard_dead_letters(&all, None, 10)
            .await
            .unwrap()
            .rows,
        1
    );
    assert!(resuming(&relay, fresh::LIMITS).await.rows.is_empty());
    assert_eq!(outbox.blocked().await, "null");
    assert_eq!(relay.sample(10).await.unwrap().blocked.keys.count, 0);
}
