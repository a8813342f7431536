//! The URLs of both servers.

use secrecy::ExposeSecret;

use super::Place;
use crate::config::{broker_url, database_url};

#[test]
fn urls_that_cannot_work_are_refused() {
    for url in [
        "mysql://h/db",
        "host=h dbname=db",
        "postgres://",
        "postgres://u:p@h:port/db",
        "postgres://u:p@h/db?connect_timeout=3",
        "postgres://u:p@h/db?application_name=x",
        "postgres://u:p@h/db?target_session_attrs=read-only",
        "postgres://u:p@h/db?colour=red",
        "postgres://u:p@h/db?sslmode=disable&sslmode=require",
        "postgres://u:p@h/db?sslmode=disable&channel_binding=require",
        "postgres://u:p@h/db?sslcert=x",
    ] {
        let place = Place::new(&[("POSTRIDER_DATABASE_URL", url)]);
        assert_eq!(place.problems().len(), 1, "{url}");
    }
    for url in [
        "http://h",
        "amqp://",
        "amqp:///vhost",
        "amqp://h:port",
        "amqp://h/v?heartbeat=3",
        "amqp://h/v?frame_max=3",
        "amqp://h/%zz",
        "amqp://h/v#x",
    ] {
        let place = Place::new(&[("POSTRIDER_BROKER_URL", url)]);
        assert_eq!(place.problems().len(), 1, "{url}");
    }
}

#[test]
fn a_broker_url_is_taken_apart_as_rabbitmq_documents_it() {
    for (url, shown) in [
        ("amqp://h", "amqp://guest:***@h:5672/%2F"),
        ("amqp://h/", "amqp://guest:***@h:5672/%2F"),
        ("amqp://h/%2f", "amqp://guest:***@h:5672/%2F"),
        ("amqp://h//", "amqp://guest:***@h:5672/%2F"),
        ("amqp://u%40x:p@h:1/a%20b", "amqp://u%40x:***@h:1/a%20b"),
        ("amqp://[::1]:5673/v", "amqp://guest:***@[::1]:5673/v"),
        ("amqp://127.0.0.1/v", "amqp://guest:***@127.0.0.1:5672/v"),
        ("amqps://h", "amqps://guest:***@h:5671/%2F"),
        ("amqps://u@h:5672/v", "amqps://u:***@h:5672/v"),
    ] {
        let url_parsed = broker_url::parse(url).unwrap();
        let login = url_parsed.password_login();
        let endpoint = url_parsed.with_login(login);
        assert_eq!(endpoint.to_string(), shown, "{url}");
    }
    let url = broker_url::parse("amqp://u:p%40%2F%3F@[::1]").unwrap();
    assert_eq!(url.password.unwrap().expose_secret(), "p@/?");
    assert_eq!(url.host, "::1");
}

#[test]
fn a_database_url_is_shown_without_its_password() {
    for (url, shown, database) in [
        (
            "postgres://u:canary@h/db",
            "postgres://u:***@h:5432/db",
            Some("db"),
        ),
        (
            "postgresql://u@h1:1,h2:2",
            "postgres://u@h1:1,h2:2",
            Some("u"),
        ),
        (
            "postgres:///db?host=/run/pg&user=u&password=canary",
            "postgres://u:***@%2Frun%2Fpg/db",
            Some("db"),
        ),
        ("postgres://h", "postgres://h:5432", None),
    ] {
        let parsed = database_url::parse(url).unwrap();
        assert_eq!(parsed.shown, shown);
        assert_eq!(parsed.database.as_deref(), database);
    }
}
