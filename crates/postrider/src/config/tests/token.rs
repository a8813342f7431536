//! `[broker] token_file`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{DATABASE, Place, setting};
use crate::config::BrokerLogin;
use crate::config::source::Source;

fn token(claims: &str) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", part("{}"), part(claims), part("canary"))
}

/// A configuration with a token that does not expire soon.
fn place(broker: &str) -> Place {
    with_token(broker, &token(r#"{"exp": 4102444800}"#))
}

fn with_token(broker: &str, token: &str) -> Place {
    let text = format!("[broker]\nurl = \"amqp://mq\"\n{broker}");
    Place::new(&[DATABASE]).file(&text).write("token", token)
}

#[test]
fn a_token_takes_the_place_of_a_password_and_is_shown_nowhere() {
    let place = place("token_file = \"token\"\n");
    let loaded = place.load().unwrap();
    assert!(matches!(
        setting(&loaded, "broker", "token_file").source,
        Source::File { .. }
    ));
    let mut shown = Vec::new();
    crate::commands::config_show::config_show(&loaded, &mut shown).unwrap();
    let mut shown = String::from_utf8(shown).unwrap();
    shown.push_str(&format!("{loaded:?}"));
    let config = loaded.complete().unwrap();
    shown.push_str(&format!("{config:?}"));
    assert!(
        !shown.contains(&URL_SAFE_NO_PAD.encode("canary")),
        "{shown}"
    );
    let endpoint = &config.broker.endpoints[0];
    assert_eq!(endpoint.to_string(), "amqp://mq:5672/%2F");
    let BrokerLogin::Token { username, file } = &endpoint.login else {
        panic!("{endpoint:?}");
    };
    assert_eq!(*username, None);
    assert_eq!(file.path(), place.path().join("token"));
    assert_eq!(
        config.broker.token_file().unwrap().expires(),
        Some(4_102_444_800)
    );
}

#[test]
fn what_else_proves_who_logs_in_is_refused_beside_a_token() {
    for (text, said) in [
        (
            "token_file = \"token\"\npassword_file = \"token\"\n",
            "[broker] token_file: excludes `password_file`",
        ),
        (
            "token_file = \"token\"\nauth = \"external\"\n",
            "[broker] auth: logs in with the client certificate",
        ),
    ] {
        let problems = place(text).problems().join("\n");
        assert!(problems.contains(said), "{problems}");
    }
    let place = place("").file("[broker]\nurl = \"amqp://u:pw@mq\"\ntoken_file = \"token\"\n");
    let problems = place.problems().join("\n");
    assert!(problems.contains("the broker's URL has one"), "{problems}");
}

#[test]
fn a_variable_names_the_token_in_place_of_the_password_of_the_file() {
    let directory = place("");
    let file = directory.path().join("token");
    let variables = [
        DATABASE,
        ("POSTRIDER_BROKER_TOKEN_FILE", file.to_str().unwrap()),
    ];
    let place = Place::new(&variables)
        .file("[broker]\nurl = \"amqp://mq\"\npassword_file = \"pw\"\n")
        .write("pw", "hunter2");
    assert!(place.complete().broker.token_file().is_some());
}

#[test]
fn a_file_without_a_token_is_refused_and_an_expired_one_is_warned_about() {
    let named = "token_file = \"token\"\n";
    for (text, said) in [("", "the file is empty"), ("canary", "no JSON Web Token")] {
        let problems = with_token(named, text).problems().join("\n");
        assert!(problems.contains("[broker] token_file: "), "{problems}");
        assert!(problems.contains(said), "{problems}");
        assert!(!problems.contains("canary"), "{problems}");
    }
    let problems = place("token_file = \"gone\"\n").problems().join("\n");
    assert!(problems.contains("does not exist"), "{problems}");

    let expired = with_token(named, &token(r#"{"exp": 1}"#)).load().unwrap();
    let warnings = expired.warnings.join("\n");
    assert!(warnings.contains("the token has expired"), "{warnings}");
    assert!(place(named).load().unwrap().warnings.is_empty());
}
