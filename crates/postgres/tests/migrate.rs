//! What migrate applies, accepts and refuses.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::process::Command;

use fresh::settling::settle_whole;
use fresh::{DEADLINE, LIMITS, client, done, outbox};
use postrider_postgres::{
    ClaimFrom, Database, Error, ErrorKind, NewMessage, NewPayload, Schema, SchemaState, Settings,
    migrations, print_sql,
};
use postrider_testbed::shared;

#[tokio::test]
async fn eight_runners_at_once_apply_each_migration_once() {
    let test = shared::database().await;
    let runners: Vec<_> = (0..8)
        .map(|_| {
            let url = test.url.clone();
            tokio::spawn(async move {
                let database = Database::new(Settings::new(url)).unwrap();
                database.migrate(DEADLINE).await.unwrap().len()
            })
        })
        .collect();
    let mut applied = 0;
    for runner in runners {
        applied += runner.await.unwrap();
    }
    assert_eq!(applied, migrations().len());
    let database = Database::new(Settings::new(&test.url)).unwrap();
    database.check_schema().await.unwrap();
    assert_eq!(
        database.migration_state().await.unwrap(),
        SchemaState::Current
    );
    assert!(database.plan().await.unwrap().is_empty());
    assert!(database.migrate(DEADLINE).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_missing_or_older_schema_is_refused_with_the_command_that_mends_it() {
    let test = shared::database().await;
    let database = Database::new(Settings::new(&test.url)).unwrap();
    assert_eq!(
        database.migration_state().await.unwrap(),
        SchemaState::Missing
    );
    assert_eq!(database.plan().await.unwrap().len(), migrations().len());
    let error = database.check_schema().await.unwrap_err();
    assert!(error.to_string().contains("postrider migrate"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Schema);

    database.migrate(DEADLINE).await.unwrap();
    let versions = || migrations().iter().map(|migration| migration.version);
    // One that creates something.
    let creates = 5;
    let client = client(&test.url).await;
    client
        .execute(
            "DELETE FROM outbox.postrider_migrations WHERE version >= $1",
            &[&creates],
        )
        .await
        .unwrap();
    assert_eq!(
        database.migration_state().await.unwrap(),
        SchemaState::Older {
            applied: versions().filter(|version| *version < creates).collect(),
            pending: versions().filter(|version| *version >= creates).collect(),
        }
    );
    let error = database.check_schema().await.unwrap_err();
    assert!(error.to_string().contains("postrider migrate"), "{error}");
    // What it would create is there already: the failed file leaves nothing, its record neither.
    let error = database.migrate(DEADLINE).await.unwrap_err();
    assert!(error.to_string().contains("already exists"), "{error}");
    assert!(matches!(
        database.migration_state().await.unwrap(),
        SchemaState::Older { .. }
    ));
}

#[tokio::test]
async fn an_edited_migration_is_refused_by_run_and_migrate() {
    let outbox = outbox().await;
    outbox
        .client
        .execute(
            "UPDATE outbox.postrider_migrations SET checksum = 'other' WHERE version = 1",
            &[],
        )
        .await
        .unwrap();
    for error in [
        outbox.database.check_schema().await.unwrap_err(),
        outbox.database.migrate(DEADLINE).await.unwrap_err(),
        outbox.database.plan().await.unwrap_err(),
    ] {
        assert!(
            matches!(error, Error::SchemaEdited { version: 1, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("edited"), "{error}");
    }
}

/// A migration of the future that says what works after it.
async fn apply_unknown(outbox: &fresh::Outbox, version: i32, compatible_from: Option<i32>) {
    outbox
        .client
        .execute(
            "INSERT INTO outbox.postrider_migrations (version, name, checksum, compatible_from) VALUES ($1, 'future', 'x', $2)",
            &[&version, &compatible_from],
        )
        .await
        .unwrap();
}

fn latest() -> i32 {
    migrations().last().unwrap().version
}

#[tokio::test]
async fn a_newer_schema_is_refused_by_run_and_migrate() {
    let this = latest();
    for unknown in [
        vec![(this + 1, None)],
        vec![(this + 1, Some(this + 1))],
        // One of them is enough.
        vec![(this + 1, None), (this + 2, Some(this))],
        vec![(this + 1, Some(this)), (this + 2, Some(this + 1))],
    ] {
        let outbox = outbox().await;
        for (version, compatible_from) in &unknown {
            apply_unknown(&outbox, *version, *compatible_from).await;
        }
        for error in [
            outbox.database.check_schema().await.unwrap_err(),
            outbox.database.migrate(DEADLINE).await.unwrap_err(),
            outbox.database.plan().await.unwrap_err(),
        ] {
            assert!(matches!(error, Error::SchemaNewer { .. }), "{error}");
            assert!(error.to_string().contains("newer"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_newer_schema_whose_migrations_say_that_this_program_works_is_accepted_and_left_as_it_is()
{
    let this = latest();
    let outbox = outbox().await;
    apply_unknown(&outbox, this + 1, Some(this - 1)).await;
    apply_unknown(&outbox, this + 3, Some(this)).await;
    assert_eq!(
        outbox.database.migration_state().await.unwrap(),
        SchemaState::Ahead {
            applied: this + 3,
            known: this
        }
    );
    outbox.database.check_schema().await.unwrap();
    assert!(outbox.database.plan().await.unwrap().is_empty());
    assert!(outbox.database.migrate(DEADLINE).await.unwrap().is_empty());

    // With a hole among those that it knows it is in no order that was ever tested.
    outbox
        .client
        .execute(
            "DELETE FROM outbox.postrider_migrations WHERE version = $1",
            &[&this],
        )
        .await
        .unwrap();
    let error = outbox.database.migrate(DEADLINE).await.unwrap_err();
    assert!(matches!(error, Error::SchemaNewer { .. }), "{error}");
}

/// What a relay of an older version asks of the database, as the server's log had it: `tests/statements/NNNN.sql`, by the newest
/// migration that it knew. One that restarts, or was rolled back to, must find everything that it names.
#[tokio::test]
async fn the_statements_of_every_older_relay_that_may_still_run_can_be_planned_on_this_schema() {
    let outbox = outbox().await;
    let mut versions: Vec<i32> = Vec::new();
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/statements");
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let version = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        versions.push(version);
        for statement in std::fs::read_to_string(&path).unwrap().split("\n\n") {
            let sql: String = statement
                .lines()
                .filter(|line| !line.starts_with("--"))
                .collect::<Vec<_>>()
                .join("\n");
            if !sql.trim().is_empty() {
                outbox
                    .client
                    .prepare(&sql)
                    .await
                    .unwrap_or_else(|error| panic!("version {version}: {error:?}\n{sql}"));
            }
        }
    }
    let oldest = migrations()
        .iter()
        .rev()
        .find_map(|migration| migration.compatible_from)
        .unwrap();
    assert!(
        versions.contains(&oldest),
        "programs from {oldest} on shall work: tests/statements/{oldest:04}.sql is not there"
    );
}

#[tokio::test]
async fn a_schema_made_from_the_printed_sql_is_accepted() {
    for schema in ["outbox", "my_events"] {
        let test = shared::database().await;
        let schema = Schema::new(schema).unwrap();
        let mut script = tempfile();
        std::io::Write::write_all(&mut script.0, print_sql(&schema).as_bytes()).unwrap();
        let output = Command::new("psql")
            .args([
                "--no-psqlrc",
                "--single-transaction",
                "-v",
                "ON_ERROR_STOP=1",
                "-q",
                "-f",
            ])
            .arg(&script.1)
            .arg(&test.url)
            .output()
            .expect("psql is needed: apt-get install postgresql-client");
        std::fs::remove_file(&script.1).unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let database = Database::new(Settings {
            schema,
            ..Settings::new(&test.url)
        })
        .unwrap();
        assert_eq!(
            database.migration_state().await.unwrap(),
            SchemaState::Current
        );
        database.check_schema().await.unwrap();
        assert!(database.migrate(DEADLINE).await.unwrap().is_empty());
    }
}

fn tempfile() -> (std::fs::File, std::path::PathBuf) {
    let path = std::env::temp_dir().join(format!("postrider-{}.sql", uuid::Uuid::new_v4()));
    (std::fs::File::create(&path).unwrap(), path)
}

#[tokio::test]
async fn an_outbox_in_a_schema_of_another_name_works_and_leaves_no_trace_of_the_default() {
    let test = shared::database().await;
    let database = Database::new(Settings {
        schema: Schema::new("my_events").unwrap(),
        ..Settings::new(&test.url)
    })
    .unwrap();
    database.migrate(DEADLINE).await.unwrap();
    database.check_schema().await.unwrap();
    let client = client(&test.url).await;
    let traces: i64 = client
        .query_one(
            r"SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = 'outbox')
                   + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'my_events'::regnamespace AND prosrc ~ '\moutbox\.|postrider_outbox')
                   + (SELECT count(*) FROM pg_constraint WHERE connamespace = 'my_events'::regnamespace AND pg_get_constraintdef(oid) ~ '\moutbox\.')
                   + (SELECT count(*) FROM pg_description WHERE description ~ '\moutbox\.[a-z]')",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(traces, 0);
    let id = database
        .publish(&NewMessage::new("e", "k", NewPayload::Text("{}".into())))
        .await
        .unwrap();
    let claim = database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    assert_eq!(claim.messages()[0].id, id);
    let seq = claim.messages()[0].seq;
    settle_whole(claim, &done(&[seq])).await;
    assert_eq!(database.sample(10).await.unwrap().backlog, 0);
}

#[tokio::test]
async fn a_sequence_with_a_cache_is_refused() {
    let outbox = outbox().await;
    outbox
        .client
        .batch_execute("ALTER SEQUENCE outbox.messages_seq_seq CACHE 20")
        .await
        .unwrap();
    let error = outbox.database.check_schema().await.unwrap_err();
    assert!(
        matches!(error, Error::SequenceCache { cache: 20, .. }),
        "{error}"
    );
    outbox
        .client
        .batch_execute("ALTER TABLE outbox.messages ALTER COLUMN seq SET CACHE 1")
        .await
        .unwrap();
    outbox.database.check_schema().await.unwrap();
}

#[tokio::test]
async fn a_runner_that_waits_for_another_gives_up_with_what_to_look_for() {
    let test = shared::database().await;
    let database = Database::new(Settings::new(&test.url)).unwrap();
    // Another runner, somewhere in its first migration.
    let client = client(&test.url).await;
    client
        .batch_execute("CREATE SCHEMA outbox; BEGIN; CREATE TABLE outbox.postrider_migrations ()")
        .await
        .unwrap();
    let running = {
        let database = database.clone();
        tokio::spawn(async move {
            database
                .migrate(DEADLINE)
                .await
                .map(|applied| applied.len())
        })
    };
    fresh::until("the first runner waits", || async {
        client
            .query_one(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid() \
                 AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())",
                &[],
            )
            .await
            .unwrap()
            .get::<_, i64>(0)
            == 1
    })
    .await;
    let error = database
        .migrate(std::time::Duration::ZERO)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::MigrationLock(_)), "{error}");
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(running.await.unwrap().unwrap(), migrations().len());
}

/// Flyway substitutes `${name}`, Liquibase too, SQLAlchemy `:name`.
#[test]
fn the_files_hold_nothing_that_migration_tools_substitute() {
    for migration in migrations() {
        assert!(!migration.sql.contains("${"), "{}", migration.name);
        let bytes = migration.sql.as_bytes();
        for (at, window) in bytes.windows(2).enumerate() {
            let substituted = window[0] == b':'
                && (window[1].is_ascii_alphabetic() || window[1] == b'_')
                && (at == 0 || bytes[at - 1] != b':');
            assert!(!substituted, "{} at {at}", migration.name);
        }
    }
}

#[tokio::test]
async fn an_outbox_of_an_older_version_is_migrated_with_its_messages_and_grants() {
    let test = shared::database().await;
    let client = client(&test.url).await;
    let role = format!("producer_{}", test.name);
    client.batch_execute("CREATE SCHEMA outbox").await.unwrap();
    client
        .batch_execute(
            "CREATE TABLE outbox.postrider_migrations (version integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())",
        )
        .await
        .unwrap();
    for migration in &migrations()[..2] {
        client.batch_execute(migration.sql).await.unwrap();
        client
            .execute(
                "INSERT INTO outbox.postrider_migrations (version, name, checksum) VALUES ($1, $2, $3)",
                &[&migration.version, &migration.name, &migration.checksum],
            )
            .await
            .unwrap();
    }
    client
        .batch_execute(&format!(
            "CREATE ROLE {role}; GRANT USAGE ON SCHEMA outbox TO {role}; \
             GRANT EXECUTE ON FUNCTION outbox.publish(text, text, text, jsonb, text, text, timestamptz, uuid, text, text, text, text, text, integer, bigint, boolean) TO {role}; \
             SELECT outbox.publish('e', 'before', '1')"
        ))
        .await
        .unwrap();
    let database = Database::new(Settings::new(&test.url)).unwrap();
    assert_eq!(
        database.migration_state().await.unwrap(),
        SchemaState::Older {
            applied: vec![1, 2],
            pending: (3..=latest()).collect()
        }
    );
    database.migrate(DEADLINE).await.unwrap();
    database.check_schema().await.unwrap();
    client
        .batch_execute(&format!(
            "SET ROLE {role}; \
             SELECT outbox.publish('e', 'later', '1', deliver_at => now() + interval '1 hour'); \
             SELECT outbox.publish('e', 'after', '1')"
        ))
        .await
        .unwrap();
    let sample = database.sample(10).await.unwrap();
    assert_eq!((sample.backlog, sample.deferred_scheduled.count), (2, 1));
    let claim = database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    let keys: Vec<_> = claim
        .messages()
        .iter()
        .map(|message| (message.seq.0, message.routing_key.as_str()))
        .collect();
    assert_eq!(keys, [(1, "before"), (3, "after")]);
    claim.release().await.unwrap();
}

#[tokio::test]
async fn a_file_that_fails_leaves_nothing_of_itself_and_keeps_what_was_applied_before() {
    let test = shared::database().await;
    let client = test.client().await.unwrap();
    // In the way of the second file.
    client
        .batch_execute(
            "CREATE SCHEMA outbox; \
             CREATE PROCEDURE outbox.publish(exchange text, routing_key text, payload bytea, headers jsonb, \
                 ordering_key text, type text, deliver_at timestamptz, id uuid, content_type text, \
                 content_encoding text, correlation_id text, reply_to text, app_id text, priority integer, \
                 expiration bigint, supersede boolean) LANGUAGE sql AS ''",
        )
        .await
        .unwrap();
    let database = Database::new(Settings::new(&test.url)).unwrap();
    let error = database.migrate(DEADLINE).await.unwrap_err();
    assert!(
        matches!(error, Error::Migration { version: 2, .. }),
        "{error}"
    );
    let row = client
        .query_one(
            "SELECT (SELECT array_agg(version) FROM outbox.postrider_migrations), \
                    (SELECT count(*) FROM pg_proc WHERE pronamespace = 'outbox'::regnamespace \
                        AND proname = 'publish' AND prokind = 'f')",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, Vec<i32>>(0), [1]);
    assert_eq!(row.get::<_, i64>(1), 0);
    client
        .batch_execute("DROP PROCEDURE outbox.publish")
        .await
        .unwrap();
    let rest = database.migrate(DEADLINE).await.unwrap().len();
    assert_eq!(rest, migrations().len() - 1);
}

#[tokio::test]
async fn the_table_is_vacuumed_as_a_queue_needs_it_and_is_never_truncated() {
    let outbox = outbox().await;
    let client = &outbox.client;
    let options = async |relation: &str| -> String {
        client
            .query_one(
                "SELECT coalesce(array_to_string(reloptions, ' '), '') FROM pg_class WHERE oid = \
                 (SELECT CASE $1 WHEN 'toast' THEN reltoastrelid ELSE oid END FROM pg_class \
                  WHERE oid = 'outbox.messages'::regclass)",
                &[&relation],
            )
            .await
            .unwrap()
            .get(0)
    };
    for relation in ["messages", "toast"] {
        let options = options(relation).await;
        for option in [
            "vacuum_truncate=off",
            "autovacuum_vacuum_scale_factor=0",
            "autovacuum_vacuum_threshold=2000",
        ] {
            assert!(options.contains(option), "{relation}: {options}");
        }
    }
}
