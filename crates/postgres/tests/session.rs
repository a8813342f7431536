//! Which servers are accepted, and what errors tell.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::collections::BTreeSet;
use std::time::Duration;

use fresh::settling::settle_whole;
use fresh::{DEADLINE, LIMITS, Outbox, done, next_due, outbox, outbox_at, until};
use postrider_core::{Origin, Reason, Seq};
use postrider_postgres::{
    Claim, ClaimFrom, ClaimLimits, Database, Dead, DeadLetterFilter, Error, ErrorKind, Group,
    Listener, Retry, RoleName, Schema, Settings, Settlement, grants_sql,
};
use postrider_testbed::shared;
use postrider_testbed::{PostgresOptions, PostgresServer, StopMode};

#[tokio::test]
async fn a_server_that_can_hold_an_outbox_is_described() {
    let test = shared::database().await;
    let info = Database::new(Settings::new(&test.url))
        .unwrap()
        .check_server()
        .await
        .unwrap();
    assert!(info.version_num >= 140_000);
    assert_eq!(
        (info.database, info.role),
        (test.name, "postgres".to_owned())
    );
}

#[tokio::test]
async fn a_database_that_is_read_only_or_not_in_utf8_is_refused() {
    let outbox = outbox().await;
    let alter = format!(
        "ALTER DATABASE {} SET default_transaction_read_only",
        outbox.name
    );
    outbox
        .client
        .batch_execute(&format!("{alter} = on"))
        .await
        .unwrap();
    let database = Database::new(Settings::new(&outbox.url)).unwrap();
    for error in [
        database.check_server().await.map(drop).unwrap_err(),
        database
            .claim_fresh(LIMITS, &[], ClaimFrom::default())
            .await
            .map(drop)
            .unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
        assert!(error.to_string().contains("standby"), "{error}");
    }

    let latin = format!("{}_latin1", outbox.name);
    // The setting is for sessions that begin now: this one writes on.
    outbox
        .client
        .batch_execute(&format!(
            "CREATE DATABASE {latin} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
        ))
        .await
        .unwrap();
    let database = Database::new(Settings::new(outbox.url.replace(&outbox.name, &latin))).unwrap();
    let error = database.check_server().await.unwrap_err();
    assert!(matches!(error, Error::Encoding(_)), "{error}");
    let error = database.migrate(DEADLINE).await.unwrap_err();
    assert!(error.to_string().contains("UTF8"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_away_is_unavailable_and_is_used_again_when_it_is_back() {
    let server = PostgresServer::start(PostgresOptions::default())
        .await
        .unwrap();
    let test = server.create_database().await.unwrap();
    let outbox = outbox_at(&test.url, &test.name).await;
    outbox.insert(1).await;
    outbox
        .claim(Origin::Messages)
        .await
        .release()
        .await
        .unwrap();
    server.stop(StopMode::Immediate).await.unwrap();
    until("the broken connections are noticed", || async {
        let error = outbox
            .database
            .claim_fresh(LIMITS, &[], ClaimFrom::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        error.to_string().contains("refused")
    })
    .await;
    server.start_again().await.unwrap();
    let claim = outbox.claim(Origin::Messages).await;
    assert_eq!(claim.len(), 1);
    claim.release().await.unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_after_the_timeout() {
    let server = PostgresServer::start(PostgresOptions::default())
        .await
        .unwrap();
    let test = server.create_database().await.unwrap();
    let outbox = outbox_at(&test.url, &test.name).await;
    let database = Database::new(Settings {
        statement_timeout: Duration::from_secs(1),
        connect_timeout: Duration::from_secs(1),
        ..Settings::new(&test.url)
    })
    .unwrap();
    outbox.insert(1).await;
    let claim = database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    let seq = claim.messages()[0].seq;
    server.pause().await.unwrap();
    let settled = claim.settle(&done(&[seq])).await.unwrap_err();
    let claimed = database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap_err();
    server.resume().await.unwrap();
    for error in [settled, claimed] {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
}

#[tokio::test]
async fn errors_are_classed_by_what_can_be_done_about_them() {
    let test = shared::database().await;
    let role = format!("poor_{}", test.name);
    test.client()
        .await
        .unwrap()
        .batch_execute(&format!("CREATE ROLE {role} LOGIN"))
        .await
        .unwrap();
    let kind = async |settings: Settings| {
        let database = Database::new(settings).unwrap();
        database
            .claim_fresh(LIMITS, &[], ClaimFrom::default())
            .await
            .unwrap_err()
            .kind()
    };
    assert_eq!(kind(Settings::new(&test.url)).await, ErrorKind::Schema);
    outbox_at(&test.url, &test.name).await;
    let other = Settings {
        schema: Schema::new("elsewhere").unwrap(),
        ..Settings::new(&test.url)
    };
    assert_eq!(kind(other).await, ErrorKind::Schema);
    assert_eq!(
        kind(Settings::new(test.url_for(&role, test.port))).await,
        ErrorKind::Privilege
    );
    let url = test.url.replace(&test.name, "no_such_database");
    assert_eq!(kind(Settings::new(url)).await, ErrorKind::Configuration);
    let url = "postgresql://postgres@127.0.0.1:1/postgres";
    assert_eq!(kind(Settings::new(url)).await, ErrorKind::Unavailable);
}

#[tokio::test]
async fn no_error_and_no_debug_output_shows_the_password() {
    const SECRET: &str = "s3cr3tpassw0rd";
    let mut texts = Vec::new();
    let mut note = |error: &dyn std::error::Error| {
        let mut error = Some(error);
        while let Some(one) = error {
            texts.push(format!("{one} {one:?}"));
            error = one.source();
        }
    };
    for url in [
        format!("postgres://u:{SECRET}@host:port/db"),
        format!("postgres://u:{SECRET}/x@host/db"),
        format!("postgres://u:p?{SECRET}=x@host/db"),
        format!("postgres://u:p#{SECRET}@host:99999/db"),
        SECRET.to_owned(),
        format!("host={SECRET} {SECRET}"),
        format!("postgres://u:{SECRET}@host/db?sslmode=verify-full"),
        format!("postgres://u:{SECRET}@host/db?sslmode=require"),
        format!("password={SECRET}"),
    ] {
        // Some of these are a URL after all, of a host that does not exist.
        match Database::new(Settings::new(&url)) {
            Ok(database) => note(
                &database
                    .claim_fresh(LIMITS, &[], ClaimFrom::default())
                    .await
                    .unwrap_err(),
            ),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
                note(&error);
            }
        }
    }
    let settings = Settings::new(format!("postgres://u:{SECRET}@127.0.0.1:1/db"));
    let settings_shown = format!("{settings:?}");
    let database = Database::new(settings).unwrap();
    note(
        &database
            .claim_fresh(LIMITS, &[], ClaimFrom::default())
            .await
            .unwrap_err(),
    );
    texts.push(settings_shown);
    texts.push(format!("{database:?}"));
    for text in texts {
        assert!(!text.contains(SECRET), "{text}");
    }
}

#[test]
fn only_plain_schema_names_are_accepted() {
    for name in ["outbox", "_x", "a1_b", &"a".repeat(48)] {
        assert!(Schema::new(name).is_ok(), "{name}");
    }
    for name in [
        "",
        "1a",
        "Outbox",
        "a-b",
        "a b",
        "a\"b",
        "a.b",
        "é",
        "pg_outbox",
        &"a".repeat(49),
    ] {
        assert!(Schema::new(name).is_err(), "{name}");
    }
}

#[tokio::test]
async fn a_role_that_lacks_rights_is_told_which_and_how_to_get_them() {
    let outbox = outbox().await;
    let role = format!("relay_{}", outbox.name);
    outbox
        .client
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA outbox TO {role}; \
             GRANT SELECT ON outbox.messages TO {role}"
        ))
        .await
        .unwrap();
    let url = outbox.url.replace("postgres@", &format!("{role}@"));
    let database = Database::new(Settings::new(url)).unwrap();
    let refused = database.check_rights().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Privilege);
    let text = refused.to_string();
    for missing in [
        "UPDATE on messages",
        "DELETE on messages",
        "INSERT on deferred",
    ] {
        assert!(text.contains(missing), "{text}");
    }
    assert!(!text.contains("SELECT on messages"), "{text}");
    assert!(text.contains("postrider grants relay"), "{text}");
}

#[tokio::test]
async fn a_relay_works_with_the_rights_that_it_is_granted_and_no_others() {
    let outbox = outbox().await;
    let role = format!("relay_{}", outbox.name);
    let name = RoleName::new(&role).unwrap();
    let sql = grants_sql(Group::Relay, &name, outbox.database.schema());
    let login = format!("{sql} ALTER ROLE {role} LOGIN");
    outbox.client.batch_execute(&login).await.unwrap();
    outbox.insert(4).await;
    let url = outbox.url.replace("postgres@", &format!("{role}@"));
    let database = Database::new(Settings::new(url)).unwrap();
    database.check_server().await.unwrap();
    database.check_schema().await.unwrap();
    database.check_rights().await.unwrap();
    let _listener = Listener::connect(&database, "one", true).await.unwrap();
    let claim = database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    let failed = |seq| Retry {
        seq: Seq(seq),
        after: Duration::ZERO,
        attempts: 1,
        reason: Reason::Nacked,
        error: String::new(),
    };
    let given_up = |seq| Dead {
        seq: Seq(seq),
        attempts: 1,
        reason: Reason::Nacked,
        error: String::new(),
    };
    let settlement = Settlement {
        retry: vec![failed(2)],
        dead: vec![given_up(3)],
        ..done(&[Seq(1)])
    };
    settle_whole(claim, &settlement).await;
    for settlement in [
        Settlement {
            retry: vec![failed(2)],
            ..Settlement::default()
        },
        Settlement {
            dead: vec![given_up(2)],
            ..Settlement::default()
        },
    ] {
        let claim = database.claim_due(LIMITS, &[], None).await.unwrap();
        settle_whole(claim, &settlement).await;
    }
    assert_eq!(next_due(&database).await, None);
    assert_eq!(database.sample(10).await.unwrap().backlog, 1);
    let any = DeadLetterFilter::default();
    let retried = database.retry_dead_letters(&any, None, 1).await.unwrap();
    assert_eq!(retried.rows, 1);
    let purged = database.purge_dead_letters(Duration::ZERO, 10).await;
    assert_eq!(purged.unwrap(), 1);
    assert_eq!(database.relays().await.unwrap().len(), 1);
}

/// The sessions in which a claim is open.
async fn claiming(outbox: &Outbox) -> BTreeSet<i32> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' \
               AND xact_start IS NOT NULL AND pid <> pg_backend_pid()";
    let rows = outbox.client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// A claim of one row, and its session.
async fn claim_one(outbox: &Outbox) -> (Claim, i32) {
    let before = claiming(outbox).await;
    let limits = ClaimLimits { rows: 1, ..LIMITS };
    let claim = outbox.claim_within(limits, Origin::Messages).await;
    let now = claiming(outbox).await;
    let new: Vec<i32> = now.difference(&before).copied().collect();
    assert_eq!(new.len(), 1);
    (claim, new[0])
}

/// Its plans are made and its caches are warm: where few messages come, one session serves them and not all in turn.
#[tokio::test]
async fn the_session_that_came_back_last_is_the_next_to_claim() {
    let outbox = outbox().await;
    outbox.insert(3).await;
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let mut claims = Vec::new();
        for _ in 0..3 {
            claims.push(Some(claim_one(&outbox).await));
        }
        let mut last = 0;
        for place in order {
            let (claim, session) = claims[place].take().unwrap();
            claim.release().await.unwrap();
            last = session;
        }
        let (claim, next) = claim_one(&outbox).await;
        assert_eq!(next, last);
        claim.release().await.unwrap();
    }
}
