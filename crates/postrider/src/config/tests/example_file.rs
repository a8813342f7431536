//! The commented file that `config default` prints.

use postrider_core::UnroutablePolicy;

use super::{BROKER, DATABASE, Place, setting};
use crate::config::source::Source;
use crate::config::{DEFAULT_FILE, Loaded, keys};

#[test]
fn the_example_file_parses_and_equals_the_defaults() {
    let without = Place::new(&[]).load().unwrap();
    let with = Place::new(&[]).file(DEFAULT_FILE).load().unwrap();
    let values = |loaded: &Loaded| -> Vec<_> {
        loaded
            .settings
            .iter()
            .map(|setting| (setting.name, setting.value.clone()))
            .collect()
    };
    assert_eq!(values(&with), values(&without));
    for key in keys::ALL.iter().filter(|key| key.default_toml().is_some()) {
        let name = key.name();
        assert!(
            matches!(
                setting(&with, name.section, name.key).source,
                Source::File { .. }
            ),
            "{name} is not in the example file"
        );
    }
}

#[test]
fn the_example_file_has_every_key_in_its_section_with_a_reason() {
    let mut section = "";
    let mut seen = Vec::new();
    let mut previous = "";
    for line in DEFAULT_FILE.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        }
        let key = keys::ALL.iter().map(|key| key.name()).find(|name| {
            let start = format!("{} = ", name.key);
            name.section == section
                && (line.starts_with(&start) || line.starts_with(&format!("# {start}")))
        });
        if let Some(name) = key {
            assert!(previous.starts_with("# "), "{name} has no reason above it");
            seen.push(name);
        }
        previous = line;
    }
    let all: Vec<_> = keys::ALL.iter().map(|key| key.name()).collect();
    assert_eq!(seen, all, "each once, in the order of the table");
}

#[test]
fn what_the_example_file_has_behind_a_comment_sign_works_without_it() {
    let mut tried = 0;
    for line in DEFAULT_FILE.lines() {
        let Some(key) = keys::ALL
            .iter()
            .find(|key| line.starts_with(&format!("# {} = ", key.name().key)))
        else {
            continue;
        };
        // The files they name are not here.
        if key.name().key.ends_with("_file") {
            continue;
        }
        // Refused by a program without it.
        if !cfg!(feature = "opentelemetry") && key.name().section == "tracing" {
            continue;
        }
        let text = DEFAULT_FILE.replacen(line, line.trim_start_matches("# "), 1);
        // As it stands, without leave to use plain text.
        let loaded = Place::secure(&[]).file(&text).load();
        assert!(loaded.is_ok(), "{line}: {}", loaded.unwrap_err());
        tried += 1;
    }
    assert!(tried >= 7, "only {tried} were found");
}

#[test]
fn the_table_of_an_exchange_in_the_example_file_works_without_its_comment_signs() {
    let text = DEFAULT_FILE
        .replace("# [exchanges.", "[exchanges.")
        .replace("# unroutable = ", "unroutable = ");
    let place = Place::new(&[DATABASE, BROKER]).file(&text);
    assert_eq!(
        place.complete().unroutable.of("audit"),
        UnroutablePolicy::Accept
    );
    let documentation = include_str!("../../../../../docs/configuration.md");
    assert!(documentation.contains("## `[exchanges.\"NAME\"]`"));
    assert!(documentation.contains("| `unroutable` |"));
}
