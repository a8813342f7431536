//! Certificates, and the token for the broker, while the daemon runs: read again when their files change, and when
//! they expire.

use std::sync::Arc;
use std::time::Duration;

use postrider_rabbitmq::TokenFile;
use postrider_tls::Tls;
use prometheus::{GaugeVec, Opts, Registry};
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// How often the files are looked at, beside each connection: a renewal that went wrong shall show while the open
/// connections still stand, and not in the next outage.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// The TLS of the daemon, of none to all of its peers, and the token that logs in to the broker.
pub(crate) struct Certificates {
    used: Vec<Tls>,
    expiry: GaugeVec,
    token: Option<TokenFile>,
    token_expiry: GaugeVec,
}

impl Certificates {
    /// What the configuration has, with its gauges.
    ///
    /// # Errors
    /// When a gauge is registered already.
    pub(crate) fn register(
        registry: &Registry,
        config: &Config,
    ) -> Result<Self, prometheus::Error> {
        let expiry = GaugeVec::new(
            Opts::new(
                "postrider_certificate_expiry_timestamp_seconds",
                "When the client certificate shown to the peer (database, broker, collector) expires, or one behind it in cert_file if that is earlier, in seconds since the epoch. No series where none is configured.",
            )
            .const_label("outbox", &config.relay.outbox),
            &["peer"],
        )?;
        registry.register(Box::new(expiry.clone()))?;
        // A vector without labels: where there is no token there is no series.
        let token_expiry = GaugeVec::new(
            Opts::new(
                "postrider_token_expiry_timestamp_seconds",
                "When the token in [broker] token_file expires, as it says itself, in seconds since the epoch. No series where none is configured, or it does not say.",
            )
            .const_label("outbox", &config.relay.outbox),
            &[],
        )?;
        registry.register(Box::new(token_expiry.clone()))?;
        let collector = config.tracing.collector.as_ref();
        let used = [
            config.database.tls.as_ref(),
            config.broker.tls.as_ref(),
            collector.and_then(|collector| collector.tls.as_ref()),
        ];
        let certificates = Self {
            used: used.into_iter().flatten().cloned().collect(),
            expiry,
            token: config.broker.token_file().cloned(),
            token_expiry,
        };
        certificates.show();
        Ok(certificates)
    }

    /// Looks at the files every few seconds until `stop`. The log says what comes of it.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        if self.used.is_empty() && self.token.is_none() {
            return;
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            let this = Arc::clone(&self);
            // It fails only while the runtime shuts down.
            let _ = tokio::task::spawn_blocking(move || this.look()).await;
        }
    }

    /// Reads all of them again, changed or not. The log says what comes of it. Blocks on the file system.
    pub(crate) fn reload(&self) {
        for tls in &self.used {
            // What is wrong with them is in the log.
            let _ = tls.reload();
        }
        self.look_at_token();
        self.show();
    }

    fn look(&self) {
        for tls in &self.used {
            // What is wrong with them is in the log.
            let _ = tls.look();
        }
        self.look_at_token();
        self.show();
    }

    fn look_at_token(&self) {
        if let Some(token) = &self.token {
            token.look();
        }
    }

    fn show(&self) {
        match self.token.as_ref().and_then(TokenFile::expires) {
            Some(expires) => self
                .token_expiry
                .with_label_values::<&str>(&[])
                .set(expires as f64),
            None => self.token_expiry.reset(),
        }
        for tls in &self.used {
            if let Some(expires) = tls.client_certificate_expires() {
                let peer = tls.settings().peer.as_str();
                self.expiry.with_label_values(&[peer]).set(expires as f64);
            }
        }
    }
}
