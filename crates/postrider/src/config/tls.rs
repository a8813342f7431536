//! `[database.tls]`, `[broker.tls]` and `[tracing.tls]`: the same keys for each peer.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use postrider_tls::{ClientFiles, FileError, Mode, Peer, Settings, Tls};

use super::TlsMode;
use super::keys::{self, Key, KeyName};
use super::kind::{FilePath, Kind as _, OneOf, Text};
use super::reader::Reader;
use super::report::Problem;
use super::source::Source;

/// The keys of one of these sections.
pub(crate) struct Section {
    peer: Peer,
    pub(crate) mode: &'static Key<OneOf<TlsMode>>,
    ca_file: &'static Key<FilePath>,
    cert_file: &'static Key<FilePath>,
    key_file: &'static Key<FilePath>,
    server_name: &'static Key<Text>,
}

pub(crate) static DATABASE: Section = Section {
    peer: Peer::Database,
    mode: &keys::DATABASE_TLS_MODE,
    ca_file: &keys::DATABASE_TLS_CA_FILE,
    cert_file: &keys::DATABASE_TLS_CERT_FILE,
    key_file: &keys::DATABASE_TLS_KEY_FILE,
    server_name: &keys::DATABASE_TLS_SERVER_NAME,
};

pub(crate) static BROKER: Section = Section {
    peer: Peer::Broker,
    mode: &keys::BROKER_TLS_MODE,
    ca_file: &keys::BROKER_TLS_CA_FILE,
    cert_file: &keys::BROKER_TLS_CERT_FILE,
    key_file: &keys::BROKER_TLS_KEY_FILE,
    server_name: &keys::BROKER_TLS_SERVER_NAME,
};

pub(crate) static COLLECTOR: Section = Section {
    peer: Peer::Collector,
    mode: &keys::TRACING_TLS_MODE,
    ca_file: &keys::TRACING_TLS_CA_FILE,
    cert_file: &keys::TRACING_TLS_CERT_FILE,
    key_file: &keys::TRACING_TLS_KEY_FILE,
    server_name: &keys::TRACING_TLS_SERVER_NAME,
};

/// What somebody said in one of them.
pub(crate) struct Said {
    pub(crate) mode: Option<TlsMode>,
    ca_file: Option<PathBuf>,
    client: Option<ClientFiles>,
    server_name: Option<String>,
}

impl Said {
    /// The client's certificate is there to be shown.
    pub(crate) fn has_client_certificate(&self) -> bool {
        self.client.is_some()
    }
}

impl Section {
    /// What was said; `None` when some of it is wrong, which is then among the problems.
    pub(crate) fn read(&self, reader: &mut Reader<'_>) -> Option<Said> {
        let before = reader.problems.len();
        let mode = reader.value(self.mode);
        let ca_file = reader.path(self.ca_file);
        let cert_file = reader.path(self.cert_file);
        let key_file = reader.path(self.key_file);
        let server_name = reader.value(self.server_name);
        if let Some(name) = &server_name
            && !postrider_tls::is_server_name(name)
        {
            let source = reader.source_of(self.server_name.name);
            reader.refuse(
                &source,
                self.server_name.name,
                "is neither a DNS name nor an IP address",
            );
        }
        if let (Some(path), TlsMode::On(Mode::Require)) = (&ca_file, mode.unwrap_or(VERIFY_FULL)) {
            let source = reader.source_of(self.ca_file.name);
            let message = format!(
                "has no effect with `mode = \"require\"`, which verifies nothing: write \"verify-ca\" or \"verify-full\", or leave {} out",
                path.display()
            );
            reader.refuse(&source, self.ca_file.name, message);
        }
        let client = match (cert_file, key_file) {
            (Some(certificate), Some(key)) => Some(ClientFiles { certificate, key }),
            (None, None) => None,
            (Some(_), None) => self.lonely(reader, self.cert_file.name, self.key_file.name),
            (None, Some(_)) => self.lonely(reader, self.key_file.name, self.cert_file.name),
        };
        (reader.problems.len() == before).then_some(Said {
            mode,
            ca_file,
            client,
            server_name,
        })
    }

    fn lonely<T>(&self, reader: &mut Reader<'_>, said: KeyName, missing: KeyName) -> Option<T> {
        // What was said wrongly is complained about already.
        let source = reader.source_of(said);
        let message = format!(
            "is only one half: set `{}` (or {}) too, or neither",
            missing.key,
            missing.variable()
        );
        reader.refuse(&source, said, message);
        None
    }

    /// The first key beside `mode` that was said; where there is no TLS, none of them has an effect.
    pub(crate) fn said_beside_mode(&self, reader: &Reader<'_>) -> Option<(KeyName, Source)> {
        [
            self.ca_file.name,
            self.cert_file.name,
            self.key_file.name,
            self.server_name.name,
        ]
        .into_iter()
        .find(|name| reader.is_set(*name))
        .map(|name| (name, reader.source_of(name)))
    }

    /// Notes the mode that nobody said.
    pub(crate) fn note_default(&self, reader: &mut Reader<'_>, mode: TlsMode) {
        if !reader.is_set(self.mode.name) {
            let shown = self.mode.kind.show(&mode);
            reader.note(self.mode.name, shown, Source::Default);
        }
    }

    /// Plain text. Files that were named and are not used are worth a warning.
    pub(crate) fn disabled(&self, reader: &mut Reader<'_>) {
        if let Some((name, source)) = self.said_beside_mode(reader) {
            reader.warnings.push(format!(
                "{source}: {name} has no effect: TLS is disabled by [{}] mode or by `sslmode`",
                self.peer.section()
            ));
        }
    }

    /// Reads the files; `None` when one of them cannot be used, which is then among the problems.
    pub(crate) fn enabled(&self, reader: &mut Reader<'_>, said: Said, mode: Mode) -> Option<Tls> {
        if let Some(client) = &said.client {
            reader.warn_of_readers(self.key_file.name, &client.key);
        }
        let settings = Settings {
            peer: self.peer,
            mode,
            ca_file: said.ca_file,
            client: said.client,
            server_name: said.server_name,
        };
        match Tls::new(settings) {
            Ok(tls) => {
                self.warn_of_expiry(reader, &tls);
                Some(tls)
            }
            Err(error) => {
                self.refuse_file(reader, &error);
                None
            }
        }
    }

    fn refuse_file(&self, reader: &mut Reader<'_>, error: &FileError) {
        let name = [self.ca_file.name, self.cert_file.name, self.key_file.name]
            .into_iter()
            .find(|name| name.key == error.key)
            .unwrap_or(self.mode.name);
        let message = match &error.path {
            Some(path) => format!("{}: {}", path.display(), error.fault),
            None => error.fault.to_string(),
        };
        if reader.is_set(name) {
            let source = reader.source_of(name);
            reader.refuse(&source, name, message);
        } else {
            reader.problems.push(Problem {
                at: None,
                key: Some(name.to_string()),
                message,
                hints: Vec::new(),
            });
        }
    }

    /// Not refused: a relay that runs reads the new one as soon as it is there.
    fn warn_of_expiry(&self, reader: &mut Reader<'_>, tls: &Tls) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        if tls
            .client_certificate_expires()
            .is_some_and(|expires| expires <= now)
        {
            let name = self.cert_file.name;
            reader.warnings.push(format!(
                "{name}: the certificate, or one behind it, has expired: the server will refuse it"
            ));
        }
    }
}

/// What is verified where nobody says otherwise.
pub(crate) const VERIFY_FULL: TlsMode = TlsMode::On(Mode::VerifyFull);
