//! TLS: where it is the default, what contradicts what, and files that cannot be used.

use std::fs;

use postrider_testbed::{Authority, Identity};
use postrider_tls::Mode;

use super::{BROKER, DATABASE, Place, setting};
use crate::config::{BrokerLogin, Config};

const REMOTE: (&str, &str) = ("POSTRIDER_DATABASE_URL", "postgres://u:p@db/shop");
const LOCAL: (&str, &str) = ("POSTRIDER_DATABASE_URL", "postgres://u:p@localhost/shop");
const AMQPS: (&str, &str) = ("POSTRIDER_BROKER_URL", "amqps://u:p@mq/sales");

fn database_mode(config: &Config) -> Option<Mode> {
    Some(config.database.tls.as_ref()?.settings().mode)
}

fn broker_mode(config: &Config) -> Option<Mode> {
    Some(config.broker.tls.as_ref()?.settings().mode)
}

impl Place {
    /// With an authority in `ca.crt`, a client certificate in `relay.crt` and `relay.key`, and a key of another.
    fn with_certificates(self) -> Self {
        let authority = Authority::new().unwrap();
        fs::write(self.path().join("ca.crt"), authority.certificate()).unwrap();
        let write = |identity: Identity, name| identity.write(self.path(), name).unwrap();
        write(authority.client("relay").unwrap(), "relay");
        write(authority.client("other").unwrap(), "other");
        write(authority.expired_client("relay").unwrap(), "expired");
        self
    }
}

#[test]
fn plain_text_is_for_this_machine_alone_unless_somebody_says_otherwise() {
    for host in [
        "localhost",
        "127.0.0.1",
        "127.8.9.10",
        "[::1]",
        "[::ffff:127.0.0.1]",
    ] {
        let database = format!("postgres://u:p@{host}/shop");
        let broker = format!("amqp://u:p@{host}/");
        let place = Place::secure(&[
            ("POSTRIDER_DATABASE_URL", &database),
            ("POSTRIDER_BROKER_URL", &broker),
        ]);
        let config = place.complete();
        assert_eq!(database_mode(&config), None, "{host}");
        assert_eq!(broker_mode(&config), None, "{host}");
        let shown = place.load().unwrap();
        assert_eq!(setting(&shown, "database.tls", "mode").value, "\"disable\"");
        assert_eq!(setting(&shown, "broker.tls", "mode").value, "\"disable\"");
    }
    let socket = "postgres:///shop?host=/run/postgresql&user=u";
    let config = Place::secure(&[("POSTRIDER_DATABASE_URL", socket), AMQPS]).complete();
    assert_eq!(database_mode(&config), None);

    for url in [
        "amqp://u:p@mq/",
        "amqp://u:p@10.0.0.1/",
        "amqp://u:p@localhost.example/",
    ] {
        let place = Place::secure(&[LOCAL, ("POSTRIDER_BROKER_URL", url)]);
        let problems = place.problems();
        for part in [
            "POSTRIDER_BROKER_URL: is plain text (amqp://) to another machine",
            "write amqps://",
            "[broker.tls] mode = \"disable\"",
            "POSTRIDER_BROKER_TLS_MODE=disable",
        ] {
            assert!(problems[0].contains(part), "{part} is not in {problems:?}");
        }
    }
    let said = ("POSTRIDER_BROKER_TLS_MODE", "disable");
    assert_eq!(
        broker_mode(&Place::secure(&[LOCAL, BROKER, said]).complete()),
        None
    );
}

#[test]
fn to_any_other_host_everything_is_verified_by_default() {
    for url in [
        "postgres://u:p@db/shop",
        "postgres://u:p@10.0.0.1/shop",
        "postgres://u:p@localhost,db/shop",
        "postgres://u:p@localhost/shop?hostaddr=10.0.0.1",
    ] {
        let place = Place::secure(&[("POSTRIDER_DATABASE_URL", url), AMQPS]);
        let config = place.complete();
        assert_eq!(database_mode(&config), Some(Mode::VerifyFull), "{url}");
        assert_eq!(broker_mode(&config), Some(Mode::VerifyFull));
    }
}

#[test]
fn the_url_of_the_database_may_say_it_in_libpqs_words() {
    for (word, mode) in [
        ("disable", None),
        ("require", Some(Mode::Require)),
        ("verify-ca", Some(Mode::VerifyCa)),
        ("verify-full", Some(Mode::VerifyFull)),
    ] {
        let url = format!("postgres://u:p@db/shop?sslmode={word}&options=-c%20x.y%3Dz");
        let place = Place::secure(&[("POSTRIDER_DATABASE_URL", &url), AMQPS]);
        assert_eq!(database_mode(&place.complete()), mode, "{word}");
        let same = Place::secure(&[
            ("POSTRIDER_DATABASE_URL", &url),
            ("POSTRIDER_DATABASE_TLS_MODE", word),
            AMQPS,
        ]);
        assert_eq!(database_mode(&same.complete()), mode, "{word}");
    }
    for (parameters, said) in [
        ("sslmode=prefer", "plain text where the server has no TLS"),
        ("sslmode=allow", "plain text where the server has no TLS"),
        ("%73slmode=prefer", "plain text where the server has no TLS"),
        ("sslmode=on", "verify-full"),
        ("sslrootcert=/x", "[database.tls] ca_file"),
        ("sslkey=/x", "POSTRIDER_DATABASE_TLS_KEY_FILE"),
        ("sslnegotiation=direct", "not known here"),
    ] {
        let url = format!("postgres://u:p@db/shop?{parameters}");
        let problems = Place::new(&[("POSTRIDER_DATABASE_URL", &url)]).problems();
        assert!(problems[0].contains(said), "{parameters}: {problems:?}");
    }
}

#[test]
fn what_contradicts_itself_is_refused() {
    let required = ("POSTRIDER_DATABASE_TLS_MODE", "require");
    let url = (
        "POSTRIDER_DATABASE_URL",
        "postgres://u:p@db/shop?sslmode=verify-ca",
    );
    let problems = Place::new(&[url, required]).problems();
    assert!(
        problems[0].contains("POSTRIDER_DATABASE_TLS_MODE: is another than `sslmode`"),
        "{problems:?}"
    );

    let socket = (
        "POSTRIDER_DATABASE_URL",
        "postgres:///shop?host=/run/postgresql&user=u",
    );
    let problems = Place::new(&[socket, required]).problems();
    assert!(problems[0].contains("Unix socket"), "{problems:?}");

    for (section, said) in [
        ("mode = \"verify-full\"", "write amqps://"),
        ("server_name = \"mq\"", "has no effect"),
    ] {
        let place = Place::secure(&[("POSTRIDER_BROKER_URL", "amqp://localhost")])
            .file(&format!("[broker.tls]\n{section}\n"));
        let problems = place.problems();
        assert!(
            problems[0].starts_with("postrider.toml:2: "),
            "{problems:?}"
        );
        assert!(problems[0].contains(said), "{problems:?}");
    }
    let problems = Place::new(&[AMQPS]).problems();
    assert!(problems[0].contains("disables TLS"), "{problems:?}");
    let mixed = (
        "POSTRIDER_BROKER_URLS",
        "amqps://localhost,amqp://localhost",
    );
    let problems = Place::secure(&[mixed]).problems();
    assert!(
        problems[0].contains("amqps:// here and amqp:// there"),
        "{problems:?}"
    );
}

#[test]
fn files_stand_beside_the_configuration_and_make_tls_of_a_local_database_too() {
    let place = Place::secure(&[]).with_certificates().file(
        "[database]\nurl = \"postgres://u:p@localhost/shop\"\n\
         [database.tls]\nca_file = \"ca.crt\"\ncert_file = \"relay.crt\"\nkey_file = \"relay.key\"\n\
         [broker]\nurl = \"amqps://localhost\"\n\
         tls = { mode = \"verify-ca\", ca_file = \"ca.crt\", server_name = \"mq.example\" }\n",
    );
    let loaded = place.load().unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let config = loaded.complete().unwrap();
    assert_eq!(database_mode(&config), Some(Mode::VerifyFull));
    let tls = config.database.tls.as_ref().unwrap();
    assert_eq!(
        tls.settings().ca_file.as_deref(),
        Some(place.path().join("ca.crt").as_path())
    );
    assert!(tls.client_certificate_expires().is_some());
    assert_eq!(broker_mode(&config), Some(Mode::VerifyCa));
    let tls = config.broker.tls.as_ref().unwrap();
    assert_eq!(tls.settings().server_name.as_deref(), Some("mq.example"));
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_key_and_reason() {
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    for (ca, certificate, key, said) in [
        (
            "gone",
            "relay.crt",
            "relay.key",
            "[broker.tls] ca_file: {}/gone: the file does not exist",
        ),
        (
            "empty",
            "relay.crt",
            "relay.key",
            "[broker.tls] ca_file: {}/empty: the file is empty",
        ),
        (
            "text",
            "relay.crt",
            "relay.key",
            "[broker.tls] ca_file: {}/text: the file holds no certificate in PEM form",
        ),
        (
            "relay.key",
            "relay.crt",
            "relay.key",
            "[broker.tls] ca_file: {}/relay.key: the file holds no certificate",
        ),
        (
            "broken",
            "relay.crt",
            "relay.key",
            "[broker.tls] ca_file: {}/broken: certificate number 1 in the file cannot be used",
        ),
        (
            "cut",
            "relay.crt",
            "relay.key",
            "[broker.tls] ca_file: {}/cut: the file is damaged",
        ),
        (
            ".",
            "relay.crt",
            "relay.key",
            "[broker.tls] ca_file: {}/.: the file cannot be read",
        ),
        (
            "ca.crt",
            "broken",
            "relay.key",
            "[broker.tls] cert_file: {}/broken: certificate number 1",
        ),
        (
            "ca.crt",
            "relay.crt",
            "relay.crt",
            "[broker.tls] key_file: {}/relay.crt: the file holds no private key",
        ),
        (
            "ca.crt",
            "relay.crt",
            "encrypted",
            "[broker.tls] key_file: {}/encrypted: the private key is encrypted",
        ),
        (
            "ca.crt",
            "relay.crt",
            "other.key",
            "[broker.tls] key_file: {}/other.key: the private key does not belong to the certificate",
        ),
    ] {
        let place = Place::secure(&[LOCAL, AMQPS])
            .with_certificates()
            .write("empty", "\n")
            .write("text", "nothing\n")
            .write("broken", broken)
            .write("cut", "-----BEGIN CERTIFICATE-----\nAAAA\n")
            .write("encrypted", encrypted)
            .file(&format!(
                "[broker.tls]\nca_file = \"{ca}\"\ncert_file = \"{certificate}\"\nkey_file = \"{key}\"\n"
            ));
        let error = place.load().unwrap_err().to_string();
        let said = said.replace("{}", place.path().to_str().unwrap());
        assert!(error.contains(&said), "{said} is not in: {error}");
    }
}

#[test]
fn halves_and_what_would_have_no_effect_are_refused() {
    for (section, said) in [
        (
            "cert_file = \"relay.crt\"",
            "[database.tls] cert_file: is only one half: set `key_file` (or POSTRIDER_DATABASE_TLS_KEY_FILE)",
        ),
        (
            "key_file = \"relay.key\"",
            "[database.tls] key_file: is only one half: set `cert_file`",
        ),
        (
            "mode = \"require\"\nca_file = \"ca.crt\"",
            "[database.tls] ca_file: has no effect",
        ),
        (
            "server_name = \"not a name\"",
            "[database.tls] server_name: is neither",
        ),
        (
            "mode = \"prefer\"",
            "[database.tls] mode: `prefer` is not one of",
        ),
        ("verify = true", "[database.tls] verify: unknown key"),
        (
            "key_file = \"-----BEGIN PRIVATE KEY-----canary\"",
            "found something else",
        ),
    ] {
        let place = Place::new(&[REMOTE])
            .with_certificates()
            .file(&format!("[database.tls]\n{section}\n"));
        let problems = place.problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains(said), "{said}: {problems:?}");
        assert!(!problems[0].contains("canary"), "{problems:?}");
    }
    let problems = Place::new(&[])
        .file("[database]\nca_file = \"x\"\n")
        .problems();
    assert!(
        problems[0].contains("it belongs under [database.tls]"),
        "{problems:?}"
    );
    let problems = Place::new(&[])
        .file("[broker]\nca_file = \"x\"\n")
        .problems();
    assert!(
        problems[0].contains("it belongs under [broker.tls]"),
        "{problems:?}"
    );
    let problems = Place::new(&[]).file("[broker]\ntls = true\n").problems();
    assert!(
        problems[0].contains("write [broker.tls] once"),
        "{problems:?}"
    );
}

#[test]
fn the_client_certificate_says_who_logs_in_where_nobody_else_is_named() {
    let files =
        "[broker.tls]\nca_file = \"ca.crt\"\ncert_file = \"relay.crt\"\nkey_file = \"relay.key\"\n";
    let login = |url: &str, text: &str| {
        let place = Place::secure(&[LOCAL, ("POSTRIDER_BROKER_URL", url)])
            .with_certificates()
            .file(text);
        let loaded = place.load();
        loaded.map(|loaded| {
            let auth = setting(&loaded, "broker", "auth").value.clone();
            let endpoint = loaded.complete().unwrap().broker.endpoints[0].clone();
            let by_certificate = matches!(endpoint.login, BrokerLogin::Certificate);
            (by_certificate, auth, endpoint.to_string())
        })
    };
    let (by_certificate, auth, shown) = login("amqps://mq", files).unwrap();
    assert!(by_certificate);
    assert_eq!(auth, "\"external\"");
    assert_eq!(shown, "amqps://mq:5671/%2F");
    assert!(!login("amqps://u:p@mq", files).unwrap().0);
    assert!(
        !login("amqps://mq", &format!("broker.auth = \"plain\"\n{files}"))
            .unwrap()
            .0
    );
    assert!(!login("amqp://localhost", "").unwrap().0);
    let external = "broker.auth = \"external\"\n";
    assert!(
        login("amqps://mq", &format!("{external}{files}"))
            .unwrap()
            .0
    );
    for (url, text, said) in [
        (
            "amqps://mq",
            external.to_owned(),
            "set [broker.tls] cert_file and key_file",
        ),
        ("amqp://localhost", external.to_owned(), "write amqps://"),
        (
            "amqps://u:p@mq",
            format!("{external}{files}"),
            "leave user name and password out",
        ),
    ] {
        let error = login(url, &text).unwrap_err().to_string();
        assert!(error.contains(said), "{said} is not in: {error}");
    }
}

#[test]
fn keys_that_everybody_may_read_expired_certificates_and_unused_files_are_warned_about() {
    let files = |name: &str| {
        format!(
            "[broker.tls]\nca_file = \"ca.crt\"\ncert_file = \"{name}.crt\"\nkey_file = \"{name}.key\"\n"
        )
    };
    let place = Place::secure(&[LOCAL, AMQPS])
        .with_certificates()
        .permit("expired.key", 0o644)
        .file(&files("expired"));
    let warnings = place.load().unwrap().warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("[broker.tls] key_file: every user of this machine may read"));
    assert!(
        warnings[1]
            .contains("[broker.tls] cert_file: the certificate, or one behind it, has expired")
    );

    let place = Place::new(&[DATABASE, BROKER])
        .with_certificates()
        .file(&files("relay"));
    let warnings = place.load().unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("[broker.tls] ca_file has no effect"),
        "{warnings:?}"
    );
}
