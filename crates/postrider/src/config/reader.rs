//! Finds the effective value of a key and remembers where it came from.

use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::exchanges::SaidOfExchange;
use super::keys::{AnyKey, Key, KeyName};
use super::kind::{FilePath, Given, Kind, SecretPath};
use super::layer::Layer;
use super::permissions::open_to_everybody;
use super::report::Problem;
use super::secret_file;
use super::source::Source;

/// The effective value of one key, as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Which key.
    pub(crate) name: KeyName,
    /// Of which exchange, for a key of `[exchanges."NAME"]`.
    pub(crate) exchange: Option<String>,
    /// The value as TOML, without a secret.
    pub(crate) value: String,
    /// Where it comes from.
    pub(crate) source: Source,
}

/// Looks keys up: environment over file over default. Collects problems instead of stopping.
pub(crate) struct Reader<'a> {
    environment: &'a Layer,
    file: &'a Layer,
    credentials: Option<&'a Path>,
    pub(crate) problems: Vec<Problem>,
    /// What should be mended but stops nothing.
    pub(crate) warnings: Vec<String>,
    pub(crate) settings: Vec<Setting>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(
        environment: &'a Layer,
        file: &'a Layer,
        credentials: Option<&'a Path>,
    ) -> Self {
        Self {
            environment,
            file,
            credentials,
            problems: Vec::new(),
            warnings: Vec::new(),
            settings: Vec::new(),
        }
    }

    /// The value of a key. `None` when nothing is said and there is no default, or when what was
    /// said is wrong, which is then among the problems. What the environment overrides is checked too.
    pub(crate) fn value<K: Kind>(&mut self, key: &Key<K>) -> Option<K::Value>
    where
        Key<K>: AnyKey,
    {
        let mut effective = None;
        for layer in [self.file, self.environment] {
            if let Some((given, source)) = layer.get(key.name) {
                effective = self.parsed(key, given, source);
            }
        }
        if effective.is_none()
            && self.file.get(key.name).is_none()
            && self.environment.get(key.name).is_none()
        {
            let given = Given::Variable(key.default?.to_owned());
            effective = self.parsed(key, &given, &Source::Default);
        }
        let (value, source) = effective?;
        self.note(key.name, key.kind.show(&value), source);
        Some(value)
    }

    /// Parses what was given for a key, or adds a problem.
    pub(crate) fn parsed<K: Kind>(
        &mut self,
        key: &Key<K>,
        given: &Given,
        source: &Source,
    ) -> Option<(K::Value, Source)> {
        match key.kind.parse(given) {
            Ok(value) => Some((value, source.clone())),
            Err(message) => {
                self.refuse(source, key.name, message);
                None
            }
        }
    }

    /// Which of several keys that exclude each other is set: the environment's before the file's.
    pub(crate) fn one_of(&mut self, names: &[KeyName]) -> Option<(KeyName, Given, Source)> {
        for layer in [self.environment, self.file] {
            let mut set = names
                .iter()
                .filter_map(|name| layer.get(*name).map(|said| (*name, said)));
            let Some((name, (given, source))) = set.next() else {
                continue;
            };
            if let Some((other, (_, other_source))) = set.next() {
                self.refuse(
                    other_source,
                    other,
                    format!("excludes `{}` ({source}): keep one of the two", name.key),
                );
                return None;
            }
            return Some((name, given.clone(), source.clone()));
        }
        None
    }

    /// The file that a key names.
    pub(crate) fn path(&mut self, key: &Key<FilePath>) -> Option<PathBuf> {
        let path = self.value(key)?;
        Some(beside(&self.source_of(key.name), path))
    }

    /// The secret in the file that a key names, with the file's path.
    pub(crate) fn secret_file(
        &mut self,
        key: &Key<SecretPath>,
        given: &Given,
        source: &Source,
    ) -> Option<(SecretString, PathBuf)> {
        let path = self.secret_path(key, given, source)?;
        match secret_file::read(&path) {
            Ok(secret) => {
                self.warn_of_readers(key.name, &path);
                Some((secret, path))
            }
            Err(message) => {
                self.refuse(source, key.name, message);
                None
            }
        }
    }

    /// The file with a secret that a key names, not read yet.
    pub(crate) fn secret_path(
        &mut self,
        key: &Key<SecretPath>,
        given: &Given,
        source: &Source,
    ) -> Option<PathBuf> {
        let (path, source) = self.parsed(key, given, source)?;
        Some(beside(&source, path))
    }

    /// The secret of this name in systemd's `$CREDENTIALS_DIRECTORY`, with the file's path; `None`
    /// when there is none.
    pub(crate) fn credential(&mut self, name: &'static str) -> Option<(SecretString, PathBuf)> {
        let path = self.credentials?.join(name);
        if !path.exists() {
            return None;
        }
        match secret_file::read(&path) {
            Ok(secret) => Some((secret, path)),
            Err(message) => {
                self.problems
                    .push(Problem::at(Source::Credential(name), message));
                None
            }
        }
    }

    /// The place that decides a key, which has a value.
    pub(crate) fn source_of(&self, name: KeyName) -> Source {
        self.settings
            .iter()
            .find(|setting| setting.name == name)
            .map_or(Source::Default, |setting| setting.source.clone())
    }

    /// Whether somebody said anything about a key.
    pub(crate) fn is_set(&self, name: KeyName) -> bool {
        self.file.get(name).is_some() || self.environment.get(name).is_some()
    }

    /// What the file says about a key, whatever the environment says, and where.
    pub(crate) fn in_file(&self, name: KeyName) -> Option<&'a (Given, Source)> {
        self.file.get(name)
    }

    /// Warns where others than owner and group get at the file with a secret that a key names.
    pub(crate) fn warn_of_readers(&mut self, name: KeyName, path: &Path) {
        if let Some(open) = open_to_everybody(path) {
            self.warnings.push(format!("{name}: {open}: chmod o-rwx"));
        }
    }

    /// What the file says about single exchanges.
    pub(crate) fn exchanges(&self) -> &'a [SaidOfExchange] {
        &self.file.exchanges
    }

    /// Notes the effective value of a key.
    pub(crate) fn note(&mut self, name: KeyName, value: String, source: Source) {
        self.settings.push(Setting {
            name,
            exchange: None,
            value,
            source,
        });
    }

    /// Adds a problem with a key.
    pub(crate) fn refuse(&mut self, source: &Source, name: KeyName, message: impl Into<String>) {
        let key = match source {
            // The variable's name says it already.
            Source::Env(_) => None,
            _ => Some(name.to_string()),
        };
        self.problems.push(Problem {
            at: Some(source.clone()),
            key,
            message: message.into(),
            hints: Vec::new(),
        });
    }
}

/// A file named in the configuration file is looked for beside that one, wherever the program is started.
fn beside(source: &Source, path: PathBuf) -> PathBuf {
    match source {
        Source::File { path: config, .. } => config
            .parent()
            .map_or_else(|| path.clone(), |directory| directory.join(&path)),
        _ => path,
    }
}
