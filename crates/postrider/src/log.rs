//! Log lines: text for people, flat JSON for collectors.

use std::fmt::{self, Write as _};
use std::io::IsTerminal as _;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime as Rfc3339};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::LogFormat;

/// Directives that come before the configured ones, and so give way to them.
///
/// lapin writes every returned message to the log with its payload (its `returned_messages` target,
/// at WARN), and its frames at TRACE: payloads may be secrets, so both are silent unless a directive
/// names that target itself. What its connection goes through is told by our own lines.
const QUIET: &str = "lapin=off,lapin::returned_messages=off,amq_protocol=warn,rustls=error,tokio_postgres=warn,deadpool=error,hyper=warn,h2=warn,tonic=warn,tower=warn";

/// The filter for `level`: a level or directives of `tracing_subscriber::EnvFilter`.
///
/// # Errors
/// When a directive cannot be parsed.
pub(crate) fn filter(level: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    EnvFilter::builder().parse(format!("{QUIET},{level}"))
}

/// Changes what the log leaves out.
pub(crate) struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// Leaves out from here on what `level` does.
    ///
    /// # Errors
    /// When it cannot be parsed; then nothing changes.
    pub(crate) fn set(&self, level: &str) -> anyhow::Result<()> {
        self.0.reload(filter(level)?)?;
        // What dependencies say through the `log` crate is cut off before the filter sees it.
        ::log::set_max_level(LevelFilter::current().to_string().parse()?);
        Ok(())
    }
}

/// Sends all log lines to standard error from here on.
///
/// # Errors
/// When the level cannot be parsed, or logging was started before.
pub(crate) fn start(
    format: LogFormat,
    level: &str,
    relay: &str,
    outbox: &str,
) -> anyhow::Result<Level> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => registry
            .with(lines.with_ansi(std::io::stderr().is_terminal()))
            .try_init(),
        LogFormat::Json => registry
            .with(lines.event_format(JsonLines {
                relay: relay.to_owned(),
                outbox: outbox.to_owned(),
            }))
            .try_init(),
    }
    .map_err(|error| anyhow::anyhow!("logging cannot be started: {error}"))?;
    Ok(Level(handle))
}

/// One flat object a line, so that a collector needs no rule to take it apart.
struct JsonLines {
    relay: String,
    outbox: String,
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut timestamp = String::new();
        Rfc3339.format_time(&mut Writer::new(&mut timestamp))?;
        let mut line = Map::new();
        line.insert("timestamp".to_owned(), timestamp.into());
        line.insert("level".to_owned(), event.metadata().level().as_str().into());
        line.insert("target".to_owned(), event.metadata().target().into());
        line.insert("relay".to_owned(), self.relay.as_str().into());
        line.insert("outbox".to_owned(), self.outbox.as_str().into());
        event.record(&mut Fields(&mut line));
        writeln!(writer, "{}", Value::Object(line))
    }
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn insert(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        if write!(text, "{value:?}").is_ok() {
            self.insert(field, text);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, log: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter(level).unwrap())
            .event_format(JsonLines {
                relay: "r1".to_owned(),
                outbox: "shop".to_owned(),
            })
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_json_line_is_one_flat_object_with_the_relay_and_the_outbox() {
        let text = logged("info", || {
            tracing::warn!(event = "broker_lost", retry_in_s = 1.5, error = %"re\"set", "away");
        });
        let line: Map<String, Value> = serde_json::from_str(text.trim()).unwrap();
        assert!(line.values().all(|value| !value.is_object()));
        for (key, value) in [
            ("event", Value::from("broker_lost")),
            ("relay", "r1".into()),
            ("outbox", "shop".into()),
            ("level", "WARN".into()),
            ("message", "away".into()),
            ("error", "re\"set".into()),
            ("retry_in_s", 1.5.into()),
        ] {
            assert_eq!(line.get(key), Some(&value), "{key} in {text}");
        }
    }

    #[test]
    fn returned_payloads_stay_out_of_the_log_at_every_level() {
        for level in ["warn", "debug", "trace"] {
            let text = logged(level, || {
                tracing::warn!(target: "lapin::returned_messages", payload = "secret", "returned");
                tracing::trace!(target: "lapin::channel", payload = "secret", "frame");
            });
            assert!(!text.contains("secret"), "{level}: {text}");
        }
    }
}
