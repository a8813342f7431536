//! `deploy/grafana/postrider.json`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::queries::{dashboard, metrics, of_dashboard};

fn panels() -> Vec<Value> {
    dashboard()["panels"].as_array().unwrap().clone()
}

fn variables() -> Vec<Value> {
    let dashboard = dashboard();
    dashboard["templating"]["list"].as_array().unwrap().clone()
}

#[test]
fn the_data_source_the_outbox_and_the_relay_can_be_chosen() {
    let names: Vec<Value> = variables()
        .iter()
        .map(|variable| variable["name"].clone())
        .collect();
    assert_eq!(names, ["datasource", "outbox", "instance"]);
    for panel in panels() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            for owner in [&panel, target] {
                assert_eq!(owner["datasource"]["uid"], "${datasource}", "{panel}");
            }
            let query = target["expr"].as_str().unwrap();
            for variable in ["$outbox", "$instance"] {
                assert!(query.contains(variable), "{query}");
            }
        }
    }
}

#[test]
fn variables_are_filled_from_a_metric_that_is_always_there() {
    for variable in variables() {
        let query = variable["definition"].as_str();
        if let Some(query) = query {
            assert!(
                metrics(query).contains_key("postrider_build_info"),
                "{query}"
            );
        }
    }
}

#[test]
fn every_panel_says_what_it_shows_and_in_which_unit_and_none_covers_another() {
    let mut ids = BTreeSet::new();
    let mut covered = BTreeSet::new();
    for panel in panels() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let number = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(number("x") + number("w") <= 24, "{panel}");
        for x in number("x")..number("x") + number("w") {
            for y in number("y")..number("y") + number("h") {
                assert!(covered.insert((x, y)), "{panel}");
            }
        }
        if panel["type"] != "row" {
            assert!(
                !panel["description"].as_str().unwrap().is_empty(),
                "{panel}"
            );
            assert!(
                panel["fieldConfig"]["defaults"]["unit"].is_string(),
                "{panel}"
            );
        }
    }
}

/// Everything that the daemon measures has its place: a metric that nobody shows is one that nobody sees.
#[test]
fn every_metric_of_the_daemon_is_shown() {
    let shown: BTreeSet<String> = of_dashboard()
        .iter()
        .flat_map(|query| metrics(&query.expression).into_keys())
        .map(|name| {
            let parts = ["_bucket", "_sum", "_count"];
            let part = parts.iter().find_map(|part| name.strip_suffix(part));
            part.unwrap_or(&name).to_owned()
        })
        .collect();
    let documented = crate::files::read("docs/metrics.md");
    let documented = documented
        .lines()
        .filter_map(|line| line.strip_prefix("| `postrider_"))
        .map(|line| line.split(['`', '{']).next().unwrap());
    for metric in documented {
        assert!(shown.contains(&format!("postrider_{metric}")), "{metric}");
    }
}
