//! `[tracing]`: whether spans are sent, where, and what is said in them.

use postrider_tls::Tls;
use url::{Host, Url};

use super::authority::{is_loopback, percent_decode};
use super::keys::{self, KeyName};
use super::reader::Reader;
use super::source::Source;
use super::tls::{self, Said};
use super::{CollectorConfig, TlsMode, TracingConfig};

const FORM: &str =
    "write https://HOST:PORT, or http:// without TLS; 4317 is the usual port of OTLP by gRPC";
/// Of OTLP by gRPC.
const PORT: u16 = 4317;

pub(crate) fn tracing(reader: &mut Reader<'_>) -> Option<TracingConfig> {
    let key = &keys::TRACING_ENDPOINT;
    let endpoint = reader.value(key);
    let service_name = reader.value(&keys::TRACING_SERVICE_NAME);
    let resource = resource(reader);
    let sample_ratio = reader.value(&keys::TRACING_SAMPLE_RATIO);
    let timeout = reader.value(&keys::TRACING_TIMEOUT);
    let max_queued_spans = reader.value(&keys::TRACING_MAX_QUEUED_SPANS);
    let said = tls::COLLECTOR.read(reader);
    let collector = match endpoint {
        None => None,
        Some(endpoint) => {
            let source = reader.source_of(key.name);
            Some(collector(reader, &endpoint, &source, said?)?)
        }
    };
    Some(TracingConfig {
        collector,
        service_name: service_name?,
        resource: resource?,
        sample_ratio: sample_ratio?,
        timeout: timeout?,
        max_queued_spans: max_queued_spans?,
    })
}

fn collector(
    reader: &mut Reader<'_>,
    endpoint: &str,
    source: &Source,
    said: Said,
) -> Option<CollectorConfig> {
    let name = keys::TRACING_ENDPOINT.name;
    if !cfg!(feature = "opentelemetry") {
        reader.refuse(
            source,
            name,
            "asks for what this program was built without (the cargo feature `opentelemetry`): leave it out, or take a release",
        );
        return None;
    }
    match parse(endpoint) {
        Ok((encrypted, host, port)) => {
            let tls = collector_tls(reader, encrypted, &host, source, said)?;
            Some(CollectorConfig { host, port, tls })
        }
        Err(message) => {
            reader.refuse(source, name, message);
            None
        }
    }
}

/// Whether by TLS, host and port. The message does not quote the URL: a password may have been put into it.
fn parse(text: &str) -> Result<(bool, String, u16), String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL ({error}): {FORM}"))?;
    let encrypted = match url.scheme() {
        "https" => true,
        "http" => false,
        _ => return Err(format!("is neither https:// nor http://: {FORM}")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!(
            "holds a user name or a password, and there is no use for them: {FORM}"
        ));
    }
    if !["", "/"].contains(&url.path()) || url.query().is_some() || url.fragment().is_some() {
        return Err(format!(
            "has something behind the port, as endpoints of OTLP by HTTP do; this is OTLP by gRPC: {FORM}"
        ));
    }
    let host = match url.host() {
        Some(Host::Ipv6(address)) => address.to_string(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Domain(host)) if !host.is_empty() => host.to_owned(),
        Some(Host::Domain(_)) | None => return Err(format!("names no host: {FORM}")),
    };
    // The library leaves out the port that its scheme has by default.
    let port = match url.port() {
        Some(port) => port,
        None if text.trim_end_matches('/').ends_with(":443") => 443,
        None if text.trim_end_matches('/').ends_with(":80") => 80,
        None => PORT,
    };
    Ok((encrypted, host, port))
}

/// TLS or not: the URL decides, and the section must not say otherwise.
fn collector_tls(
    reader: &mut Reader<'_>,
    encrypted: bool,
    host: &str,
    source: &Source,
    said: Said,
) -> Option<Option<Tls>> {
    let section = &tls::COLLECTOR;
    let mode = section.mode.name;
    let beside = section.said_beside_mode(reader);
    let (name, place, message): (KeyName, Source, String) = match (encrypted, said.mode, beside) {
        (true, Some(TlsMode::On(mode)), _) => return section.enabled(reader, said, mode).map(Some),
        (true, None, _) => {
            section.note_default(reader, tls::VERIFY_FULL);
            let TlsMode::On(mode) = tls::VERIFY_FULL else {
                return None;
            };
            return section.enabled(reader, said, mode).map(Some);
        }
        (true, Some(TlsMode::Disable), _) => (
            mode,
            reader.source_of(mode),
            format!(
                "disables TLS, and the collector's URL ({source}) says https://: keep one of the two"
            ),
        ),
        (false, Some(TlsMode::On(_)), _) => (
            mode,
            reader.source_of(mode),
            format!(
                "asks for TLS, and the collector's URL ({source}) says http://, which is plain text: write https://"
            ),
        ),
        (false, _, Some((name, place))) => (
            name,
            place,
            format!(
                "has no effect: the collector's URL ({source}) says http://, which is plain text; write https://"
            ),
        ),
        (false, Some(TlsMode::Disable), None) => return Some(None),
        (false, None, None) if is_loopback(host) => {
            section.note_default(reader, TlsMode::Disable);
            return Some(None);
        }
        (false, None, None) => (
            keys::TRACING_ENDPOINT.name,
            source.clone(),
            format!(
                "is plain text (http://) to another machine: write https://, or, where everybody on the way may read exchanges, \
                 routing keys and ids, set {mode} = \"disable\" (or {}=disable)",
                mode.variable()
            ),
        ),
    };
    reader.refuse(&place, name, message);
    None
}

/// `key=value,key=value`, as OpenTelemetry writes it in `OTEL_RESOURCE_ATTRIBUTES`.
fn resource(reader: &mut Reader<'_>) -> Option<Vec<(String, String)>> {
    let key = &keys::TRACING_RESOURCE_ATTRIBUTES;
    let before = reader.problems.len();
    let Some(text) = reader.value(key) else {
        return (reader.problems.len() == before).then(Vec::new);
    };
    let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
    let attributes = pairs.map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let name = percent_decode(name.trim())?;
        (!name.is_empty()).then_some((name, percent_decode(value.trim())?))
    });
    let attributes: Option<Vec<_>> = attributes.collect();
    if attributes.is_none() {
        let source = reader.source_of(key.name);
        reader.refuse(
            &source,
            key.name,
            "is no list of attributes: write NAME=VALUE,NAME=VALUE, with `,`, `=` and `%` within them as %2C, %3D and %25",
        );
    }
    attributes
}

#[cfg(all(test, feature = "opentelemetry"))]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_the_one_of_otlp_unless_the_url_has_another() {
        for (url, port) in [
            ("http://localhost", 4317),
            ("https://collector/", 4317),
            ("https://collector:443", 443),
            ("http://collector:80/", 80),
            ("http://[::1]:5000", 5000),
        ] {
            assert_eq!(parse(url).unwrap().2, port, "{url}");
        }
    }
}
