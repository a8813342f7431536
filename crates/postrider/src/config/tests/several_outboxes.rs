//! Two outboxes in one database: what tells their metrics apart.

use super::{BROKER, DATABASE, Place};

const BILLING: (&str, &str) = ("POSTRIDER_DATABASE_SCHEMA", "billing");

#[test]
fn an_outbox_in_another_schema_whose_label_nobody_set_is_warned_about() {
    let warnings = Place::new(&[DATABASE, BROKER, BILLING])
        .load()
        .unwrap()
        .warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for part in [
        "[relay] outbox: is not set",
        "schema billing",
        "outbox=\"shop\"",
        "POSTRIDER_RELAY_OUTBOX",
    ] {
        assert!(warnings[0].contains(part), "{part}: {warnings:?}");
    }
}

#[test]
fn where_the_label_is_set_or_the_schema_is_the_usual_one_nothing_is_said() {
    for variables in [
        &[DATABASE, BROKER][..],
        &[DATABASE, BROKER, ("POSTRIDER_DATABASE_SCHEMA", "outbox")],
        // Also to what it would be by itself: then somebody has thought of it.
        &[
            DATABASE,
            BROKER,
            BILLING,
            ("POSTRIDER_RELAY_OUTBOX", "shop"),
        ],
    ] {
        let warnings = Place::new(variables).load().unwrap().warnings;
        assert!(warnings.is_empty(), "{variables:?}: {warnings:?}");
    }
    let place = Place::new(&[DATABASE, BROKER, BILLING]).file("[relay]\noutbox = \"billing\"\n");
    assert!(place.load().unwrap().warnings.is_empty());
}
