//! The tables of single exchanges.

use postrider_core::UnroutablePolicy;

use super::{BROKER, DATABASE, Place, first_lines};

#[test]
fn one_exchange_may_have_a_policy_of_its_own() {
    let config = Place::new(&[DATABASE, BROKER])
        .file(
            "[exchanges.\"with.dot\"]\nunroutable = \"retry\"\n\
             [unroutable]\npolicy = \"accept\"\n\
             [exchanges.\"\"]\nunroutable = \"retry\"\n\
             [exchanges.empty]\n",
        )
        .complete();
    let policies = config.unroutable;
    assert_eq!(policies.of("with.dot"), UnroutablePolicy::Retry);
    assert_eq!(policies.of(""), UnroutablePolicy::Retry);
    assert_eq!(policies.of("empty"), UnroutablePolicy::Accept);
    assert_eq!(policies.of("other"), UnroutablePolicy::Accept);
    let config = Place::new(&[DATABASE, BROKER]).complete();
    assert_eq!(config.unroutable.of("any"), UnroutablePolicy::Retry);
}

#[test]
fn what_is_wrong_in_the_table_of_an_exchange_is_named_with_what_is_possible() {
    let place = Place::new(&[]).file(
        "[exchanges.orders.v1]\n\
         unroutable = \"accept\"\n\
         [exchanges.\"a.b\"]\n\
         unroutabel = \"accept\"\n\
         policy = \"accept\"\n\
         [exchanges.\"amq.default\"]\n\
         unroutable = \"accept\"\n\
         [exchange.\"c\"]\n",
    );
    let problems = place.problems();
    assert_eq!(
        first_lines(&problems),
        [
            "postrider.toml:1: [exchanges.\"orders\"] v1: unknown key; a name with a dot needs quotes: \
             [exchanges.\"with.dot\"]",
            "postrider.toml:4: [exchanges.\"a.b\"] unroutabel: unknown key; did you mean `unroutable`?",
            "postrider.toml:5: [exchanges.\"a.b\"] policy: unknown key",
            "postrider.toml:6: [exchanges.\"amq.default\"]: no exchange has this name: the default \
             exchange is [exchanges.\"\"]",
            "postrider.toml:8: unknown section [exchange]; did you mean [exchanges]?",
        ]
    );
    assert!(problems[2].contains("the keys of [exchanges.\"a.b\"] are unroutable"));
    assert!(problems[4].contains("[exchanges.\"NAME\"]"));
    for text in ["exchanges = 1\n", "[exchanges]\nunroutable = \"accept\"\n"] {
        let problems = Place::new(&[]).file(text).problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("write [exchanges.\"NAME\"]"));
        assert!(problems[0].contains("[unroutable] policy"));
    }
    for name in ["x".repeat(256), "a\\nb".to_owned()] {
        let text = format!("[exchanges.\"{name}\"]\n");
        assert_eq!(Place::new(&[]).file(&text).problems().len(), 1, "{name}");
    }
}
