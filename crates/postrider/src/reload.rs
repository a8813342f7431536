//! SIGHUP: reads the configuration again, takes over what a running daemon can, and names what it cannot.
//!
//! All or nothing: a configuration with which `run` would not start is refused as a whole, and what was in force stays.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use postrider_relay::Reloader;
use prometheus::{Gauge, IntGauge, Opts, Registry};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::certificates::Certificates;
use crate::config::{Changes, Effective, Inputs, Loaded};
use crate::log;
use crate::signals::Hangups;
use crate::{systemd, wiring};

/// How the last reload went.
pub(crate) struct LastReload {
    successful: IntGauge,
    succeeded_at: Gauge,
}

impl LastReload {
    /// The daemon starts with a configuration that is right.
    ///
    /// # Errors
    /// When the metrics are registered already.
    pub(crate) fn register(registry: &Registry, outbox: &str) -> Result<Self, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("outbox", outbox);
        let successful = IntGauge::with_opts(opts(
            "postrider_config_last_reload_successful",
            "0 when the last SIGHUP found a configuration that is not valid and was refused: then the one before is in force, and a restart would fail. 1 otherwise.",
        ))?;
        let succeeded_at = Gauge::with_opts(opts(
            "postrider_config_last_reload_success_timestamp_seconds",
            "When the configuration was last read and found valid, at the start or by SIGHUP, in seconds since the epoch.",
        ))?;
        registry.register(Box::new(successful.clone()))?;
        registry.register(Box::new(succeeded_at.clone()))?;
        let last = Self {
            successful,
            succeeded_at,
        };
        last.succeeded();
        Ok(last)
    }

    fn succeeded(&self) {
        self.successful.set(1);
        if let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) {
            self.succeeded_at.set(now.as_secs_f64());
        }
    }
}

/// What a reload reads, compares and changes.
pub(crate) struct Reload {
    /// The file that the command line names.
    pub(crate) file: Option<PathBuf>,
    /// What the daemon started with.
    pub(crate) start: Effective,
    pub(crate) relay: Reloader,
    pub(crate) level: log::Level,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) last: LastReload,
}

impl Reload {
    /// Reloads at every signal, until `stop`.
    pub(crate) async fn keep(self, mut hangups: Hangups, stop: CancellationToken) {
        let mut running = self.start.clone();
        while hangups.next(&stop).await.is_some() {
            systemd::reloading();
            // Files are read: on a file system that hangs, so does this task, and the relay goes on.
            let read = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                read = tokio::task::spawn_blocking(read(self.file.clone(), &self.certificates)) => read,
            };
            // It fails only by a bug, which the panic has told.
            if let Ok(read) = read {
                match read {
                    Ok(now) => running = self.take_over(running, now),
                    Err(problems) => self.refuse(&problems),
                }
            }
            systemd::ready();
        }
    }

    fn take_over(&self, running: Effective, now: Effective) -> Effective {
        let changes = Changes::between(&self.start, &running, &now);
        if let Err(refused) = self.level.set(&now.config.log.level) {
            self.refuse(&format!("{refused:#}"));
            return running;
        }
        self.relay.apply(wiring::reloadable(&now.config));
        self.last.succeeded();
        info!(
            event = "reloaded",
            changed = changes.reloaded.join(", "),
            "{}",
            if changes.reloaded.is_empty() {
                "the configuration was read again; nothing in it takes effect that was not in force before"
            } else {
                "the configuration was read again, and what changed is in force"
            }
        );
        if !changes.need_restart.is_empty() {
            warn!(
                event = "reload_needs_restart",
                keys = changes.need_restart.join(", "),
                "the configuration says otherwise for these, but only a restart puts that in force"
            );
        }
        now
    }

    fn refuse(&self, problems: &str) {
        self.last.successful.set(0);
        error!(
            event = "reload_failed",
            error = problems,
            "the configuration is not valid, and the one before stays in force; a restart would fail: see `postrider check-config`"
        );
    }
}

/// Reads the configuration and the certificates; the error is all that is wrong, in one line.
fn read(
    file: Option<PathBuf>,
    certificates: &Arc<Certificates>,
) -> impl FnOnce() -> Result<Effective, String> + Send + 'static {
    let certificates = Arc::clone(certificates);
    move || {
        let read = Loaded::from(&Inputs::of_this_process(file)).and_then(|mut loaded| {
            let warnings = std::mem::take(&mut loaded.warnings);
            let effective = loaded.effective()?;
            for warning in warnings {
                warn!(event = "configuration", "{warning}");
            }
            Ok(effective)
        });
        let effective = read.map_err(|error| {
            let text = error.to_string();
            let lines: Vec<_> = text.lines().map(str::trim).collect();
            lines.join("; ")
        })?;
        certificates.reload();
        Ok(effective)
    }
}
