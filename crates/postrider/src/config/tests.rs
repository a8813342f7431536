//! The configuration as somebody writes it: files, variables and credentials, from a directory of its own.

mod any_text;
mod changes;
mod example_file;
mod exchanges;
mod key_table;
mod permissions;
mod secrets;
mod several_outboxes;
mod sources;
mod tls;
mod token;
mod tracing;
mod urls;
mod values;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use super::{Config, ConfigError, Inputs, Loaded, Setting};

/// In plain text, as most of these tests have nothing to do with TLS; [`Place::new`] says so for the broker.
const DATABASE: (&str, &str) = (
    "POSTRIDER_DATABASE_URL",
    "postgres://app:pw@db:5433/shop?sslmode=disable",
);
const BROKER: (&str, &str) = ("POSTRIDER_BROKER_URL", "amqp://app:pw@mq/sales");

struct Place {
    directory: TempDir,
    environment: Vec<(OsString, OsString)>,
}

impl Place {
    fn new(variables: &[(&str, &str)]) -> Self {
        let plain = [("POSTRIDER_BROKER_TLS_MODE", "disable")];
        Self::secure(&[&plain, variables].concat())
    }

    /// Plain text to other machines only where `variables` say so.
    fn secure(variables: &[(&str, &str)]) -> Self {
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

    /// For its owner alone: most of these tests have nothing to do with who may read it.
    fn write(self, name: &str, text: &str) -> Self {
        fs::write(self.path().join(name), text).unwrap();
        self.permit(name, 0o600)
    }

    fn permit(self, name: &str, mode: u32) -> Self {
        fs::set_permissions(self.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
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

/// Without the lines that say what is possible.
fn first_lines(problems: &[String]) -> Vec<&str> {
    problems
        .iter()
        .map(|problem| problem.lines().next().unwrap())
        .collect()
}
