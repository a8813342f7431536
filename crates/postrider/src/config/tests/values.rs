//! What a value may be, how it is refused, and how it is shown.

use std::time::Duration;

use postrider_core::RetryPolicy;

use super::{BROKER, DATABASE, Place, first_lines, setting};
use crate::config::LogFormat;

#[test]
fn every_problem_is_reported_at_once_with_its_line() {
    let place = Place::new(&[("POSTRIDER_HTTP_LISTEN", "nowhere")]).file(
        "[relay]\n\
         wokers = 4\n\
         workers = 0\n\
         poll_interval = 5\n\
         batch_bytes = 0\n\
         [wakeup]\n\
         notify = \"yes\"\n\
         [borker]\n\
         [log]\n\
         level = \"inof\"\n",
    );
    let problems = place.problems();
    assert_eq!(
        first_lines(&problems),
        [
            "postrider.toml:2: [relay] wokers: unknown key; did you mean `workers`?",
            "postrider.toml:3: [relay] workers: 0 is out of range: 1 to 64 is possible",
            "postrider.toml:4: [relay] poll_interval: a duration is a string with its unit, and a bare \
             number has none: write \"5s\" or \"5ms\"",
            "postrider.toml:5: [relay] batch_bytes: `0` is out of range: 1 byte to 1GiB is possible",
            "postrider.toml:7: [wakeup] notify: expected true or false (without quotes), found a string",
            "postrider.toml:8: unknown section [borker]; did you mean [broker]?",
            "postrider.toml:10: [log] level: `inof` is not a log filter: write off, error, warn, info, \
             debug or trace, optionally followed by exceptions, such as \"info,postrider_relay=debug\"",
            "POSTRIDER_HTTP_LISTEN: `nowhere` is not an IP address with a port, such as \
             \"127.0.0.1:7617\", \"0.0.0.0:7617\" or \"[::]:7617\", nor \"off\"",
        ]
    );
    assert!(problems[0].contains("the keys of [relay] are name, outbox, workers"));
    assert!(problems[5].contains("the sections are [database], [database.tls], [broker]"));
}

#[test]
fn impossible_values_are_refused() {
    for (section, line) in [
        ("relay", "workers = 65"),
        ("relay", "workers = -1"),
        ("relay", "workers = 99999999999999999999"),
        ("relay", "workers = \"4\""),
        ("relay", "batch_rows = 0"),
        ("relay", "batch_rows = 10001"),
        ("relay", "max_message_bytes = \"1TiB\""),
        ("relay", "batch_bytes = \"4 bananas\""),
        ("relay", "confirm_timeout = \"0s\""),
        ("relay", "confirm_timeout = \"30\""),
        ("relay", "shutdown_grace = \"0s\""),
        ("relay", "poll_interval = \"-1s\""),
        ("ordering", "key_header = \"x-ordering-seq\""),
        ("ordering", "key_header = \"CC\""),
        ("ordering", "seq_header = \"\""),
        ("relay", "name = \"\""),
        ("broker", "heartbeat = \"500ms\""),
        ("broker", "heartbeat = \"1500ms\""),
        ("broker", "heartbeat = \"1day\""),
        ("broker", "urls = []"),
        ("broker", "urls = \"amqp://a\""),
        ("broker", "url = [\"amqp://a\"]"),
        ("database", "connect_timeout = \"1day\""),
        ("database", "schema = \"Out box\""),
        ("database", "schema = \"pg_outbox\""),
        ("database", "application_name = \"wäscheleine\""),
        ("http", "listen = \"localhost:7617\""),
        ("log", "format = \"xml\""),
        ("log", "level = \"info,postrider=loud\""),
        ("metrics", "backlog_limit = 0"),
        ("retry", "max_attempts = 0"),
        ("retry", "max_attempts = 2.5"),
        ("retry", "initial_delay = \"0s\""),
        ("retry", "initial_delay = 1.5"),
        ("retry", "initial_delay = \"10min\""),
        ("retry", "max_delay = \"2days\""),
        ("retry", "max_delay = \"500ms\""),
        ("retry", "multiplier = 0.5"),
        ("retry", "multiplier = 101"),
        ("retry", "multiplier = nan"),
        ("retry", "multiplier = inf"),
        ("retry", "multiplier = \"2\""),
        ("unroutable", "policy = \"drop\""),
        ("exchanges.\"a\"", "unroutable = \"drop\""),
        ("exchanges.\"a\"", "unroutable = true"),
        ("dead_letters", "retention = \"59min\""),
        ("dead_letters", "retention = \"off\""),
        ("dead_letters", "retention = 30"),
    ] {
        let place = Place::new(&[]).file(&format!("[{section}]\n{line}\n"));
        assert_eq!(place.problems().len(), 1, "{line}: {:?}", place.problems());
        assert!(
            place.problems()[0].starts_with("postrider.toml:2: "),
            "{line}"
        );
    }
}

#[test]
fn possible_values_are_taken_in_every_way_of_writing_them() {
    let place = Place::new(&[DATABASE, BROKER]).file(
        "relay.batch_bytes = 1024\n\
         relay.max_message_bytes = \"8MB\"\n\
         relay.confirm_timeout = \"1min 30s\"\n\
         http.listen = \"off\"\n\
         log = { format = \"json\", level = \"warn,postrider=debug\" }\n",
    );
    let config = place.complete();
    assert_eq!(config.relay.batch_bytes, 1024);
    assert_eq!(config.relay.max_message_bytes, 8_000_000);
    assert_eq!(config.relay.confirm_timeout, Duration::from_secs(90));
    assert_eq!(config.http.listen, None);
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn the_retry_policy_is_built_from_what_is_said_and_a_whole_number_is_a_number() {
    let policy = |text: &str| Place::new(&[DATABASE, BROKER]).file(text).complete().retry;
    let expected = |attempts, first, longest, multiplier| {
        let (first, longest) = (Duration::from_millis(first), Duration::from_millis(longest));
        RetryPolicy::new(attempts, first, longest, multiplier).unwrap()
    };
    assert_eq!(policy(""), expected(20, 1_000, 300_000, 2.0));
    for multiplier in ["3", "3.0", "30e-1"] {
        assert_eq!(
            policy(&format!(
                "[retry]\nmax_attempts = 1\ninitial_delay = \"20ms\"\nmax_delay = \"20ms\"\nmultiplier = {multiplier}\n"
            )),
            expected(1, 20, 20, 3.0)
        );
    }
    let place = Place::new(&[DATABASE, BROKER, ("POSTRIDER_RETRY_MULTIPLIER", "1.5")]);
    assert_eq!(place.complete().retry, expected(20, 1_000, 300_000, 1.5));
    let loaded = place.load().unwrap();
    assert_eq!(setting(&loaded, "retry", "multiplier").value, "1.5");
}

#[test]
fn waits_that_shrink_are_reported_where_somebody_said_so() {
    for (text, expected) in [
        (
            "[retry]\ninitial_delay = \"10min\"\n",
            "postrider.toml:2: [retry] initial_delay: initial_delay (\"10min\") is longer than max_delay (\"5min\")",
        ),
        (
            "[retry]\ninitial_delay = \"10s\"\nmax_delay = \"1s\"\n",
            "postrider.toml:3: [retry] max_delay: initial_delay (\"10s\") is longer than max_delay (\"1s\")",
        ),
    ] {
        assert_eq!(Place::new(&[]).file(text).problems(), [expected]);
    }
    let place =
        Place::new(&[("POSTRIDER_RETRY_MAX_DELAY", "1s")]).file("retry.initial_delay = \"2s\"\n");
    assert!(place.problems()[0].starts_with("POSTRIDER_RETRY_MAX_DELAY: "));
}

#[test]
fn what_is_shown_of_a_configuration_is_a_configuration_that_says_the_same() {
    let place = Place::new(&[]).file(
        "[retry]\nmultiplier = 3\n\
         [exchanges.'b\"\\']\nunroutable = \"accept\"\n\
         [exchanges.\"a.b\"]\nunroutable = \"retry\"\n\
         [dead_letters]\nretention = \"60days\"\n",
    );
    let show = |place: &Place| {
        let mut shown = Vec::new();
        crate::commands::config_show::config_show(&place.load().unwrap(), &mut shown).unwrap();
        String::from_utf8(shown).unwrap()
    };
    let values = |shown: &str| -> Vec<String> {
        shown
            .lines()
            .map(|line| line.split('#').next().unwrap().trim().to_owned())
            .filter(|line| !line.is_empty())
            .collect()
    };
    let shown = show(&place);
    assert!(shown.contains("retention = \"60days\""), "{shown}");
    assert!(
        shown.find("[unroutable]") < shown.find("[exchanges.\"a.b\"]"),
        "{shown}"
    );
    let again = show(&Place::new(&[]).file(&shown));
    assert_eq!(values(&again), values(&shown));
}
