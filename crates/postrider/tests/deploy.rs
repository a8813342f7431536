//! The files that run the daemon elsewhere say what the daemon understands: `deploy/`, `docker-compose.yml`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy.toml allows these in test functions, but not in what they call"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn postrider<'a>(
    arguments: &[&str],
    variables: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Output {
    Command::new(env!("CARGO_BIN_EXE_postrider"))
        .args(arguments)
        .env_clear()
        .envs(variables)
        .output()
        .unwrap()
}

/// That the program has nothing to say against its configuration, not even a warning.
fn assert_accepted(output: &Output) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr, "");
}

/// The default of a duration in the documented configuration.
fn default_seconds(section: &str, key: &str) -> u64 {
    let config: toml::Table = read("config/postrider.toml").parse().unwrap();
    seconds(config[section][key].as_str().unwrap())
}

fn default_port() -> String {
    let config: toml::Table = read("config/postrider.toml").parse().unwrap();
    let listen = config["http"]["listen"].as_str().unwrap();
    listen.rsplit(':').next().unwrap().to_owned()
}

fn seconds(text: &str) -> u64 {
    text.strip_suffix('s')
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{text} is no number of seconds"))
}

/// The lines under a heading of the compose file, without their indentation: `["services", "relay"]`.
fn compose(path: &[&str]) -> Vec<String> {
    let text = read("docker-compose.yml");
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        .map(str::to_owned)
        .collect();
    for heading in path {
        let start = lines
            .iter()
            .position(|line| line.starts_with(&format!("{heading}:")))
            .unwrap_or_else(|| panic!("no {heading} in {path:?}"));
        lines = lines[start + 1..]
            .iter()
            .map_while(|line| line.strip_prefix("  ").map(str::to_owned))
            .collect();
    }
    lines
}

/// A value under a heading of the compose file.
fn compose_value(path: &[&str], key: &str) -> String {
    compose(path)
        .iter()
        .find_map(|line| line.strip_prefix(&format!("{key}: ")))
        .unwrap_or_else(|| panic!("no {key} in {path:?}"))
        .trim_matches('"')
        .to_owned()
}

fn compose_environment(service: &str) -> BTreeMap<String, String> {
    compose(&["services", service, "environment"])
        .iter()
        .map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_owned(), value.trim_matches('"').to_owned())
        })
        .collect()
}

/// The arguments of all instructions of that name in the Dockerfile, with continued lines joined.
fn dockerfile(instruction: &str) -> Vec<String> {
    read("deploy/Dockerfile")
        .replace("\\\n", " ")
        .lines()
        .filter_map(|line| line.strip_prefix(&format!("{instruction} ")))
        .map(str::to_owned)
        .collect()
}

/// The values of a directive of the systemd unit.
fn unit(directive: &str) -> Vec<String> {
    read("deploy/systemd/postrider.service")
        .lines()
        .filter_map(|line| line.strip_prefix(&format!("{directive}=")))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_compose_file_configures_the_relay_with_variables_it_knows() {
    let environment = compose_environment("relay");
    let variables = environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    assert_accepted(&postrider(&["check-config"], variables));

    for (name, value) in compose_environment("migrate") {
        assert_eq!(environment.get(&name), Some(&value), "{name}");
    }
}

#[test]
fn the_compose_file_gives_the_relay_the_users_that_the_servers_are_made_with() {
    let postgres = compose_environment("postgres");
    let rabbitmq = compose_environment("rabbitmq");
    let relay = compose_environment("relay");
    assert_eq!(
        relay["POSTRIDER_DATABASE_URL"],
        format!(
            "postgres://{}:{}@postgres:5432/{}",
            postgres["POSTGRES_USER"], postgres["POSTGRES_PASSWORD"], postgres["POSTGRES_DB"]
        )
    );
    assert_eq!(
        relay["POSTRIDER_BROKER_URL"],
        format!(
            "amqp://{}:{}@rabbitmq:5672/",
            rabbitmq["RABBITMQ_DEFAULT_USER"], rabbitmq["RABBITMQ_DEFAULT_PASS"]
        )
    );
}

#[test]
fn the_image_configures_the_daemon_with_variables_it_knows() {
    let settings = dockerfile("ENV");
    let mut variables: Vec<(&str, &str)> = settings
        .iter()
        .map(|setting| setting.split_once('=').unwrap())
        .collect();
    variables.push(("POSTRIDER_DATABASE_URL", "postgres://app@db/shop"));
    variables.push(("POSTRIDER_BROKER_URL", "amqp://mq"));
    assert_accepted(&postrider(&["check-config"], variables));
}

#[test]
fn a_container_serves_http_to_the_outside_on_the_default_port() {
    let port = default_port();
    let everywhere = format!("0.0.0.0:{port}");
    assert_eq!(
        dockerfile("ENV"),
        [format!("POSTRIDER_HTTP_LISTEN={everywhere}")]
    );
    assert_eq!(dockerfile("EXPOSE"), [port.as_str()]);
    assert_eq!(
        compose_environment("relay")["POSTRIDER_HTTP_LISTEN"],
        everywhere
    );
    assert_eq!(
        compose(&["services", "relay", "ports"]),
        [format!("  - \"127.0.0.1:{port}:{port}\"").trim_start()]
    );
}

#[test]
fn what_is_started_is_a_command_that_exists() {
    let quoted = |text: &str| -> Vec<String> {
        text.split('"')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    };
    let mut commands = vec![
        quoted(&compose_value(&["services", "migrate"], "command")),
        quoted(&compose_value(&["services", "relay"], "command")),
        quoted(&dockerfile("CMD")[0]),
    ];
    assert_eq!(quoted(&dockerfile("ENTRYPOINT")[0]), ["/usr/bin/postrider"]);
    let check = dockerfile("HEALTHCHECK");
    let check = quoted(&check[0]);
    assert_eq!(check[0], "/usr/bin/postrider");
    commands.push(check[1..].to_vec());
    let start = unit("ExecStart");
    let start: Vec<&str> = start[0].split(' ').collect();
    assert_eq!(start[0], "/usr/bin/postrider");
    commands.push(start[1..].iter().map(|&word| word.to_owned()).collect());

    for command in commands {
        let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        assert!(!arguments.is_empty());
        arguments.push("--help");
        let output = postrider(&arguments, []);
        assert!(output.status.success(), "{arguments:?}");
    }
}

#[test]
fn the_image_is_built_from_files_that_exist_and_are_sent_to_the_builder() {
    let ignore = read(".dockerignore");
    let ignore: Vec<&str> = ignore.lines().collect();
    assert!(ignore.contains(&"*"));
    for copy in dockerfile("COPY") {
        if copy.starts_with("--from=") {
            continue;
        }
        let mut sources: Vec<&str> = copy.split(' ').collect();
        sources.pop();
        for source in sources {
            assert!(repository().join(source).exists(), "{source}");
            assert!(ignore.contains(&format!("!{source}").as_str()), "{source}");
        }
    }
    for service in ["migrate", "relay"] {
        assert!(
            compose(&["services", service])
                .iter()
                .any(|line| line.starts_with("build:"))
        );
    }
    let build = ["services", "migrate", "build"];
    assert_eq!(compose_value(&build, "context"), ".");
    let file = compose_value(&build, "dockerfile");
    assert!(repository().join(&file).exists(), "{file}");
}

#[test]
fn the_image_is_built_with_the_oldest_rust_that_is_supported() {
    let workspace: toml::Table = read("Cargo.toml").parse().unwrap();
    let oldest = workspace["workspace"]["package"]["rust-version"]
        .as_str()
        .unwrap();
    let from = dockerfile("FROM");
    assert!(from[0].starts_with(&format!("rust:{oldest}.")), "{from:?}");
}

#[test]
fn the_image_knows_the_commit_it_was_built_from() {
    let build_script =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs")).unwrap();
    for argument in dockerfile("ARG") {
        let name = argument.split('=').next().unwrap();
        assert!(build_script.contains(&format!("\"{name}\"")), "{name}");
    }
    let argument = &compose(&["services", "migrate", "build", "args"])[0];
    assert!(dockerfile("ARG")[0].starts_with(argument.split(':').next().unwrap()));
}

#[test]
fn every_image_names_its_version() {
    let text = read("docker-compose.yml");
    let images = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("image: "))
        .filter(|image| *image != "postrider:local")
        .map(str::to_owned)
        .chain(dockerfile("FROM"));
    for image in images {
        let image = image.split(' ').next().unwrap();
        let tag = image.split_once(':').map(|(_, tag)| tag);
        assert!(
            tag.is_some_and(|tag| tag.starts_with(|first: char| first.is_ascii_digit())),
            "{image}"
        );
    }
}

#[test]
fn whoever_stops_the_daemon_waits_longer_than_it_needs_for_what_is_in_flight() {
    let grace = default_seconds("relay", "shutdown_grace");
    assert!(seconds(&unit("TimeoutStopSec")[0]) > grace);
    let stop = compose_value(&["services", "relay"], "stop_grace_period");
    assert!(seconds(&stop) > grace);
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
            "broker-url" => "amqp://app@mq",
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
