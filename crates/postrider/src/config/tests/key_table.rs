//! The table of keys, with the program and the documentation that follow from it.

use super::Place;
use crate::config::keys;

#[test]
fn the_names_of_the_variables_are_unique_and_so_are_the_keys() {
    let mut variables: Vec<_> = keys::ALL
        .iter()
        .map(|key| key.name().variable())
        .chain(["POSTRIDER_CONFIG".to_owned()])
        .collect();
    let count = variables.len();
    variables.sort();
    variables.dedup();
    assert_eq!(variables.len(), count);
    assert_eq!(
        keys::sections(),
        [
            "database",
            "database.tls",
            "broker",
            "broker.tls",
            "relay",
            "retry",
            "unroutable",
            "dead_letters",
            "ordering",
            "wakeup",
            "metrics",
            "tracing",
            "tracing.tls",
            "http",
            "log"
        ]
    );
}

/// A key in the table that nothing reads would be accepted and do nothing.
#[test]
fn every_key_of_the_table_is_read() {
    for key in keys::ALL {
        let name = key.name();
        let place =
            Place::new(&[]).file(&format!("[{}]\n{} = 1979-05-27\n", name.section, name.key));
        assert_eq!(place.problems().len(), 1, "nothing reads {name}");
    }
}

#[test]
fn the_documentation_has_a_row_for_every_key() {
    let documentation = include_str!("../../../../../docs/configuration.md");
    for key in keys::ALL {
        let name = key.name();
        let default = key
            .default_toml()
            .map_or_else(String::new, |default| format!("`{default}`"));
        let row = format!("| `{}` | `{}` | {default}", name.key, name.variable());
        assert!(documentation.contains(&row), "no row begins with: {row}");
    }
    for name in ["database-url", "broker-url", "broker-password"] {
        assert!(documentation.contains(&format!("`{name}`")), "{name}");
    }
}
