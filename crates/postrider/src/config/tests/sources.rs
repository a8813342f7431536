//! Where a value comes from, and which of several counts.

use std::time::Duration;

use secrecy::ExposeSecret;

use super::{BROKER, DATABASE, Place, setting};
use crate::config::DEFAULT_PATH;
use crate::config::source::Source;

#[test]
fn it_runs_without_any_file() {
    let config = Place::new(&[DATABASE, BROKER]).complete();
    assert_eq!(config.relay.workers, 2);
    assert_eq!(config.relay.batch_bytes, 4 << 20);
    assert_eq!(config.relay.poll_interval, Duration::from_secs(1));
    assert_eq!(config.relay.name, "host");
    assert_eq!(config.relay.outbox, "shop");
    assert_eq!(config.broker.connection_name, "postrider host");
    assert_eq!(config.broker.endpoints[0].vhost, "sales");
    assert_eq!(
        config.database.url.expose_secret(),
        "postgres://app:pw@db:5433/shop"
    );
}

#[test]
fn the_environment_goes_over_the_file_and_the_file_over_the_default() {
    let place = Place::new(&[DATABASE, BROKER, ("POSTRIDER_RELAY_WORKERS", "7")])
        .file("[relay]\nworkers = 5\nbatch_rows = 50\n");
    let loaded = place.load().unwrap();
    let workers = setting(&loaded, "relay", "workers");
    assert_eq!(workers.value, "7");
    assert_eq!(
        workers.source,
        Source::Env("POSTRIDER_RELAY_WORKERS".to_owned())
    );
    let rows = setting(&loaded, "relay", "batch_rows");
    assert_eq!(rows.value, "50");
    assert!(matches!(rows.source, Source::File { line: 3, .. }));
    let bytes = setting(&loaded, "relay", "batch_bytes");
    assert_eq!(bytes.source, Source::Default);
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let config = Place::new(&[DATABASE, BROKER, ("POSTRIDER_RELAY_WORKERS", "")]).complete();
    assert_eq!(config.relay.workers, 2);
}

#[test]
fn what_a_variable_overrides_is_checked_too() {
    let place = Place::new(&[("POSTRIDER_RELAY_WORKERS", "2")]).file("[relay]\nworkers = 0\n");
    assert_eq!(place.problems().len(), 1);
}

#[test]
fn unknown_variables_warn_and_never_refuse() {
    let place = Place::new(&[
        DATABASE,
        BROKER,
        ("POSTRIDER_PORT", "tcp://10.0.0.1:7617"),
        ("POSTRIDER_RELAY_WORKER", "2"),
        ("POSTRIDER_CONFIG", ""),
        ("PATH", "/bin"),
    ]);
    let loaded = place.load().unwrap();
    assert_eq!(
        loaded.warnings,
        [
            "environment variables that mean nothing here are ignored: POSTRIDER_PORT, \
          POSTRIDER_RELAY_WORKER (did you mean POSTRIDER_RELAY_WORKERS?)"
        ]
    );
}

#[test]
fn a_missing_url_is_named_with_file_variable_and_command() {
    let loaded = Place::new(&[]).load().unwrap();
    let database = loaded.database().unwrap_err().to_string();
    assert!(database.contains("POSTRIDER_DATABASE_URL"), "{database}");
    assert!(!database.contains("BROKER"), "{database}");
    let all = loaded.complete().unwrap_err().to_string();
    for part in [
        DEFAULT_PATH,
        "POSTRIDER_DATABASE_URL",
        "POSTRIDER_DATABASE_URL_FILE",
        "POSTRIDER_BROKER_URL",
        "postrider config default",
        "2 problems",
    ] {
        assert!(all.contains(part), "{part} is not in: {all}");
    }
}

#[test]
fn two_ways_to_say_one_url_in_one_place_are_an_error() {
    let place = Place::new(&[]).file(
        "[broker]\nurl = \"amqp://a\"\nurls = [\"amqp://b\"]\n\
         [database]\nurl = \"postgres://a\"\nurl_file = \"x\"\n",
    );
    let problems = place.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("[broker] urls: excludes `url`"));
    assert!(problems[1].contains("[database] url_file: excludes `url`"));
}

#[test]
fn a_variable_replaces_whichever_way_the_file_says_the_url() {
    let place = Place::new(&[DATABASE, BROKER])
        .file("[broker]\nurls = [\"amqp://a\", \"amqp://b\"]\n[database]\nurl_file = \"gone\"\n");
    let config = place.complete();
    assert_eq!(config.broker.endpoints.len(), 1);
    assert_eq!(config.broker.endpoints[0].host, "mq");
}

#[test]
fn several_brokers_come_from_one_variable_with_commas() {
    let place = Place::new(&[
        DATABASE,
        ("POSTRIDER_BROKER_URLS", "amqp://a, amqp://b:5673/x"),
    ]);
    let shown: Vec<_> = place
        .complete()
        .broker
        .endpoints
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        shown,
        ["amqp://guest:***@a:5672/%2F", "amqp://guest:***@b:5673/x"]
    );
}

#[test]
fn a_named_file_must_exist_and_the_default_one_need_not() {
    let place = Place::new(&[("POSTRIDER_CONFIG", "/nonexistent/postrider.toml")]);
    assert!(place.problems()[0].contains("/nonexistent/postrider.toml: the configuration file"));
    assert!(Place::new(&[]).load().is_ok());
}
