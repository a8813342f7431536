//! `deploy/prometheus/`: the rules, their tests and the example that scrapes.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::files::{files, read, repository, yaml};
use crate::queries::alerts;

const RUNBOOK: &str = "https://github.com/postrider/postrider/blob/main/docs/operating.md#";

/// Runs promtool on files of that directory.
fn promtool(arguments: &[&str], files: &[String]) {
    let output = Command::new("promtool")
        .args(arguments)
        .args(files)
        .current_dir(repository())
        .output()
        .unwrap_or_else(|error| panic!("promtool, of the package prometheus: {error}"));
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn rule_tests() -> Vec<String> {
    files("deploy/prometheus", ".test.yml")
}

#[test]
fn the_alerts_fire_and_stay_silent_as_their_tests_say() {
    promtool(&["test", "rules"], &rule_tests());
}

#[test]
fn prometheus_accepts_the_example_and_the_rules_it_names() {
    promtool(
        &["check", "config"],
        &["deploy/prometheus/prometheus.yml".to_owned()],
    );
}

#[test]
fn every_alert_is_tested_where_it_fires_and_where_it_does_not() {
    let mut fires = BTreeSet::new();
    let mut silent = BTreeSet::new();
    for file in rule_tests() {
        let text: Value = yaml(&file);
        for test in text["tests"].as_array().unwrap() {
            for case in test["alert_rule_test"].as_array().into_iter().flatten() {
                let alert = case["alertname"].as_str().unwrap().to_owned();
                if case["exp_alerts"].as_array().unwrap().is_empty() {
                    silent.insert(alert);
                } else {
                    fires.insert(alert);
                }
            }
        }
    }
    let alerts: BTreeSet<String> = alerts().into_iter().map(|alert| alert.name).collect();
    assert!(!alerts.is_empty());
    assert_eq!(fires, alerts);
    assert_eq!(silent, alerts);
}

/// The anchor that GitHub gives to a heading.
fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter(|letter| letter.is_alphanumeric() || *letter == ' ' || *letter == '-')
        .map(|letter| if letter == ' ' { '-' } else { letter })
        .collect()
}

fn runbook() -> Vec<(String, String)> {
    let text = read("docs/operating.md");
    text.split("\n## ")
        .skip(1)
        .map(|section| {
            let (heading, body) = section.split_once('\n').unwrap();
            (anchor(heading), body.to_owned())
        })
        .collect()
}

#[test]
fn every_alert_says_how_bad_it_is_and_leads_to_a_section_of_the_runbook_about_what_to_do() {
    let runbook = runbook();
    for alert in alerts() {
        let name = &alert.name;
        let severity = alert.labels["severity"].as_str();
        assert!(["critical", "warning"].contains(&severity), "{name}");
        for annotation in ["summary", "description"] {
            assert!(!alert.annotations[annotation].is_empty(), "{name}");
        }
        let link = &alert.annotations["runbook_url"];
        let wanted = link
            .strip_prefix(RUNBOOK)
            .unwrap_or_else(|| panic!("{name}: {link}"));
        let (_, section) = runbook
            .iter()
            .find(|(anchor, _)| anchor == wanted)
            .unwrap_or_else(|| panic!("{name}: docs/operating.md has no section {wanted}"));
        assert!(
            section.contains("You do") || section.contains("Go down this list"),
            "{name}: {wanted} does not say what to do"
        );
    }
}

#[test]
fn the_metrics_page_lists_every_alert() {
    let page = read("docs/metrics.md");
    for alert in alerts() {
        assert!(
            page.contains(&format!("| `{}` |", alert.name)),
            "{}",
            alert.name
        );
    }
}
