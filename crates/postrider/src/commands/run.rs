//! `run`: the daemon.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use postrider_core::Backoff;
use postrider_postgres::{Database, ErrorKind};
use postrider_relay::{Metrics, Progress, Relay, RelayError, Settings};
use prometheus::process_collector::ProcessCollector;
use prometheus::{IntGauge, Opts, Registry};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::certificates::Certificates;
use crate::cli;
use crate::config::{Config, Effective};
use crate::http::{self, Admin};
use crate::reload::{LastReload, Reload};
use crate::signals::{Hangups, Signals};
use crate::traces::Traces;
use crate::{log, systemd, wiring};

/// How long `run --migrate` waits for another migration that is under way.
const MIGRATION_WAIT: Duration = Duration::from_secs(60);
/// How long open admin requests may keep a stopping daemon.
const ADMIN_GRACE: Duration = Duration::from_secs(1);
/// How often a daemon that waits for the database says that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// Relays until a signal stops it.
///
/// # Errors
/// When it cannot start: the admin port is taken, the schema is missing or not the one this program
/// needs, the role lacks rights. A peer that is away is no error, it is waited for.
///
/// `file` is what the command line names: it is read again at SIGHUP.
pub(crate) async fn run(
    effective: Effective,
    file: Option<PathBuf>,
    warnings: &[String],
    migrate: bool,
) -> anyhow::Result<()> {
    let config = effective.config.clone();
    let relay = &config.relay;
    let level = log::start(
        config.log.format,
        &config.log.level,
        &relay.name,
        &relay.outbox,
    )?;
    let signals = Signals::catch().context("cannot catch SIGTERM and SIGINT")?;
    let hangups = Hangups::catch().context("cannot catch SIGHUP")?;
    let stop = CancellationToken::new();
    let obey = AbortOnDrop(tokio::spawn(signals.obey(stop.clone())));
    for warning in warnings {
        tracing::warn!(event = "configuration", "{warning}");
    }
    let settings = wiring::relay(&config);
    info!(
        event = "starting",
        version = cli::VERSION,
        relay = relay.name,
        outbox = relay.outbox,
        database = config.database.shown,
        broker = config.broker.shown(),
        workers = settings.workers,
        database_connections = wiring::database_connections(&config),
        "starting"
    );

    let registry = Registry::new();
    let metrics = Arc::new(register(&registry, &config).context("cannot register the metrics")?);
    let certificates = Certificates::register(&registry, &config)
        .map(Arc::new)
        .context("cannot register the metrics")?;
    let last_reload =
        LastReload::register(&registry, &relay.outbox).context("cannot register the metrics")?;
    let traces = Traces::start(&registry, &config)?;
    let progress = Arc::new(Progress::new(
        settings.workers,
        settings.stuck_after(),
        Arc::clone(&metrics),
        Instant::now(),
    ));
    let services_stop = CancellationToken::new();
    let admin = match config.http.listen {
        None => None,
        Some(address) => {
            let listener = http::bind(address).await.with_context(|| {
                format!("cannot listen on {address}: set [http] listen (or POSTRIDER_HTTP_LISTEN) to a free address, or to \"off\"")
            })?;
            info!(event = "listening", address = %listener.local_addr()?, "metrics, livez and readyz are served");
            let admin = Admin {
                registry: registry.clone(),
                progress: Arc::clone(&progress),
            };
            Some(AbortOnDrop(tokio::spawn(http::serve(
                listener,
                admin,
                services_stop.clone(),
            ))))
        }
    };
    systemd::ready();
    let notifier = AbortOnDrop(tokio::spawn(systemd::keep_notified(
        Arc::clone(&progress),
        services_stop.clone(),
    )));

    let database = wiring::database_for_relay(&config)?;
    let broker = wiring::broker(&config);
    let relay = Relay::new(
        Settings {
            observer: traces.observer(),
            ..settings
        },
        database.clone(),
        broker,
        metrics,
        Arc::clone(&progress),
    );
    let reload = Reload {
        file,
        start: effective,
        relay: relay.reloader(),
        level,
        certificates: Arc::clone(&certificates),
        last: last_reload,
    };
    let reload = AbortOnDrop(tokio::spawn(reload.keep(hangups, stop.clone())));
    let certificates = AbortOnDrop(tokio::spawn(certificates.keep(services_stop.clone())));
    let prepared = prepare(&database, &progress, migrate);
    let result = relay.run(prepared, stop).await;

    // Last, for what was delivered last.
    traces.stop().await?;
    services_stop.cancel();
    notifier.join().await?;
    certificates.join().await?;
    drop(reload);
    if let Some(admin) = admin {
        match tokio::time::timeout(ADMIN_GRACE, admin.join()).await {
            Ok(served) => served?,
            Err(_) => debug!("requests to the admin port were cut off"),
        }
    }
    drop(obey);
    match result {
        Ok(()) => {}
        // Without the relay around it: its text has everything.
        Err(RelayError::Database(error)) => return Err(error.into()),
        Err(error @ RelayError::TaskFailed { .. }) => return Err(error.into()),
    }
    info!(event = "stopped", "stopped");
    Ok(())
}

/// Waits for the database, as long as it takes, and sees whether it holds the outbox this program
/// needs.
async fn prepare(
    database: &Database,
    progress: &Progress,
    migrate: bool,
) -> Result<(), postrider_postgres::Error> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        let prepared = async {
            let server = database.check_server().await?;
            if migrate {
                for migration in database.migrate(MIGRATION_WAIT).await? {
                    info!(
                        event = "migrated",
                        version = migration.version,
                        name = migration.name,
                        "applied a migration"
                    );
                }
            }
            database.check_schema().await?;
            database.check_rights().await?;
            Ok::<_, postrider_postgres::Error>(server)
        };
        match waiting_meanwhile(progress, prepared).await {
            Ok(server) => {
                progress.database_answered();
                info!(
                    event = "database_checked",
                    version = server.version,
                    database = server.database,
                    role = server.role,
                    "the database holds the outbox"
                );
                return Ok(());
            }
            Err(error) => match error.kind() {
                ErrorKind::Unavailable | ErrorKind::ReadOnly => {
                    progress.database_failed(&error);
                    let pause = tokio::time::sleep(backoff.next(rand::random()));
                    waiting_meanwhile(progress, pause).await;
                }
                ErrorKind::Schema
                | ErrorKind::Privilege
                | ErrorKind::Configuration
                | ErrorKind::Query => return Err(error),
            },
        }
    }
}

/// Tells that the daemon is alive while it waits for a database that is slow, or migrates.
async fn waiting_meanwhile<T>(progress: &Progress, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        progress.waiting(Instant::now());
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(SIGN_OF_LIFE) => {}
        }
    }
}

fn register(registry: &Registry, config: &Config) -> Result<Metrics, prometheus::Error> {
    let outbox = config.relay.outbox.as_str();
    let build = Opts::new(
        "postrider_build_info",
        "Always 1; the labels say which build of Postrider this is.",
    )
    .const_label("outbox", outbox)
    .const_label("version", env!("CARGO_PKG_VERSION"))
    .const_label("revision", env!("POSTRIDER_BUILD_REVISION"));
    let build = IntGauge::with_opts(build)?;
    build.set(1);
    registry.register(Box::new(build))?;
    registry.register(Box::new(ProcessCollector::for_self()))?;
    let max_exchanges = usize::try_from(config.metrics.max_exchanges).unwrap_or(usize::MAX);
    Metrics::register(registry, outbox, max_exchanges)
}

/// A task that ends with its owner, also when the owner returns early.
#[derive(Debug)]
pub(crate) struct AbortOnDrop<T>(pub(crate) JoinHandle<T>);

impl<T> AbortOnDrop<T> {
    pub(crate) async fn join(mut self) -> anyhow::Result<T> {
        (&mut self.0).await.context("a task of the daemon failed")
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
