//! `deploy/kubernetes/`: what Kubernetes, kustomize and the Prometheus operator accept, and what keeps an outage from
//! becoming a restart.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files::{files, read, yaml};
use crate::program::{assert_accepted, assert_command, default_port, default_seconds, postrider};
use crate::queries::RULES;

const BASE: &str = "deploy/kubernetes/base";
const MONITORED: &str = "deploy/kubernetes/monitored";

/// Reads what a manifest says into Kubernetes' own type. Nothing may be lost on the way: a field that Kubernetes does not
/// know, or knows elsewhere, is one.
fn as_kubernetes_reads<T: DeserializeOwned + Serialize>(manifest: &Value) -> T {
    let read: T = serde_json::from_value(manifest.clone())
        .unwrap_or_else(|error| panic!("{error}: {manifest}"));
    assert_eq!(&serde_json::to_value(&read).unwrap(), manifest);
    read
}

fn manifest<T: DeserializeOwned + Serialize>(name: &str) -> T {
    as_kubernetes_reads(&yaml(&format!("{BASE}/{name}.yaml")))
}

/// The documents of a file.
fn documents(path: &str) -> Vec<Value> {
    read(path)
        .split("\n---\n")
        .map(|document| serde_saphyr::from_str(document).unwrap())
        .collect()
}

fn pod(template: PodTemplateSpec) -> PodSpec {
    template.spec.unwrap()
}

fn relay() -> PodSpec {
    pod(manifest::<Deployment>("deployment").spec.unwrap().template)
}

fn migration() -> PodSpec {
    pod(manifest::<Job>("migrate").spec.unwrap().template)
}

fn secrets() -> Vec<Secret> {
    documents(&format!("{BASE}/secret.example.yaml"))
        .iter()
        .map(as_kubernetes_reads)
        .collect()
}

#[test]
fn an_outage_of_the_broker_restarts_nothing() {
    let container = &relay().containers[0];
    for probe in [&container.startup_probe, &container.liveness_probe] {
        let request = probe.as_ref().unwrap().http_get.as_ref().unwrap();
        assert_eq!(request.path.as_deref(), Some("/livez"));
    }
    let readiness = container.readiness_probe.as_ref().unwrap();
    let request = readiness.http_get.as_ref().unwrap();
    assert_eq!(request.path.as_deref(), Some("/readyz"));
    let budget: PodDisruptionBudget = manifest("pod-disruption-budget");
    assert_eq!(
        budget
            .spec
            .unwrap()
            .unhealthy_pod_eviction_policy
            .as_deref(),
        Some("AlwaysAllow")
    );
    let service: Service = manifest("service");
    assert_eq!(
        service.spec.unwrap().publish_not_ready_addresses,
        Some(true)
    );
}

#[test]
fn a_pod_has_longer_to_stop_than_the_daemon_needs_for_what_is_in_flight() {
    let grace = relay().termination_grace_period_seconds.unwrap();
    assert!(u64::try_from(grace).unwrap() > default_seconds("relay", "shutdown_grace"));
}

#[test]
fn pods_have_no_privilege_and_are_told_nothing_about_services() {
    for pod in [relay(), migration()] {
        assert_eq!(pod.enable_service_links, Some(false));
        assert_eq!(pod.automount_service_account_token, Some(false));
        let security = pod.security_context.unwrap();
        assert_eq!(security.run_as_non_root, Some(true));
        assert_eq!(security.run_as_user, Some(65532));
        assert_eq!(security.run_as_group, Some(65532));
        assert_eq!(security.seccomp_profile.unwrap().type_, "RuntimeDefault");
        for container in &pod.containers {
            let security = container.security_context.as_ref().unwrap();
            assert_eq!(security.allow_privilege_escalation, Some(false));
            assert_eq!(security.read_only_root_filesystem, Some(true));
            let capabilities = security.capabilities.as_ref().unwrap();
            assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
            assert_eq!(capabilities.add, None);
            let resources = container.resources.as_ref().unwrap();
            assert!(resources.requests.as_ref().unwrap().contains_key("memory"));
            assert!(resources.limits.as_ref().unwrap().contains_key("memory"));
        }
    }
}

#[test]
fn pods_run_commands_that_exist_with_settings_and_secrets_that_are_read() {
    for pod in [relay(), migration()] {
        let container = &pod.containers[0];
        assert_command(container.args.as_ref().unwrap());

        let directory = tempfile::tempdir().unwrap();
        let place = |path: &str| directory.path().join(path.trim_start_matches('/'));
        for volume in pod.volumes.as_ref().unwrap() {
            let mounts = container.volume_mounts.as_ref().unwrap();
            let mount = mounts.iter().find(|mount| mount.name == volume.name);
            let at = place(&mount.unwrap().mount_path);
            fs::create_dir_all(&at).unwrap();
            if let Some(config) = &volume.config_map {
                assert_eq!(config.name, "postrider");
                let text = read(&format!("{BASE}/postrider.toml"));
                fs::write(at.join("postrider.toml"), text).unwrap();
            }
            if let Some(source) = &volume.secret {
                let secrets = secrets();
                let secret = secrets
                    .iter()
                    .find(|secret| secret.metadata.name == source.secret_name)
                    .unwrap();
                let mode = u32::try_from(source.default_mode.unwrap()).unwrap();
                for (key, value) in secret.string_data.as_ref().unwrap() {
                    let file = at.join(key);
                    fs::write(&file, value).unwrap();
                    fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
                }
            }
        }
        let mut variables: Vec<(String, String)> = container
            .env
            .as_ref()
            .unwrap()
            .iter()
            .map(|variable| {
                let path = place(variable.value.as_ref().unwrap());
                assert!(path.exists(), "{}", variable.name);
                (variable.name.clone(), path.to_str().unwrap().to_owned())
            })
            .collect();
        if container.name == "migrate" {
            // The program checks everything that `run` needs, and a migration needs no broker.
            variables.push(("POSTRIDER_BROKER_URL".into(), "amqps://mq.shop.svc".into()));
        }
        let config = place("/etc/postrider/postrider.toml");
        let output = postrider(
            &["check-config", config.to_str().unwrap()],
            variables
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        );
        assert_accepted(&output);
    }
}

#[test]
fn prometheus_finds_the_port_that_the_daemon_serves() {
    let ports = relay().containers[0].ports.clone().unwrap();
    assert_eq!(ports.len(), 1);
    assert_eq!(ports[0].container_port, i32::from(default_port()));
    let name = ports[0].name.clone().unwrap();
    let service: Service = manifest("service");
    let service_ports = service.spec.unwrap().ports.unwrap();
    assert_eq!(service_ports[0].name.as_ref(), Some(&name));
    let monitor: ServiceMonitor = yaml(&format!("{MONITORED}/service-monitor.yaml"));
    assert_eq!(monitor.spec.endpoints[0].port, name);
    assert_eq!(monitor.spec.endpoints[0].path, "/metrics");
}

#[test]
fn selectors_match_the_labels_that_are_given() {
    let deployment: Deployment = manifest("deployment");
    let spec = deployment.spec.unwrap();
    let mut labels = spec
        .template
        .metadata
        .as_ref()
        .unwrap()
        .labels
        .clone()
        .unwrap();
    let service: Service = manifest("service");
    let budget: PodDisruptionBudget = manifest("pod-disruption-budget");
    let mut selectors = vec![
        spec.selector.match_labels.clone().unwrap(),
        service.spec.as_ref().unwrap().selector.clone().unwrap(),
        budget.spec.unwrap().selector.unwrap().match_labels.unwrap(),
    ];
    // Kustomize adds this one to all of them.
    let kustomization: Kustomization = yaml(&format!("{BASE}/kustomization.yaml"));
    let added = kustomization.labels[0].pairs.clone();
    assert!(kustomization.labels[0].include_selectors);
    labels.extend(added.clone());
    for selector in &mut selectors {
        selector.extend(added.clone());
    }
    for constraint in pod(spec.template).topology_spread_constraints.unwrap() {
        selectors.push(constraint.label_selector.unwrap().match_labels.unwrap());
    }
    for selector in selectors {
        assert_eq!(selector, labels);
    }
    let migration: Job = manifest("migrate");
    let of_migration = migration.spec.unwrap().template.metadata.unwrap().labels;
    assert_ne!(of_migration.unwrap(), labels);

    let mut of_service = service.metadata.labels.unwrap();
    of_service.extend(added);
    let monitor: ServiceMonitor = yaml(&format!("{MONITORED}/service-monitor.yaml"));
    assert_eq!(monitor.spec.selector.match_labels, of_service);
}

#[test]
fn the_operators_rules_are_the_rules_that_are_tested() {
    let rule: PrometheusRule = yaml(&format!("{MONITORED}/prometheus-rule.yaml"));
    let rules: Value = yaml(RULES);
    assert_eq!(
        rule.spec, rules,
        "copy deploy/prometheus/postrider.rules.yml"
    );
}

#[test]
fn the_kustomizations_name_every_manifest_but_the_example_of_a_secret() {
    for directory in [BASE, MONITORED] {
        let kustomization: Kustomization = yaml(&format!("{directory}/kustomization.yaml"));
        let mut named: BTreeSet<String> = kustomization
            .resources
            .iter()
            .filter(|resource| *resource != "../base")
            .map(|resource| format!("{directory}/{resource}"))
            .collect();
        named.insert(format!("{directory}/kustomization.yaml"));
        let there: BTreeSet<String> = files(directory, ".yaml")
            .into_iter()
            .filter(|file| !file.ends_with(".example.yaml"))
            .collect();
        assert_eq!(named, there);
    }
}

#[test]
fn the_image_is_that_of_this_version() {
    let workspace: toml::Table = read("Cargo.toml").parse().unwrap();
    let version = workspace["workspace"]["package"]["version"].as_str();
    let kustomization: Kustomization = yaml(&format!("{BASE}/kustomization.yaml"));
    assert_eq!(Some(kustomization.images[0].new_tag.as_str()), version);
    for pod in [relay(), migration()] {
        let image = pod.containers[0].image.as_ref().unwrap();
        assert_eq!(image, &kustomization.images[0].name);
    }
}

/// What kustomize takes, as far as it is used here.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kustomization {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    labels: Vec<AddedLabels>,
    resources: Vec<String>,
    #[serde(default, rename = "configMapGenerator")]
    _config_map_generator: Vec<GeneratedConfigMap>,
    #[serde(default)]
    images: Vec<Image>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AddedLabels {
    pairs: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    include_selectors: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GeneratedConfigMap {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "files")]
    _files: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Image {
    name: String,
    #[serde(rename = "newName")]
    _new_name: String,
    new_tag: String,
}

/// What the Prometheus operator takes, as far as it is used here: its types are no part of Kubernetes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceMonitor {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    _metadata: Value,
    spec: Monitored,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Monitored {
    selector: Selector,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Selector {
    match_labels: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Endpoint {
    port: String,
    path: String,
    #[serde(rename = "interval")]
    _interval: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrometheusRule {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    _metadata: Value,
    spec: Value,
}
