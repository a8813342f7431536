//! Files with secrets that others than their owner and their group get at.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{BROKER, DATABASE, Place};

fn warnings(place: &Place) -> Vec<String> {
    let directory = format!("{}/", place.path().display());
    let warnings = place.load().unwrap().warnings;
    warnings
        .iter()
        .map(|warning| warning.replace(&directory, ""))
        .collect()
}

const WITH_PASSWORDS: &str = "[database]\nurl = \"postgres://u:canary@localhost/shop\"\n\
     [broker]\nurls = [\"amqp://mq\", \"amqp://u:canary@mq2\"]\n";

#[test]
fn a_configuration_with_a_password_that_everybody_may_read_or_change_is_warned_about_in_one_line() {
    for (mode, shown) in [(0o644, "644"), (0o604, "604"), (0o602, "602")] {
        let place = Place::new(&[])
            .file(WITH_PASSWORDS)
            .permit("postrider.toml", mode);
        assert_eq!(
            warnings(&place),
            [format!(
                "the password in [database] url and [broker] urls: every user of this machine may read or change \
                 postrider.toml (mode {shown}): keep it in a file of its own (url_file, password_file) or in a credential of systemd, \
                 or chmod o-rwx where the relay runs as the file's owner or in its group"
            )]
        );
    }
    for mode in [0o600, 0o640, 0o660] {
        let place = Place::new(&[])
            .file(WITH_PASSWORDS)
            .permit("postrider.toml", mode);
        assert!(warnings(&place).is_empty(), "{mode:o}");
    }
}

#[test]
fn a_password_counts_wherever_it_stands_in_a_url_of_the_file_and_also_where_a_variable_goes_before_it()
 {
    for (text, with_password) in [
        ("[database]\nurl = \"postgres://u:p@localhost/a\"\n", true),
        (
            "[database]\nurl = \"postgres://localhost/a?user=u&password=p\"\n",
            true,
        ),
        (
            "[database]\nurl = \"postgres://localhost/a?user=u&pass%77ord=p\"\n",
            true,
        ),
        (
            "[database]\nurl = \"postgres://u:p@a:1,b:2/a?sslmode=disable\"\n",
            true,
        ),
        ("[broker]\nurl = \"amqp://u:p@localhost\"\n", true),
        ("[broker]\nurl = \"amqp://u:p\"\n", false),
        (
            "[database]\nurl = \"postgres://u@localhost:5432/a\"\n",
            false,
        ),
        (
            "[database]\nurl = \"postgres:///a?host=/run/postgresql&user=u\"\n",
            false,
        ),
        (
            "[database]\nurl = \"postgres://u:@localhost/a?password=\"\n",
            false,
        ),
        (
            "[broker]\nurls = [\"amqp://u@localhost:5672\", \"amqp://localhost\"]\n",
            false,
        ),
        ("[relay]\nname = \"a:b@c\"\n", false),
    ] {
        let place = Place::new(&[DATABASE, BROKER])
            .file(text)
            .permit("postrider.toml", 0o644);
        let warnings = warnings(&place);
        assert_eq!(
            warnings.len(),
            usize::from(with_password),
            "{text}: {warnings:?}"
        );
    }
}

#[test]
fn a_file_with_a_secret_that_everybody_may_read_or_change_is_warned_about_with_the_key_that_names_it()
 {
    let token = ["{}", r#"{"exp": 4102444800}"#, "s"].map(|part| URL_SAFE_NO_PAD.encode(part));
    for (key, text, variable) in [
        (
            "[database] url_file",
            "postgres://u:canary@localhost/a\n",
            BROKER,
        ),
        ("[broker] url_file", "amqp://u:canary@mq\n", DATABASE),
        ("[broker] password_file", "canary\n", DATABASE),
        ("[broker] token_file", &token.join("."), DATABASE),
    ] {
        let (section, name) = key.split_once(' ').unwrap();
        let place = |mode| {
            Place::new(&[variable])
                .file(&format!("{section}\n{name} = \"secret\"\n"))
                .write("secret", text)
                .permit("secret", mode)
                // Nothing secret is in it.
                .permit("postrider.toml", 0o644)
        };
        assert_eq!(
            warnings(&place(0o644)),
            [format!(
                "{key}: every user of this machine may read or change secret (mode 644): chmod o-rwx"
            )]
        );
        // As the manifests for Kubernetes mount secrets, and as systemd keeps credentials.
        for mode in [0o440, 0o400] {
            let warnings = warnings(&place(mode));
            assert!(warnings.is_empty(), "{key}: {warnings:?}");
        }
    }
}
