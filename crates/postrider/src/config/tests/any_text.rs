//! Whatever stands in a configuration: it is read, or refused without a secret in what is said. The fuzz target `config` in `fuzz/` asks the same.

use proptest::prelude::*;

use super::Place;

/// A file with a secret wherever one can be.
const FILE: &str = r#"[database]
url = "postgres://app:can~ary@db.example:5433/shop?sslmode=require"
schema = "outbox"
connect_timeout = "5s"

[database.tls]
mode = "require"

[broker]
urls = ["amqps://app:can~ary@mq.example/sales", "amqps://app:can~ary@mq2.example/sales"]
password_file = "/can~ary"

[relay]
workers = 2
batch_bytes = "8MiB"
poll_interval = "1s"

[exchanges."shop"]
unroutable = "retry"

[http]
listen = "127.0.0.1:7617"

[log]
format = "json"
"#;

/// Pieces that mean something to TOML, to URLs or to the configuration.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "\"",
            "'",
            "\"\"\"",
            "[",
            "]",
            "[[",
            "{",
            "}",
            "=",
            ".",
            ",",
            "\n",
            "\\",
            "\\u00",
            "#",
            " ",
            "@",
            "/",
            "%",
            "%ff",
            "?",
            "&",
            ":",
            "\0",
            "\r",
            "-1",
            "1e999",
            "9223372036854775808",
            "1979-05-27",
            "true",
            "s",
            "ms",
            "MiB",
            "*",
        ])
        .prop_map(str::to_owned),
        any::<char>().prop_map(String::from),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_configuration_of_any_text_is_read_or_refused(text in "\\PC{0,200}") {
        if let Err(error) = Place::new(&[]).file(&text).load() {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn whatever_is_wrong_with_a_configuration_no_secret_of_it_is_in_what_is_said(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..3usize, piece()), 1..5)
    ) {
        let mut text: Vec<char> = FILE.chars().collect();
        for (at, removed, inserted) in edits {
            let from = at.index(text.len());
            let to = (from + removed).min(text.len());
            text.splice(from..to, inserted.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(error) = Place::new(&[]).file(&text).load() {
            let said = format!("{error} {error:?}");
            prop_assert!(!said.contains("can~ary"), "{}", said);
        }
    }

    #[test]
    fn whatever_a_variable_holds_no_secret_of_it_is_in_what_is_said(
        variable in prop::sample::select(vec!["POSTRIDER_DATABASE_URL", "POSTRIDER_BROKER_URL", "POSTRIDER_BROKER_URLS"]),
        scheme in prop::sample::select(vec!["postgres://", "amqp://", "amqps://", "", "//"]),
        before in prop::collection::vec(piece(), 0..4),
        after in prop::collection::vec(piece(), 0..6),
    ) {
        // No environment can hold a zero.
        let url = format!("{scheme}{}:can~ary{}@host/name", before.concat(), after.concat()).replace('\0', "");
        if let Err(error) = Place::new(&[(variable, &url)]).load() {
            let said = format!("{error} {error:?}");
            prop_assert!(!said.contains("can~ary"), "{}: {}", url, said);
        }
    }
}
