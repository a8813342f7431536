//! What a reload takes over.

use super::{BROKER, DATABASE, Place};
use crate::config::changes::{RELOADED, reloads};
use crate::config::{Changes, Effective, keys};
use crate::wiring;

fn effective(text: &str) -> Effective {
    Place::new(&[DATABASE, BROKER])
        .file(text)
        .load()
        .unwrap()
        .effective()
        .unwrap()
}

/// Another value than the default for each key that can be set by itself.
const OTHER: &[(&str, &str, &str)] = &[
    ("database", "schema", "\"other\""),
    ("database", "application_name", "\"other\""),
    ("database", "connect_timeout", "\"6s\""),
    ("database", "tcp_user_timeout", "\"16s\""),
    ("broker", "vhost", "\"other\""),
    ("broker", "connection_name", "\"other\""),
    ("broker", "heartbeat", "\"11s\""),
    ("broker", "connect_timeout", "\"11s\""),
    ("relay", "name", "\"other\""),
    ("relay", "outbox", "\"other\""),
    ("relay", "workers", "3"),
    ("relay", "batch_rows", "7"),
    ("relay", "batch_bytes", "7"),
    ("relay", "max_message_bytes", "7"),
    ("relay", "poll_interval", "\"2s\""),
    ("relay", "confirm_timeout", "\"31s\""),
    ("relay", "straggler_timeout", "\"3s\""),
    ("relay", "shutdown_grace", "\"21s\""),
    ("retry", "max_attempts", "7"),
    ("retry", "initial_delay", "\"2s\""),
    ("retry", "max_delay", "\"6min\""),
    ("retry", "multiplier", "3.0"),
    ("unroutable", "policy", "\"accept\""),
    ("dead_letters", "retention", "\"2h\""),
    ("ordering", "horizon", "true"),
    ("ordering", "after_dead_letter", "\"continue\""),
    ("ordering", "in_flight_per_key", "7"),
    ("ordering", "key_header", "\"other\""),
    ("ordering", "seq_header", "\"other\""),
    ("wakeup", "notify", "false"),
    ("wakeup", "quiet_above", "7"),
    ("metrics", "sample_interval", "\"2s\""),
    ("metrics", "backlog_limit", "7"),
    ("metrics", "max_exchanges", "7"),
    ("tracing", "service_name", "\"other\""),
    ("tracing", "sample_ratio", "0.5"),
    ("tracing", "timeout", "\"11s\""),
    ("tracing", "max_queued_spans", "7"),
    ("http", "listen", "\"off\""),
    ("log", "format", "\"json\""),
    ("log", "level", "\"warn\""),
];

#[test]
fn a_key_counts_as_reloaded_exactly_when_the_running_parts_get_it() {
    let default = effective("");
    let mut tried = Vec::new();
    for (section, key, value) in OTHER {
        let now = effective(&format!("[{section}]\n{key} = {value}\n"));
        let name = keys::ALL
            .iter()
            .map(|known| known.name())
            .find(|name| name.section == *section && name.key == *key)
            .unwrap();
        tried.push(name);
        let relay = wiring::reloadable(&default.config) != wiring::reloadable(&now.config);
        let log = default.config.log.level != now.config.log.level;
        assert_eq!(reloads(name), relay || log, "{name}");

        let changes = Changes::between(&default, &default, &now);
        let (taken, left) = match reloads(name) {
            true => (changes.reloaded, changes.need_restart),
            false => (changes.need_restart, changes.reloaded),
        };
        assert!(taken.contains(&name.to_string()), "{name}: {taken:?}");
        assert!(left.is_empty(), "{name}: {left:?}");
    }
    for key in RELOADED {
        assert!(tried.contains(&key.name()), "{} is not tried", key.name());
    }
}

#[test]
fn the_policy_of_one_exchange_is_reloaded_by_its_name() {
    let policy = |policy| format!("[exchanges.audit]\nunroutable = \"{policy}\"\n");
    let (none, accept, retry) = (
        effective(""),
        effective(&policy("accept")),
        effective(&policy("retry")),
    );
    for (before, now) in [(&none, &accept), (&accept, &none), (&accept, &retry)] {
        let changes = Changes::between(&none, before, now);
        assert_eq!(changes.reloaded, ["[exchanges.\"audit\"] unroutable"]);
        assert!(changes.need_restart.is_empty());
    }
}

#[test]
fn a_key_that_needs_a_restart_is_named_until_it_says_again_what_the_daemon_started_with() {
    let start = effective("");
    let other = effective("[relay]\nworkers = 3\nbatch_rows = 7\n");
    let first = Changes::between(&start, &start, &other);
    assert_eq!(first.reloaded, ["[relay] batch_rows"]);
    assert_eq!(first.need_restart, ["[relay] workers"]);
    let second = Changes::between(&start, &other, &other);
    assert!(second.reloaded.is_empty());
    assert_eq!(second.need_restart, ["[relay] workers"]);
    let back = Changes::between(&start, &other, &start);
    assert_eq!(back.reloaded, ["[relay] batch_rows"]);
    assert!(back.need_restart.is_empty());
}

#[test]
fn another_password_in_a_url_needs_a_restart_though_it_is_shown_nowhere() {
    let with = |database: &str, broker: &str| {
        Place::new(&[
            (
                "POSTRIDER_DATABASE_URL",
                &format!("postgres://app:{database}@localhost/shop"),
            ),
            (
                "POSTRIDER_BROKER_URLS",
                &format!("amqp://app:{broker}@localhost,amqp://app:x@localhost:5673"),
            ),
        ])
        .load()
        .unwrap()
        .effective()
        .unwrap()
    };
    let start = with("a", "a");
    for (now, named) in [
        (with("b", "a"), "[database] url"),
        (with("a", "b"), "[broker] urls"),
    ] {
        let changes = Changes::between(&start, &start, &now);
        assert_eq!(changes.need_restart, [named]);
        assert!(changes.reloaded.is_empty());
    }
    assert_eq!(
        Changes::between(&start, &start, &with("a", "a")),
        Changes::default()
    );
}

#[test]
fn the_documentation_names_exactly_the_keys_that_are_reloaded() {
    let documentation = include_str!("../../../../../docs/configuration.md");
    let section = documentation.split("\n## Reload\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let (taken, _) = section
        .split_once("Everything else needs a restart")
        .unwrap();
    for key in keys::ALL.iter().map(|key| key.name()) {
        let row = taken
            .lines()
            .find(|line| line.starts_with(&format!("| `[{}]` |", key.section)));
        let named = row.is_some_and(|row| row.contains(&format!("`{}`", key.key)));
        assert_eq!(named, reloads(key), "{key}");
    }
}
