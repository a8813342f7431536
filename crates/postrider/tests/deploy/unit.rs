//! `deploy/systemd/postrider.service`.

use std::fs;
use std::process::{Command, Output};

use crate::files::read;
use crate::program::{assert_accepted, assert_command, default_seconds, postrider, seconds};

/// The values of a directive of the unit.
fn unit(directive: &str) -> Vec<String> {
    read("deploy/systemd/postrider.service")
        .lines()
        .filter_map(|line| line.strip_prefix(&format!("{directive}=")))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_unit_starts_a_command_that_exists() {
    let start = unit("ExecStart");
    let start: Vec<&str> = start[0].split(' ').collect();
    assert_eq!(start[0], "/usr/bin/postrider");
    assert_command(&start[1..]);
}

#[test]
fn the_unit_waits_longer_for_a_stop_than_the_daemon_needs_for_what_is_in_flight() {
    let grace = default_seconds("relay", "shutdown_grace");
    assert!(seconds(&unit("TimeoutStopSec")[0]) > grace);
}

#[test]
fn the_watchdog_outlasts_a_batch_that_waits_for_its_confirms() {
    let watchdog = seconds(&unit("WatchdogSec")[0]);
    assert!(watchdog > 2 * default_seconds("relay", "confirm_timeout"));
}

#[test]
fn the_unit_does_not_restart_on_a_wrong_command_line_or_configuration() {
    let prevented = unit("RestartPreventExitStatus");
    let prevented: Vec<&str> = prevented[0].split(' ').collect();
    for arguments in [&["run", "--no-such-flag"][..], &["run"][..]] {
        let code = postrider(arguments, [("POSTRIDER_RELAY_WORKERS", "0")])
            .status
            .code()
            .unwrap();
        assert!(prevented.contains(&code.to_string().as_str()), "{code}");
    }
}

#[test]
fn the_unit_hands_over_credentials_under_the_names_that_are_read() {
    let directory = tempfile::tempdir().unwrap();
    for credential in unit("LoadCredential") {
        let (name, source) = credential.split_once(':').unwrap();
        assert_eq!(source, format!("postrider.{name}"));
        let secret = match name {
            "database-url" => "postgres://app@db/shop",
            "broker-url" => "amqps://app@mq",
            "broker-password" => "canary",
            other => panic!("nothing reads the credential {other}"),
        };
        fs::write(directory.path().join(name), secret).unwrap();
    }
    let directory = directory.path().to_str().unwrap();
    assert_accepted(&postrider(
        &["check-config"],
        [("CREDENTIALS_DIRECTORY", directory)],
    ));
}

/// The unit as it would be where the program is installed: `systemd-analyze` looks whether it can be executed.
fn installed() -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("postrider.service");
    let text = read("deploy/systemd/postrider.service");
    let program = env!("CARGO_BIN_EXE_postrider");
    fs::write(
        &path,
        text.replace("=/usr/bin/postrider ", &format!("={program} ")),
    )
    .unwrap();
    (directory, path.to_str().unwrap().to_owned())
}

fn systemd_analyze(arguments: &[&str]) -> Output {
    Command::new("systemd-analyze")
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap_or_else(|error| {
            panic!("systemd-analyze: {error}; scripts/prepare test installs it")
        })
}

#[test]
fn systemd_has_nothing_to_say_against_the_unit() {
    let (_directory, unit) = installed();
    // Its manual pages are where a package puts them; the tests of the package look for them.
    let output = systemd_analyze(&["verify", "--man=no", &unit]);
    assert!(output.status.success(), "{output:?}");
    assert!(
        output.stdout.is_empty() && output.stderr.is_empty(),
        "{output:?}"
    );
}

#[test]
fn the_unit_exposes_the_machine_by_1_5_at_most() {
    let (_directory, unit) = installed();
    // In tenths.
    let output = systemd_analyze(&[
        "security",
        "--offline=true",
        "--no-pager",
        "--threshold=15",
        &unit,
    ]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("Overall exposure level"), "{output:?}");
}

#[test]
fn a_reload_sends_the_signal_that_the_daemon_reloads_at() {
    assert_eq!(unit("ExecReload"), ["/bin/kill -HUP $MAINPID"]);
    assert_eq!(unit("Type"), ["notify"]);
}
