//! Secrets: where they come from, and that nothing shows them.

use std::fs;

use secrecy::ExposeSecret;

use super::{DATABASE, Place, setting};
use crate::config::source::Source;
use crate::config::{BrokerLogin, Config};

fn logins(config: &Config) -> Vec<(String, String)> {
    let endpoints = config.broker.endpoints.iter();
    endpoints
        .filter_map(|endpoint| match &endpoint.login {
            BrokerLogin::Password { username, password } => {
                Some((username.clone(), password.expose_secret().to_owned()))
            }
            BrokerLogin::Certificate | BrokerLogin::Token { .. } => None,
        })
        .collect()
}

#[test]
fn secrets_come_from_files_beside_the_configuration() {
    let place = Place::new(&[])
        .file(
            "[database]\nurl_file = \"db\"\ntls.mode = \"disable\"\n[broker]\nurl = \"amqp://mq\"\nusername = \"app\"\n\
             password_file = \"pw\"\nvhost = \"a/b\"\n",
        )
        .write("db", "postgres://app:pw@db/shop\n")
        .write("pw", "hunter2\n");
    let config = place.complete();
    assert_eq!(
        config.database.url.expose_secret(),
        "postgres://app:pw@db/shop"
    );
    assert_eq!(logins(&config), [("app".to_owned(), "hunter2".to_owned())]);
    assert_eq!(config.broker.endpoints[0].vhost, "a/b");
}

#[test]
fn credentials_of_systemd_are_read_when_nothing_else_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let credentials = directory.path().to_str().unwrap().to_owned();
    fs::write(
        directory.path().join("database-url"),
        "postgres://c@d/e?sslmode=disable\n",
    )
    .unwrap();
    fs::write(directory.path().join("broker-url"), "amqp://c@d\n").unwrap();
    fs::write(directory.path().join("broker-password"), "hunter2\n").unwrap();
    let place = Place::new(&[("CREDENTIALS_DIRECTORY", &credentials)]);
    let loaded = place.load().unwrap();
    assert_eq!(
        setting(&loaded, "database", "url").source,
        Source::Credential("database-url")
    );
    let config = loaded.complete().unwrap();
    assert_eq!(logins(&config), [("c".to_owned(), "hunter2".to_owned())]);
    let place = Place::new(&[("CREDENTIALS_DIRECTORY", &credentials), DATABASE]);
    assert_eq!(place.complete().relay.outbox, "shop");

    fs::write(directory.path().join("broker-url"), "").unwrap();
    assert_eq!(
        place.problems(),
        ["credential broker-url: the file is empty"]
    );
}

#[test]
fn a_secret_file_that_is_not_there_is_reported_with_the_key_that_names_it() {
    let place = Place::new(&[("POSTRIDER_BROKER_PASSWORD_FILE", "/nonexistent/pw")])
        .file("[database]\nurl_file = \"gone\"\n");
    assert_eq!(
        place.problems(),
        [
            "postrider.toml:2: [database] url_file: the file it names does not exist",
            "POSTRIDER_BROKER_PASSWORD_FILE: the file it names does not exist",
        ]
    );
}

/// The canary is put wherever a password can be, rightly or by mistake.
#[test]
fn no_secret_is_ever_in_an_error_or_a_debug_print() {
    let unreadable = [
        "[database]\nurl = \"postgres://u:canary@h/db\n",
        "[database]\nurl = postgres://u:canary@h/db\n",
        "[database]\nurl = \"postgres://u:\ncanary@h/db\"\n",
        "[database]\nurl = \"postgres://u:canary@h/db\" canary\n",
        "[database]\nurl = \"\\canary\"\n",
        "[database]\nurl = \"postgres://u:canary@h\"\nurl = \"postgres://u:canary@h\"\n",
        "[broker]\nurls = [\"amqp://u:canary@h\", 5]\n",
        "[broker]\nurls = \"amqp://u:canary@h\"\n",
        "[broker]\nurl = { canary = \"canary\" }\n",
        "[broker]\n\"amqp://u:canary@h\" = 1\n",
        "\"amqp://u:canary@h\" = 1\n",
        "[broker]\npassword = \"canary\"\n",
        "[broker]\npassword_file = \"canary\"\n",
        "[broker]\npassword_file = \"/canary\"\n",
        "[broker]\ntoken_file = \"eyJ.canary.s\"\n",
        "[broker]\nurl_file = \"amqp://u:canary@h\"\n",
        "[http]\nlisten = \"amqp://u:canary@h\"\n",
        "[log]\nlevel = \"amqp://u:canary@h\"\n",
        "[log]\nformat = \"u:canary@h\"\n",
        "[relay]\npoll_interval = \"amqp://u:canary@h\"\nbatch_bytes = \"amqp://u:canary@h\"\n",
        "[retry]\nmax_delay = \"amqp://u:canary@h\"\n",
        "[exchanges]\n\"amqp://u:canary@h\" = 1\n",
        "[exchanges.\"amqp://u:canary@h\"]\nunroutable = 1\n",
        "[exchanges.\"amqp://u:canary@h\"]\nunroutabel = 1\n",
        "[exchanges.a]\n\"amqp://u:canary@h\" = 1\n",
        "[exchanges.a]\nunroutable = \"u:canary@h\"\n",
    ];
    for text in unreadable {
        let error = Place::new(&[]).file(text).load().unwrap_err();
        let all = format!("{error} {error:?}");
        assert!(!all.contains("canary"), "{text}: {all}");
    }
    for (variable, value) in [
        ("POSTRIDER_DATABASE_URL", "canary"),
        ("POSTRIDER_DATABASE_URL", "postgres://u:can@canary@h/db"),
        ("POSTRIDER_DATABASE_URL", "postgres://u:5432/x?y@canary/db"),
        ("POSTRIDER_DATABASE_URL", "postgres://u:canary/db"),
        ("POSTRIDER_DATABASE_URL", "postgres://h/db?canary=canary"),
        (
            "POSTRIDER_DATABASE_URL",
            "postgres://h/db?user=u&password=p@canary",
        ),
        (
            "POSTRIDER_DATABASE_URL",
            "postgres://u:canary@h/db?port=canary",
        ),
        ("POSTRIDER_DATABASE_URL", "postgres://u:canary@h/db?canary"),
        (
            "POSTRIDER_DATABASE_URL",
            "postgres://u:canary@h/db?sslmode=canary",
        ),
        ("POSTRIDER_BROKER_URL", "canary"),
        ("POSTRIDER_BROKER_URL", "amqp://u:canary"),
        ("POSTRIDER_BROKER_URL", "amqp://u:12/x@canary"),
        ("POSTRIDER_BROKER_URL", "amqp://u:can@canary@h"),
        ("POSTRIDER_BROKER_URL", "amqp://u:canary%ff@h"),
        ("POSTRIDER_BROKER_URL", "amqp://u:canary@h/?canary=1"),
        ("POSTRIDER_BROKER_URLS", "amqp://u:p@h,canary"),
        ("POSTRIDER_BROKER_URL_FILE", "amqp://u:canary@h"),
        ("POSTRIDER_BROKER_PASSWORD_FILE", "canary"),
        ("POSTRIDER_BROKER_TOKEN_FILE", "eyJ.canary.s"),
        (
            "POSTRIDER_BROKER_TLS_KEY_FILE",
            "-----BEGIN PRIVATE KEY-----\ncanary",
        ),
        ("POSTRIDER_BROKER_TLS_CA_FILE", "amqp://u:canary@h"),
        ("POSTRIDER_BROKER_TLS_MODE", "u:canary@h"),
        ("POSTRIDER_RETRY_MULTIPLIER", "amqp://u:canary@h"),
    ] {
        let error = Place::new(&[(variable, value)]).load().unwrap_err();
        let all = format!("{error} {error:?}");
        assert!(!all.contains("canary"), "{value}: {all}");
    }
    let place = Place::new(&[
        ("POSTRIDER_DATABASE_URL", "postgres://u:canary@h/db"),
        (
            "POSTRIDER_BROKER_URLS",
            "amqp://u:canary@h,amqp://u:canary@h2",
        ),
        ("POSTRIDER_BROKER_PASSWORD", "canary"),
    ]);
    let loaded = place.load().unwrap();
    let mut shown = Vec::new();
    crate::commands::config_show::config_show(&loaded, &mut shown).unwrap();
    let shown = String::from_utf8(shown).unwrap();
    let all = format!(
        "{shown} {loaded:?} {:?}",
        loaded.clone().complete().unwrap()
    );
    assert!(!all.contains("canary"), "{all}");
}
