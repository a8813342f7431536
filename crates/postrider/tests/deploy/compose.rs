//! `docker-compose.yml`, and what it mounts.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::files::{repository, texts, yaml};
use crate::image::{build_arguments, stage_names};
use crate::program::{
    assert_accepted, assert_command, default_port, default_seconds, postrider, seconds,
};

/// What Compose takes, as far as it is used here; an unknown key is a mistake.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Compose {
    #[serde(rename = "name")]
    _name: String,
    services: BTreeMap<String, Service>,
    volumes: BTreeMap<String, Option<Value>>,
    // Shared by services, which are looked at.
    #[serde(rename = "x-confined")]
    _confined: Value,
    #[serde(rename = "x-relay")]
    _relay: Value,
    #[serde(rename = "x-relay-environment")]
    _relay_environment: Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    image: String,
    build: Option<Build>,
    #[serde(rename = "hostname")]
    _hostname: Option<String>,
    command: Option<Vec<String>>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    volumes: Vec<String>,
    #[serde(default)]
    ports: Vec<String>,
    healthcheck: Option<HealthCheck>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    cap_drop: Vec<String>,
    #[serde(default)]
    security_opt: Vec<String>,
    stop_grace_period: Option<String>,
    #[serde(rename = "restart")]
    _restart: Option<String>,
    #[serde(default)]
    depends_on: BTreeMap<String, Dependency>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    context: String,
    dockerfile: String,
    target: Option<String>,
    #[serde(default)]
    args: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HealthCheck {
    test: Option<Vec<String>>,
    #[serde(rename = "interval")]
    _interval: Option<String>,
    #[serde(rename = "timeout")]
    _timeout: Option<String>,
    #[serde(rename = "retries")]
    _retries: Option<u32>,
    #[serde(default)]
    disable: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Dependency {
    condition: Condition,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Condition {
    ServiceHealthy,
    ServiceCompletedSuccessfully,
}

/// The relays, by their services.
pub(crate) const RELAYS: [&str; 2] = ["relay-1", "relay-2"];

/// The environment of a service.
pub(crate) fn environment(service: &str) -> BTreeMap<String, String> {
    compose().services[service].environment.clone()
}

fn compose() -> Compose {
    yaml("docker-compose.yml")
}

#[test]
fn the_compose_file_configures_relays_and_migration_with_variables_they_know() {
    let compose = compose();
    for relay in RELAYS {
        let environment = &compose.services[relay].environment;
        assert_eq!(environment["POSTRIDER_RELAY_NAME"], relay);
        let variables = environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        assert_accepted(&postrider(&["check-config"], variables));
        for (name, value) in &compose.services["migrate"].environment {
            assert_eq!(environment.get(name), Some(value), "{name}");
        }
        let port = default_port();
        assert_eq!(
            environment["POSTRIDER_HTTP_LISTEN"],
            format!("0.0.0.0:{port}")
        );
    }
}

#[test]
fn the_compose_file_gives_everyone_the_users_that_the_servers_are_made_with() {
    let services = compose().services;
    let postgres = &services["postgres"].environment;
    let rabbitmq = &services["rabbitmq"].environment;
    let database = format!(
        "postgres://{}:{}@postgres:5432/{}",
        postgres["POSTGRES_USER"], postgres["POSTGRES_PASSWORD"], postgres["POSTGRES_DB"]
    );
    let broker = format!(
        "amqp://{}:{}@rabbitmq:5672/",
        rabbitmq["RABBITMQ_DEFAULT_USER"], rabbitmq["RABBITMQ_DEFAULT_PASS"]
    );
    for relay in RELAYS {
        let relay = &services[relay].environment;
        assert_eq!(relay["POSTRIDER_DATABASE_URL"], database);
        assert_eq!(relay["POSTRIDER_BROKER_URL"], broker);
    }
    assert_eq!(
        services["producer"].environment["ORDERS_DATABASE_URL"],
        database
    );
    assert_eq!(
        services["consumer"].environment["ORDERS_BROKER_URL"],
        broker
    );
}

#[test]
fn what_compose_starts_is_a_command_that_exists() {
    let services = compose().services;
    for service in ["migrate", "relay-1", "relay-2"] {
        assert_command(services[service].command.as_ref().unwrap());
    }
    assert_eq!(services["producer"].command, Some(vec!["place".to_owned()]));
    assert_eq!(
        services["consumer"].command,
        Some(vec!["receive".to_owned()])
    );
}

#[test]
fn our_own_services_are_built_from_the_dockerfile_and_have_no_privilege() {
    let mut ours = 0;
    for (name, service) in compose().services {
        let Some(build) = &service.build else {
            assert!(!service.image.ends_with(":local"), "{name}");
            continue;
        };
        ours += 1;
        assert!(service.image.ends_with(":local"), "{name}");
        assert_eq!(build.context, ".");
        assert!(repository().join(&build.dockerfile).exists());
        if let Some(target) = &build.target {
            assert!(stage_names().contains(target), "{target}");
        }
        for argument in build.args.keys() {
            assert!(build_arguments().contains(argument), "{argument}");
        }
        assert!(service.read_only, "{name}");
        assert_eq!(service.cap_drop, ["ALL"], "{name}");
        assert_eq!(service.security_opt, ["no-new-privileges:true"], "{name}");
    }
    assert_eq!(ours, 5);
}

#[test]
fn every_image_of_others_names_its_version() {
    for (name, service) in compose().services {
        if service.build.is_some() {
            continue;
        }
        let (_, tag) = service.image.split_once(':').unwrap();
        let number = tag.strip_prefix('v').unwrap_or(tag);
        assert!(
            number.starts_with(|first: char| first.is_ascii_digit()),
            "{name}"
        );
        assert!(number.matches('.').count() >= 1, "{name}");
    }
}

#[test]
fn compose_waits_longer_for_a_stop_than_the_daemon_needs_for_what_is_in_flight() {
    let grace = default_seconds("relay", "shutdown_grace");
    for relay in RELAYS {
        let stop = compose().services[relay].stop_grace_period.clone().unwrap();
        assert!(seconds(&stop) > grace);
    }
}

/// The port inside the container on which each service serves.
fn served(service: &str) -> Vec<u16> {
    match service {
        "postgres" => vec![5432],
        "rabbitmq" => vec![5672, 15672],
        "relay-1" | "relay-2" => vec![default_port()],
        "prometheus" => vec![9090],
        "grafana" => vec![3000],
        _ => Vec::new(),
    }
}

#[test]
fn ports_are_those_that_the_services_serve_on_loopback_alone_and_no_two_are_the_same() {
    let mut taken = Vec::new();
    for (name, service) in compose().services {
        let mut inside = Vec::new();
        for port in &service.ports {
            let parts: Vec<&str> = port.split(':').collect();
            assert_eq!(parts[0], "127.0.0.1", "{name}: {port}");
            assert!(!taken.contains(&parts[1].to_owned()), "{name}: {port}");
            taken.push(parts[1].to_owned());
            inside.push(parts[2].parse::<u16>().unwrap());
        }
        assert_eq!(inside, served(&name), "{name}");
    }
}

#[test]
fn whatever_is_waited_for_is_there_and_can_become_what_is_waited_for() {
    let services = compose().services;
    for (name, service) in &services {
        for (needed, dependency) in &service.depends_on {
            let other = services
                .get(needed)
                .unwrap_or_else(|| panic!("{name} waits for {needed}"));
            let checked = other.healthcheck.as_ref().is_some_and(|check| {
                !check.disable && check.test.as_ref().is_some_and(|test| test.len() > 1)
            });
            match dependency.condition {
                Condition::ServiceHealthy => assert!(checked, "{name} waits for {needed}"),
                Condition::ServiceCompletedSuccessfully => {
                    assert_eq!(needed, "migrate", "{name}");
                }
            }
        }
    }
    for relay in RELAYS {
        let needed: Vec<&String> = services[relay].depends_on.keys().collect();
        assert_eq!(needed, ["migrate", "rabbitmq"]);
    }
}

/// What is mounted from the repository, by its path in the container.
fn mounts(service: &Service) -> BTreeMap<String, String> {
    service
        .volumes
        .iter()
        .filter_map(|volume| volume.strip_prefix("./"))
        .map(|volume| {
            let parts: Vec<&str> = volume.split(':').collect();
            assert_eq!(parts[2], "ro", "{volume}");
            (parts[1].to_owned(), parts[0].to_owned())
        })
        .collect()
}

/// The file of the repository that a path in the container is.
fn mounted(service: &Service, path: &str) -> String {
    mounts(service)
        .iter()
        .find_map(|(inside, outside)| {
            path.strip_prefix(inside.as_str())
                .map(|rest| format!("{outside}{rest}"))
        })
        .unwrap_or_else(|| panic!("{path} is not mounted"))
}

#[test]
fn everything_that_is_mounted_exists_and_every_volume_is_declared() {
    let compose = compose();
    for (name, service) in &compose.services {
        for outside in mounts(service).values() {
            assert!(repository().join(outside).exists(), "{name}: {outside}");
        }
        for volume in service
            .volumes
            .iter()
            .filter(|volume| !volume.starts_with('.'))
        {
            let (volume, _) = volume.split_once(':').unwrap();
            assert!(compose.volumes.contains_key(volume), "{name}: {volume}");
        }
    }
}

#[test]
fn prometheus_scrapes_both_relays_with_the_rules_and_grafana_finds_prometheus_and_the_dashboard() {
    let services = compose().services;
    let prometheus = &services["prometheus"];
    // Where the image's own command looks.
    let config = mounted(prometheus, "/etc/prometheus/prometheus.yml");
    let config: Value = yaml(&config);
    let targets = texts(&config["scrape_configs"][0]["static_configs"][0]["targets"]);
    let port = default_port();
    assert_eq!(targets, RELAYS.map(|relay| format!("{relay}:{port}")));
    for rules in texts(&config["rule_files"]) {
        let rules = mounted(prometheus, &format!("/etc/prometheus/{rules}"));
        assert!(repository().join(rules).exists());
    }

    let grafana = &services["grafana"];
    let provisioning = "/etc/grafana/provisioning";
    let sources: Value = yaml(&mounted(
        grafana,
        &format!("{provisioning}/datasources/prometheus.yml"),
    ));
    let source = &sources["datasources"][0];
    assert_eq!(source["url"], "http://prometheus:9090");
    assert_eq!(source["type"], "prometheus");
    let interval = &config["global"]["scrape_interval"];
    assert_eq!(&source["jsonData"]["timeInterval"], interval);
    let dashboards: Value = yaml(&mounted(
        grafana,
        &format!("{provisioning}/dashboards/postrider.yml"),
    ));
    let path = dashboards["providers"][0]["options"]["path"]
        .as_str()
        .unwrap();
    let home = &grafana.environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"];
    assert!(home.starts_with(path), "{home}");
    assert_eq!(mounted(grafana, home), crate::queries::DASHBOARD);
}
