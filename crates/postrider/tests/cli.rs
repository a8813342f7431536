//! The real binary: what it prints where, and how it ends.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::process::{Command, Output};

/// Runs the program without the variables of whoever runs the tests.
fn postrider(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_postrider"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const URLS: [(&str, &str); 2] = [
    ("POSTRIDER_DATABASE_URL", "postgres://app:canary@db/shop"),
    ("POSTRIDER_BROKER_URL", "amqps://app:canary@mq"),
];

const ID: &str = "0193d5c4-9d1f-7c3a-8f0e-2b6a4c1d5e7f";

#[test]
fn without_arguments_it_shows_its_help_and_ends_with_2() {
    let output = postrider(&[], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Usage: postrider"));
    assert!(stderr(&output).contains("Examples:"));
}

#[test]
fn help_and_version_end_with_0_and_name_commands_and_commit() {
    let output = postrider(&["--help"], &[]);
    assert_eq!(output.status.code(), Some(0));
    for command in [
        "run",
        "migrate",
        "check",
        "check-config",
        "config",
        "status",
        "dead-letters",
        "deferred",
        "publish",
        "grants",
        "health",
        "completions",
    ] {
        assert!(
            stdout(&output).contains(&format!("\n  {command} ")),
            "{command}"
        );
        let output = postrider(&[command, "--help"], &[]);
        assert_eq!(output.status.code(), Some(0), "{command}");
    }
    let output = postrider(&["--version"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let version = stdout(&output);
    let rest = version
        .strip_prefix(concat!("postrider ", env!("CARGO_PKG_VERSION"), " ("))
        .unwrap();
    assert!(
        rest.trim_end().ends_with(')') && rest.len() > 3,
        "{version}"
    );
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [
        &["relay"][..],
        &["run", "--workers", "4"],
        &["migrate", "--dry-run", "--print"],
        &["status", "--max-lag", "60"],
        &["status", "--max-lag", "60s", "--watch"],
        &["publish", "--exchange", "e"],
        &[
            "publish",
            "--exchange",
            "e",
            "--routing-key",
            "k",
            "--id",
            "1",
        ],
        &[
            "publish",
            "--exchange",
            "e",
            "--routing-key",
            "k",
            "--header",
            "a",
        ],
        &["config"],
        &["dead-letters"],
        &["dead-letters", "retry"],
        &["dead-letters", "retry", "--dry-run"],
        &["dead-letters", "retry", "1"],
        &["dead-letters", "retry", "--all", "--exchange", "e"],
        &["dead-letters", "retry", "--all", ID],
        &["dlq", "discard", "--yes"],
        &["dlq", "list", "--reason", "bad_luck"],
        &["dlq", "list", "--limit", "0"],
        &["dlq", "list", "--older-than", "5"],
        &["dlq", "show"],
        &["deferred", "release"],
        &["deferred", "release", "--all", "--reason", "nacked"],
        &["grants"],
        &["grants", "relay"],
        &["grants", "owner", "--role", "r"],
        &["grants", "relay", "--role", "pg_relay"],
        &["grants", "relay", "--role", "r", "--insert"],
        &["grants", "producer", "--role", "r", "--insert", "--revoke"],
        &["completions", "tcl"],
        &["-c", "a", "check-config", "b"],
    ] {
        let output = postrider(arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stdout(&output).is_empty(), "{arguments:?}");
    }
}

/// Before it connects to anything: the database of these variables is not there.
#[test]
fn discarding_is_refused_with_2_where_nobody_can_be_asked() {
    let output = postrider(&["dead-letters", "discard", ID], &URLS);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("--yes"), "{}", stderr(&output));
    assert!(stdout(&output).is_empty());
}

#[test]
fn the_help_of_a_change_says_what_an_interruption_leaves_behind() {
    for (arguments, done) in [
        (["dead-letters", "retry"], "moved"),
        (["dead-letters", "discard"], "deleted"),
        (["deferred", "release"], "released"),
    ] {
        let output = postrider(&[arguments[0], arguments[1], "--help"], &[]);
        assert_eq!(output.status.code(), Some(0));
        let help = stdout(&output)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        let said = format!("Interrupted, it has {done} whole thousands and touched nothing else");
        assert!(help.contains(&said), "{help}");
    }
}

#[test]
fn a_configuration_that_is_right_ends_with_0() {
    let output = postrider(&["check-config"], &URLS);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("is valid"));
    assert!(stderr(&output).is_empty());
}

#[test]
fn a_configuration_that_is_wrong_or_incomplete_ends_with_78() {
    let output = postrider(&["check-config"], &[]);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("POSTRIDER_DATABASE_URL"));
    assert!(stdout(&output).is_empty());

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("postrider.toml");
    std::fs::write(&file, "[relay]\nwokers = 1\nworkers = 0\n").unwrap();
    let file = file.to_str().unwrap();
    for arguments in [
        &["check-config", file][..],
        &["-c", file, "check-config"],
        &["check-config", "--config", file],
        &["-c", file, "config", "show"],
    ] {
        let output = postrider(arguments, &URLS);
        assert_eq!(output.status.code(), Some(78), "{arguments:?}");
        let error = stderr(&output);
        assert!(
            error.contains(&format!("{file}:2: [relay] wokers")),
            "{error}"
        );
        assert!(
            error.contains(&format!("{file}:3: [relay] workers")),
            "{error}"
        );
        assert!(!error.contains("canary"), "{error}");
    }
    let output = postrider(&["-c", "/nonexistent.toml", "check-config"], &URLS);
    assert_eq!(output.status.code(), Some(78));
}

#[test]
fn the_effective_configuration_is_shown_with_its_sources_and_without_secrets() {
    let output = postrider(&["config", "show"], &URLS);
    assert_eq!(output.status.code(), Some(0));
    let shown = stdout(&output);
    assert!(
        shown.contains("url = \"postgres://app:***@db:5432/shop\""),
        "{shown}"
    );
    assert!(shown.contains("# POSTRIDER_DATABASE_URL"), "{shown}");
    assert!(shown.contains("outbox = \"shop\""), "{shown}");
    assert!(!shown.contains("canary"), "{shown}");
    assert!(shown.contains("workers = 2"), "{shown}");
    assert!(shown.contains("multiplier = 2.0"), "{shown}");
}

#[test]
fn the_default_file_that_is_printed_passes_the_check() {
    let output = postrider(&["config", "default"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("postrider.toml");
    std::fs::write(&file, &output.stdout).unwrap();
    let output = postrider(&["check-config", file.to_str().unwrap()], &URLS);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn a_completion_script_is_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = postrider(&["completions", shell], &[]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(stdout(&output).contains("check-config"), "{shell}");
    }
}
