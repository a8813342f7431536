//! Where spans go, and what is said of this relay in all of them.

use std::time::Duration;

use postrider_tls::Tls;

/// The receiver of spans: a collector, or whatever else speaks OTLP by gRPC.
#[derive(Debug, Clone)]
pub struct Collector {
    /// Host name or IP address, an IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// `None` for plain text.
    pub tls: Option<Tls>,
}

impl Collector {
    /// As it stands in a URL.
    pub(crate) fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        }
    }
}

/// The settings of the spans of one relay, already validated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where they go.
    pub collector: Collector,
    /// The resource attribute `service.name`.
    pub service_name: String,
    /// `service.version`.
    pub service_version: String,
    /// `service.instance.id`: the name of the relay.
    pub instance: String,
    /// `postrider.outbox`: the label of its metrics.
    pub outbox: String,
    /// Further attributes of the resource; they give way to those above.
    pub resource: Vec<(String, String)>,
    /// The broker, where there is only one to connect to: `server.address` and `server.port`.
    pub broker: Option<(String, u16)>,
    /// Which part of the messages whose rows carry no trace context get a span, 0 to 1. Where there is one, it decides.
    pub sample_ratio: f64,
    /// How long the collector may take for one request, with connecting if need be.
    pub timeout: Duration,
    /// How many spans may wait to be sent.
    pub max_queued_spans: usize,
}
