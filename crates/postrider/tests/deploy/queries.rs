//! Every query of the rules and of the dashboard, and the metrics they ask for.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use crate::files::{read, yaml};

pub(crate) const RULES: &str = "deploy/prometheus/postrider.rules.yml";
pub(crate) const DASHBOARD: &str = "deploy/grafana/postrider.json";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    #[serde(rename = "name")]
    _name: String,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: Option<String>,
    record: Option<String>,
    expr: String,
    #[serde(rename = "for")]
    _for: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// An alerting rule.
#[derive(Debug)]
pub(crate) struct Alert {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A query, and whose it is.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) owner: String,
    pub(crate) expression: String,
}

fn rules() -> Vec<Rule> {
    let rules: Rules = yaml(RULES);
    rules
        .groups
        .into_iter()
        .flat_map(|group| group.rules)
        .collect()
}

pub(crate) fn alerts() -> Vec<Alert> {
    rules()
        .into_iter()
        .filter_map(|rule| {
            Some(Alert {
                name: rule.alert?,
                labels: rule.labels,
                annotations: rule.annotations,
            })
        })
        .collect()
}

pub(crate) fn of_rules() -> Vec<Query> {
    rules()
        .into_iter()
        .map(|rule| Query {
            owner: rule.alert.or(rule.record).unwrap(),
            expression: rule.expr,
        })
        .collect()
}

pub(crate) fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD)).unwrap()
}

/// What the dashboard asks, as Grafana would with everything selected.
pub(crate) fn of_dashboard() -> Vec<Query> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let of_panels = panels.iter().flat_map(|panel| {
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.map(|target| Query {
            owner: format!("panel {}, {}", panel["title"], target["refId"]),
            expression: with_everything_selected(target["expr"].as_str().unwrap()),
        })
    });
    let annotations = dashboard["annotations"]["list"].as_array().unwrap();
    let of_annotations = annotations.iter().filter_map(|annotation| {
        Some(Query {
            owner: format!("annotation {}", annotation["name"]),
            expression: with_everything_selected(annotation["expr"].as_str()?),
        })
    });
    of_panels.chain(of_annotations).collect()
}

fn with_everything_selected(expression: &str) -> String {
    let selected = expression
        .replace("$outbox", ".*")
        .replace("$instance", ".*")
        .replace("$__rate_interval", "1m");
    assert!(!selected.contains('$'), "{expression}");
    selected
}

/// The selectors of metrics of the daemon in a query: `postrider_connected{peer="broker"}`.
pub(crate) fn selectors(expression: &str) -> Vec<String> {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == ':';
    let mut selectors = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find(is_name) {
        rest = &rest[start..];
        let end = rest.find(|letter| !is_name(letter)).unwrap_or(rest.len());
        let end = match rest[end..].starts_with('{') {
            true => rest.find('}').unwrap() + 1,
            false => end,
        };
        let (selector, behind) = rest.split_at(end);
        if selector.starts_with("postrider_") || selector.starts_with("process_") {
            selectors.push(selector.to_owned());
        }
        rest = behind;
    }
    selectors
}

/// The metrics that a query names, each with the labels that its selectors name.
pub(crate) fn metrics(expression: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut metrics: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for selector in selectors(expression) {
        let (name, matchers) = selector.split_once('{').unwrap_or((&selector, ""));
        let labels = matchers
            .split(',')
            .filter_map(|matcher| matcher.split(['=', '!']).next())
            .map(|label| label.trim().to_owned())
            .filter(|label| !label.is_empty());
        metrics.entry(name.to_owned()).or_default().extend(labels);
    }
    metrics
}

/// The labels by which a query groups or joins.
pub(crate) fn grouping_labels(expression: &str) -> BTreeSet<String> {
    ["by (", "on (", "group_left ("]
        .iter()
        .flat_map(|word| expression.split(word).skip(1))
        .filter_map(|behind| behind.split(')').next())
        .flat_map(|labels| labels.split(','))
        .map(|label| label.trim().to_owned())
        .filter(|label| !label.is_empty())
        .collect()
}

#[test]
fn the_metrics_and_labels_of_a_query_are_found() {
    let query = r#"max by (outbox, le) (rate(postrider_a_bucket{outbox=~"x", reason!="z"}[1m])) * on (job) process_b"#;
    let found = metrics(query);
    assert_eq!(found.len(), 2);
    let labels: Vec<&String> = found["postrider_a_bucket"].iter().collect();
    assert!(labels.contains(&&"outbox".to_owned()) && labels.contains(&&"reason".to_owned()));
    assert!(found["process_b"].is_empty());
    let grouping: Vec<String> = grouping_labels(query).into_iter().collect();
    assert_eq!(grouping, ["job", "le", "outbox"]);
}
