//! `[broker]`: where the nodes are, who connects, and whether by TLS.

use std::borrow::Cow;
use std::path::PathBuf;

use postrider_rabbitmq::TokenFile;
use postrider_tls::Mode;
use secrecy::{ExposeSecret, SecretString};

use super::authority::is_loopback;
use super::broker_url::{self, BrokerEndpoint, BrokerLogin, BrokerUrl};
use super::keys::{self, KeyName};
use super::kind::{Kind, quoted};
use super::reader::Reader;
use super::source::Source;
use super::tls::{self, Said};
use super::{BrokerAuth, BrokerConfig, TlsMode};

pub(crate) fn broker(reader: &mut Reader<'_>, relay_name: Option<&str>) -> Option<BrokerConfig> {
    let heartbeat = reader.value(&keys::BROKER_HEARTBEAT);
    let connect_timeout = reader.value(&keys::BROKER_CONNECT_TIMEOUT);
    let vhost = reader.value(&keys::BROKER_VHOST);
    let connection_name = reader.value(&keys::BROKER_CONNECTION_NAME).or_else(|| {
        let name = format!("postrider {}", relay_name?);
        reader.note(
            keys::BROKER_CONNECTION_NAME.name,
            keys::BROKER_CONNECTION_NAME.kind.show(&name),
            Source::Default,
        );
        Some(name)
    });
    let login = Login::read(reader);
    let said = tls::BROKER.read(reader);
    let (urls, name, source) = parsed_urls(reader)?;
    let (login, said) = (login?, said?);
    let mode = mode(reader, &urls, &said, name, &source)?;
    let certificate = mode.is_some() && said.has_client_certificate();
    let by_certificate = login.by_certificate(reader, &urls, certificate)?;
    login.check_token(reader, &urls)?;
    let tls = match mode {
        None => {
            tls::BROKER.disabled(reader);
            None
        }
        Some(mode) => Some(tls::BROKER.enabled(reader, said, mode)?),
    };
    let endpoints: Vec<_> = urls
        .into_iter()
        .map(|url| login.endpoint(url, vhost.as_deref(), by_certificate))
        .collect();
    let several = name == keys::BROKER_URLS.name;
    reader.note(name, shown(&endpoints, several), source);
    Some(BrokerConfig {
        endpoints,
        tls,
        connection_name: connection_name?,
        heartbeat: heartbeat?,
        connect_timeout: connect_timeout?,
    })
}

/// At least one URL, each taken apart, the key that says them and where that is.
fn parsed_urls(reader: &mut Reader<'_>) -> Option<(Vec<BrokerUrl>, KeyName, Source)> {
    let (urls, name, source) = broker_secrets(reader)?;
    let before = reader.problems.len();
    let mut parsed = Vec::new();
    for (place, url) in urls.iter().enumerate() {
        match broker_url::parse(url.expose_secret()) {
            Ok(url) => parsed.push(url),
            Err(message) if urls.len() > 1 => {
                reader.refuse(&source, name, format!("number {}: {message}", place + 1));
            }
            Err(message) => reader.refuse(&source, name, message),
        }
    }
    (reader.problems.len() == before).then_some((parsed, name, source))
}

/// What is verified, `None` inside for plain text. The URLs decide, and the section must not say otherwise.
fn mode(
    reader: &mut Reader<'_>,
    urls: &[BrokerUrl],
    said: &Said,
    name: KeyName,
    source: &Source,
) -> Option<Option<Mode>> {
    let key = tls::BROKER.mode.name;
    let tls = urls.iter().filter(|url| url.tls).count();
    let remote = urls.iter().any(|url| !is_loopback(&url.host));
    let beside = tls::BROKER.said_beside_mode(reader);
    let refused: (KeyName, Source, Cow<'_, str>) = match (tls, said.mode) {
        (0, Some(TlsMode::Disable)) => return Some(None),
        (0, Some(TlsMode::On(_))) => (
            key,
            reader.source_of(key),
            format!("asks for TLS, and the broker's URL ({source}) says amqp://, which is plain text: write amqps://").into(),
        ),
        (0, None) if remote => (
            name,
            source.clone(),
            format!(
                "is plain text (amqp://) to another machine: write amqps://, or, where everybody on the way may read and change \
                 messages and password, set {key} = \"disable\" (or {}=disable)",
                key.variable()
            )
            .into(),
        ),
        (0, None) => match beside {
            None => {
                tls::BROKER.note_default(reader, TlsMode::Disable);
                return Some(None);
            }
            Some((key, place)) => (
                key,
                place,
                format!("has no effect: the broker's URL ({source}) says amqp://, which is plain text; write amqps://").into(),
            ),
        },
        (tls, _) if tls < urls.len() => (
            name,
            source.clone(),
            "says amqps:// here and amqp:// there: write one of them everywhere".into(),
        ),
        (_, Some(TlsMode::Disable)) => (
            key,
            reader.source_of(key),
            format!("disables TLS, and the broker's URL ({source}) says amqps://: keep one of the two").into(),
        ),
        (_, Some(TlsMode::On(mode))) => return Some(Some(mode)),
        (_, None) => {
            tls::BROKER.note_default(reader, tls::VERIFY_FULL);
            return Some(Some(Mode::VerifyFull));
        }
    };
    let (name, place, message) = refused;
    reader.refuse(&place, name, message);
    None
}

/// What is said about the login beside the URLs.
struct Login {
    auth: Option<BrokerAuth>,
    username: Option<String>,
    secret: Option<LoginSecret>,
}

/// What a file holds that proves who logs in.
enum LoginSecret {
    Password(SecretString),
    Token(TokenFile),
}

impl Login {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let before = reader.problems.len();
        let login = Self {
            auth: reader.value(&keys::BROKER_AUTH),
            username: reader.value(&keys::BROKER_USERNAME),
            secret: login_secret(reader),
        };
        (reader.problems.len() == before).then_some(login)
    }

    /// Whether the client certificate says who logs in: as `auth` has it, or by itself where there is one, and
    /// nobody named a user or a password.
    fn by_certificate(
        &self,
        reader: &mut Reader<'_>,
        urls: &[BrokerUrl],
        certificate: bool,
    ) -> Option<bool> {
        let named = self.username.is_some()
            || self.secret.is_some()
            || urls
                .iter()
                .any(|url| url.username.is_some() || url.password.is_some());
        let key = &keys::BROKER_AUTH;
        let wrong = match self.auth {
            None => {
                let by_certificate = certificate && !named;
                let auth = match by_certificate {
                    true => BrokerAuth::External,
                    false => BrokerAuth::Plain,
                };
                reader.note(key.name, key.kind.show(&auth), Source::Default);
                return Some(by_certificate);
            }
            Some(BrokerAuth::Plain) => return Some(false),
            Some(BrokerAuth::External) if !certificate => {
                "logs in with the client certificate: set [broker.tls] cert_file and key_file, and write amqps://"
            }
            Some(BrokerAuth::External) if named => {
                "lets the client certificate say who logs in: leave user name and password out, in the URL too, and token_file"
            }
            Some(BrokerAuth::External) => return Some(true),
        };
        let source = reader.source_of(key.name);
        reader.refuse(&source, key.name, wrong);
        None
    }

    /// Whether nothing but the token says who logs in, where there is one.
    fn check_token(&self, reader: &mut Reader<'_>, urls: &[BrokerUrl]) -> Option<()> {
        if let Some(LoginSecret::Token(_)) = self.secret
            && urls.iter().any(|url| url.password.is_some())
        {
            let name = keys::BROKER_TOKEN_FILE.name;
            let source = reader.source_of(name);
            reader.refuse(
                &source,
                name,
                "takes the place of a password, and the broker's URL has one: keep one of the two",
            );
            return None;
        }
        Some(())
    }

    fn endpoint(
        &self,
        url: BrokerUrl,
        vhost: Option<&str>,
        by_certificate: bool,
    ) -> BrokerEndpoint {
        let mut login = match (by_certificate, &self.secret) {
            (true, _) => BrokerLogin::Certificate,
            (false, Some(LoginSecret::Token(file))) => BrokerLogin::Token {
                username: self.username.clone().or_else(|| url.username.clone()),
                file: file.clone(),
            },
            (false, _) => url.password_login(),
        };
        if let BrokerLogin::Password { username, password } = &mut login {
            if let Some(said) = &self.username {
                username.clone_from(said);
            }
            if let Some(LoginSecret::Password(said)) = &self.secret {
                *password = said.clone();
            }
        }
        let mut endpoint = url.with_login(login);
        if let Some(vhost) = vhost {
            vhost.clone_into(&mut endpoint.vhost);
        }
        endpoint
    }
}

fn shown(endpoints: &[BrokerEndpoint], several: bool) -> String {
    let urls: Vec<_> = endpoints
        .iter()
        .map(|endpoint| quoted(&endpoint.to_string()))
        .collect();
    if several {
        format!("[{}]", urls.join(", "))
    } else {
        urls.join(", ")
    }
}

fn broker_secrets(reader: &mut Reader<'_>) -> Option<(Vec<SecretString>, keys::KeyName, Source)> {
    let url = keys::BROKER_URL.name;
    let urls = keys::BROKER_URLS.name;
    let before = reader.problems.len();
    match reader.one_of(&[url, urls, keys::BROKER_URL_FILE.name]) {
        Some((name, given, source)) if name == url => reader
            .parsed(&keys::BROKER_URL, &given, &source)
            .map(|(secret, source)| (vec![secret], url, source)),
        Some((name, given, source)) if name == urls => reader
            .parsed(&keys::BROKER_URLS, &given, &source)
            .map(|(secrets, source)| (secrets, urls, source)),
        Some((_, given, source)) => reader
            .secret_file(&keys::BROKER_URL_FILE, &given, &source)
            .map(|(secret, path)| (vec![secret], url, Source::SecretFile(path))),
        None if reader.problems.len() > before => None,
        None => reader
            .credential("broker-url")
            .map(|(secret, _)| (vec![secret], url, Source::Credential("broker-url"))),
    }
}

/// Password or token, from a file of its own.
fn login_secret(reader: &mut Reader<'_>) -> Option<LoginSecret> {
    let key = &keys::BROKER_PASSWORD_FILE;
    let token = &keys::BROKER_TOKEN_FILE;
    let before = reader.problems.len();
    let (password, path, source) = match reader.one_of(&[key.name, token.name]) {
        Some((name, given, source)) if name == token.name => {
            let path = reader.secret_path(token, &given, &source)?;
            return token_file(reader, path, source).map(LoginSecret::Token);
        }
        Some((_, given, source)) => {
            let (password, path) = reader.secret_file(key, &given, &source)?;
            (password, path, source)
        }
        None if reader.problems.len() > before => return None,
        None => {
            let (password, path) = reader.credential("broker-password")?;
            (password, path, Source::Credential("broker-password"))
        }
    };
    reader.note(key.name, key.kind.show(&path), source);
    Some(LoginSecret::Password(password))
}

fn token_file(reader: &mut Reader<'_>, path: PathBuf, source: Source) -> Option<TokenFile> {
    let key = &keys::BROKER_TOKEN_FILE;
    match TokenFile::new(path) {
        Ok(file) => {
            reader.warn_of_readers(key.name, file.path());
            if file.has_expired() {
                // Not refused: a relay that runs reads the new one as soon as it is there.
                reader.warnings.push(format!(
                    "{}: the token has expired: the broker will refuse it",
                    key.name
                ));
            }
            let shown = key.kind.show(&file.path().to_owned());
            reader.note(key.name, shown, source);
            Some(file)
        }
        Err(fault) => {
            reader.refuse(&source, key.name, fault.to_string());
            None
        }
    }
}
