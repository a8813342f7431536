use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use postrider_core::{RetryPolicy, UnroutablePolicy};
use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::source::Source;
use super::*;

const DATABASE: (&str, &str) = ("POSTRIDER_DATABASE_URL", "postgres://app:pw@db:5433/shop");
const BROKER: (&str, &str) = ("POSTRIDER_BROKER_URL", "amqp://app:pw@mq/sales");

struct Place {
    directory: TempDir,
    environment: Vec<(OsString, OsString)>,
}

impl Place {
    fn new(variables: &[(&str, &str)]) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            environment: variables
                .iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        }
    }

    fn file(self, text: &str) -> Self {
        self.write("postrider.toml", text)
    }

    fn write(self, name: &str, text: &str) -> Self {
        fs::write(self.path().join(name), text).unwrap();
        self
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn load(&self) -> Result<Loaded, ConfigError> {
        Loaded::from(&Inputs {
            file: None,
            default_file: self.path().join("postrider.toml"),
            environment: self.environment.clone(),
            host_name: "host".to_owned(),
        })
    }

    fn complete(&self) -> Config {
        self.load().unwrap().complete().unwrap()
    }

    /// The problems, with the file's name without its directory.
    fn problems(&self) -> Vec<String> {
        let directory = format!("{}/", self.path().display());
        self.load()
            .unwrap_err()
            .problems()
            .iter()
            .map(|problem| problem.to_string().replace(&directory, ""))
            .collect()
    }
}

fn setting<'a>(loaded: &'a Loaded, section: &str, key: &str) -> &'a Setting {
    loaded
        .settings
        .iter()
        .find(|setting| setting.name.section == section && setting.name.key == key)
        .unwrap_or_else(|| panic!("[{section}] {key} is not shown"))
}

#[test]
fn it_runs_without_any_file() {
    let config = Place::new(&[DATABASE, BROKER]).complete();
    assert_eq!(config.relay.workers, 2);
    assert_eq!(config.relay.batch_bytes, 4 << 20);
    assert_eq!(config.relay.poll_interval, Duration::from_secs(1));
    assert_eq!(config.relay.name, "host");
    assert_eq!(config.relay.outbox, "shop");
    assert_eq!(config.broker.connection_name, "postrider host");
    assert_eq!(config.broker.endpoints[0].vhost, "sales");
    assert_eq!(
        config.database.url.expose_secret(),
        "postgres://app:pw@db:5433/shop"
    );
}

#[test]
fn the_environment_goes_over_the_file_and_the_file_over_the_default() {
    let place = Place::new(&[DATABASE, BROKER, ("POSTRIDER_RELAY_WORKERS", "7")])
        .file("[relay]\nworkers = 5\nbatch_rows = 50\n");
    let loaded = place.load().unwrap();
    let workers = setting(&loaded, "relay", "workers");
    assert_eq!(workers.value, "7");
    assert_eq!(
        workers.source,
        Source::Env("POSTRIDER_RELAY_WORKERS".to_owned())
    );
    let rows = setting(&loaded, "relay", "batch_rows");
    assert_eq!(rows.value, "50");
    assert!(matches!(rows.source, Source::File { line: 3, .. }));
    let bytes = setting(&loaded, "relay", "batch_bytes");
    assert_eq!(bytes.source, Source::Default);
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let config = Place::new(&[DATABASE, BROKER, ("POSTRIDER_RELAY_WORKERS", "")]).complete();
    assert_eq!(config.relay.workers, 2);
}

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
    let starts: Vec<_> = problems
        .iter()
        .map(|problem| problem.lines().next().unwrap())
        .collect();
    assert_eq!(
        starts,
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
    assert!(problems[5].contains("the sections are [database], [broker]"));
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
fn what_a_variable_overrides_is_checked_too() {
    let place = Place::new(&[("POSTRIDER_RELAY_WORKERS", "2")]).file("[relay]\nworkers = 0\n");
    assert_eq!(place.problems().len(), 1);
}

#[test]
fn unknown_variables_warn_and_never_refuse() {
    let place = Place::new(&[
        DATABASE,
        BROKER,
        ("POSTRIDER_PORT", "tcp://10.0.0.1:7617"),
        ("POSTRIDER_RELAY_WORKER", "2"),
        ("POSTRIDER_CONFIG", ""),
        ("PATH", "/bin"),
    ]);
    let loaded = place.load().unwrap();
    assert_eq!(
        loaded.warnings,
        [
            "environment variables that mean nothing here are ignored: POSTRIDER_PORT, \
          POSTRIDER_RELAY_WORKER (did you mean POSTRIDER_RELAY_WORKERS?)"
        ]
    );
}

#[test]
fn a_missing_url_is_named_with_file_variable_and_command() {
    let loaded = Place::new(&[]).load().unwrap();
    let database = loaded.database().unwrap_err().to_string();
    assert!(database.contains("POSTRIDER_DATABASE_URL"), "{database}");
    assert!(!database.contains("BROKER"), "{database}");
    let all = loaded.complete().unwrap_err().to_string();
    for part in [
        DEFAULT_PATH,
        "POSTRIDER_DATABASE_URL",
        "POSTRIDER_DATABASE_URL_FILE",
        "POSTRIDER_BROKER_URL",
        "postrider config default",
        "2 problems",
    ] {
        assert!(all.contains(part), "{part} is not in: {all}");
    }
}

#[test]
fn two_ways_to_say_one_url_in_one_place_are_an_error() {
    let place = Place::new(&[]).file(
        "[broker]\nurl = \"amqp://a\"\nurls = [\"amqp://b\"]\n\
         [database]\nurl = \"postgres://a\"\nurl_file = \"x\"\n",
    );
    let problems = place.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("[broker] urls: excludes `url`"));
    assert!(problems[1].contains("[database] url_file: excludes `url`"));
}

#[test]
fn a_variable_replaces_whichever_way_the_file_says_the_url() {
    let place = Place::new(&[DATABASE, BROKER])
        .file("[broker]\nurls = [\"amqp://a\", \"amqp://b\"]\n[database]\nurl_file = \"gone\"\n");
    let config = place.complete();
    assert_eq!(config.broker.endpoints.len(), 1);
    assert_eq!(config.broker.endpoints[0].host, "mq");
}

#[test]
fn several_brokers_come_from_one_variable_with_commas() {
    let place = Place::new(&[
        DATABASE,
        ("POSTRIDER_BROKER_URLS", "amqp://a, amqp://b:5673/x"),
    ]);
    let shown: Vec<_> = place
        .complete()
        .broker
        .endpoints
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        shown,
        ["amqp://guest:***@a:5672/%2F", "amqp://guest:***@b:5673/x"]
    );
}

#[test]
fn secrets_come_from_files_beside_the_configuration() {
    let place = Place::new(&[])
        .file(
            "[database]\nurl_file = \"db\"\n[broker]\nurl = \"amqp://mq\"\nusername = \"app\"\n\
             password_file = \"pw\"\nvhost = \"a/b\"\n",
        )
        .write("db", "postgres://app:pw@db/shop\n")
        .write("pw", "hunter2\n");
    let config = place.complete();
    assert_eq!(
        config.database.url.expose_secret(),
        "postgres://app:pw@db/shop"
    );
    let endpoint = &config.broker.endpoints[0];
    assert_eq!(endpoint.username, "app");
    assert_eq!(endpoint.password.expose_secret(), "hunter2");
    assert_eq!(endpoint.vhost, "a/b");
}

#[test]
fn credentials_of_systemd_are_read_when_nothing_else_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let credentials = directory.path().to_str().unwrap().to_owned();
    fs::write(directory.path().join("database-url"), "postgres://c@d/e\n").unwrap();
    fs::write(directory.path().join("broker-url"), "amqp://c@d\n").unwrap();
    fs::write(directory.path().join("broker-password"), "hunter2\n").unwrap();
    let place = Place::new(&[("CREDENTIALS_DIRECTORY", &credentials)]);
    let loaded = place.load().unwrap();
    assert_eq!(
        setting(&loaded, "database", "url").source,
        Source::Credential("database-url")
    );
    let config = loaded.complete().unwrap();
    assert_eq!(
        config.broker.endpoints[0].password.expose_secret(),
        "hunter2"
    );
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

#[test]
fn a_named_file_must_exist_and_the_default_one_need_not() {
    let place = Place::new(&[("POSTRIDER_CONFIG", "/nonexistent/postrider.toml")]);
    assert!(place.problems()[0].contains("/nonexistent/postrider.toml: the configuration file"));
    assert!(Place::new(&[]).load().is_ok());
}

#[test]
fn tls_is_refused_instead_of_left_out_in_silence() {
    for parameters in [
        "sslmode=prefer",
        "sslmode=require",
        "sslmode=verify-full",
        "sslmode=disable&sslmode=require",
        "%73slmode=require",
        "sslrootcert=/x",
        "sslnegotiation=direct",
        "channel_binding=require",
    ] {
        let url = format!("postgres://a:pw@h/db?{parameters}");
        let problems = Place::new(&[("POSTRIDER_DATABASE_URL", &url)]).problems();
        assert!(
            problems[0].contains("TLS to PostgreSQL is not supported by this version"),
            "{parameters}: {problems:?}"
        );
    }
    let problems = Place::new(&[("POSTRIDER_BROKER_URL", "amqps://h")]).problems();
    assert!(problems[0].contains("TLS to RabbitMQ"), "{problems:?}");
    let url = "postgres://a:pw@h/db?sslmode=disable";
    assert!(
        Place::new(&[("POSTRIDER_DATABASE_URL", url)])
            .load()
            .is_ok()
    );
}

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
    ] {
        let endpoint = broker_url::parse(url).unwrap();
        assert_eq!(endpoint.to_string(), shown, "{url}");
    }
    let endpoint = broker_url::parse("amqp://u:p%40%2F%3F@[::1]").unwrap();
    assert_eq!(endpoint.password.expose_secret(), "p@/?");
    assert_eq!(endpoint.host, "::1");
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
            "broker",
            "relay",
            "retry",
            "unroutable",
            "dead_letters",
            "wakeup",
            "metrics",
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
fn the_example_file_parses_and_equals_the_defaults() {
    let without = Place::new(&[]).load().unwrap();
    let with = Place::new(&[]).file(DEFAULT_FILE).load().unwrap();
    let values = |loaded: &Loaded| -> Vec<_> {
        loaded
            .settings
            .iter()
            .map(|setting| (setting.name, setting.value.clone()))
            .collect()
    };
    assert_eq!(values(&with), values(&without));
    for key in keys::ALL.iter().filter(|key| key.default_toml().is_some()) {
        let name = key.name();
        assert!(
            matches!(
                setting(&with, name.section, name.key).source,
                Source::File { .. }
            ),
            "{name} is not in the example file"
        );
    }
}

#[test]
fn the_example_file_has_every_key_in_its_section_with_a_reason() {
    let mut section = "";
    let mut seen = Vec::new();
    let mut previous = "";
    for line in DEFAULT_FILE.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        }
        let key = keys::ALL.iter().map(|key| key.name()).find(|name| {
            let start = format!("{} = ", name.key);
            name.section == section
                && (line.starts_with(&start) || line.starts_with(&format!("# {start}")))
        });
        if let Some(name) = key {
            assert!(previous.starts_with("# "), "{name} has no reason above it");
            seen.push(name);
        }
        previous = line;
    }
    let all: Vec<_> = keys::ALL.iter().map(|key| key.name()).collect();
    assert_eq!(seen, all, "each once, in the order of the table");
}

#[test]
fn what_the_example_file_has_behind_a_comment_sign_works_without_it() {
    let mut tried = 0;
    for line in DEFAULT_FILE.lines() {
        let Some(key) = keys::ALL
            .iter()
            .find(|key| line.starts_with(&format!("# {} = ", key.name().key)))
        else {
            continue;
        };
        // The files they name are not here.
        if key.name().key.ends_with("_file") {
            continue;
        }
        let text = DEFAULT_FILE.replacen(line, line.trim_start_matches("# "), 1);
        let loaded = Place::new(&[]).file(&text).load();
        assert!(loaded.is_ok(), "{line}: {}", loaded.unwrap_err());
        tried += 1;
    }
    assert!(tried >= 7, "only {tried} were found");
}

#[test]
fn the_documentation_has_a_row_for_every_key() {
    let documentation = include_str!("../../../../docs/configuration.md");
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
    let starts: Vec<_> = problems
        .iter()
        .map(|problem| problem.lines().next().unwrap())
        .collect();
    assert_eq!(
        starts,
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

#[test]
fn the_table_of_an_exchange_in_the_example_file_works_without_its_comment_signs() {
    let text = DEFAULT_FILE
        .replace("# [exchanges.", "[exchanges.")
        .replace("# unroutable = ", "unroutable = ");
    let place = Place::new(&[DATABASE, BROKER]).file(&text);
    assert_eq!(
        place.complete().unroutable.of("audit"),
        UnroutablePolicy::Accept
    );
    let documentation = include_str!("../../../../docs/configuration.md");
    assert!(documentation.contains("## `[exchanges.\"NAME\"]`"));
    assert!(documentation.contains("| `unroutable` |"));
}
