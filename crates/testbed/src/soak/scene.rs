//! All that takes part, and who may lay hands on what.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex as SyncMutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::sync::{Mutex, MutexGuard, RwLock};

use super::{
    fault::{Fault, RELAYS, Resource},
    kept,
    relay::Relay,
    screen::Screen,
    settings::Settings,
    stage::Stage,
    traffic::Traffic,
};

/// How often the relays are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// The run's cast. Shared by the tasks that make and lift faults.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) stage: Stage,
    pub(crate) traffic: Traffic,
    pub(crate) screen: Screen,
    relays: Vec<Mutex<Relay>>,
    /// The plan keeps faults on one thing apart by an estimate of how long servers take to come up. These hold where
    /// the estimate did not.
    resources: SyncMutex<HashMap<Resource, Arc<Mutex<()>>>>,
    /// Written by who takes the server down, read by who needs it.
    pub(crate) broker: RwLock<()>,
    pub(crate) database: RwLock<()>,
    /// Faults that are over: what it was, from when to when.
    suffered: SyncMutex<Vec<(Fault, Instant, Instant)>>,
    /// What must not happen.
    problems: SyncMutex<Vec<String>>,
}

impl Scene {
    /// Opens the stage, migrates, subscribes, and starts the relays.
    pub(crate) async fn open(settings: &Settings) -> Result<Self> {
        let stage = Stage::open().await?;
        let mut relays = Vec::new();
        for number in 1..=RELAYS {
            relays.push(Relay::new(number, stage.relay(number, &settings.binary)?));
        }
        if let Some(first) = relays.first() {
            first.command(&["migrate"]).await?;
        }
        kept::install(&stage.database).await?;
        for relay in &mut relays {
            relay.start().await?;
        }
        Ok(Self {
            traffic: Traffic::subscribe(&stage).await?,
            stage,
            screen: Screen::new(),
            relays: relays.into_iter().map(Mutex::new).collect(),
            resources: SyncMutex::default(),
            broker: RwLock::default(),
            database: RwLock::default(),
            suffered: SyncMutex::default(),
            problems: SyncMutex::default(),
        })
    }

    /// A relay, for oneself; relays count from 1.
    pub(crate) async fn relay(&self, number: u64) -> Result<MutexGuard<'_, Relay>> {
        let relay = usize::try_from(number - 1)
            .ok()
            .and_then(|index| self.relays.get(index))
            .with_context(|| format!("there is no relay {number}"))?;
        Ok(relay.lock().await)
    }

    /// The lock of one resource.
    pub(crate) fn resource(&self, resource: Resource) -> Arc<Mutex<()>> {
        let mut resources = self.resources.lock().unwrap();
        let lock = resources.entry(resource).or_default();
        Arc::clone(lock)
    }

    pub(crate) fn note_suffered(&self, fault: Fault, from: Instant) {
        self.suffered
            .lock()
            .unwrap()
            .push((fault, from, Instant::now()));
    }

    pub(crate) fn suffered(&self) -> Vec<(Fault, Instant, Instant)> {
        self.suffered.lock().unwrap().clone()
    }

    /// Something that must not happen: the run goes on, and fails at its end.
    pub(crate) fn problem(&self, text: String) {
        self.screen.event(&format!("PROBLEM: {text}"));
        self.problems.lock().unwrap().push(text);
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        self.problems.lock().unwrap().clone()
    }

    /// Watches for relays that end by themselves, for ever; starts them again, as a service manager would.
    pub(crate) async fn watch_relays(&self) -> Infallible {
        loop {
            for (relay, number) in self.relays.iter().zip(1_u64..) {
                // Whoever holds it is about to end it, or has.
                let Ok(mut relay) = relay.try_lock() else {
                    continue;
                };
                if relay.has_ended() {
                    relay.retire();
                    let last = relay.log().last().cloned().unwrap_or_default();
                    self.problem(format!("relay {number} ended by itself: {last}"));
                    if let Err(error) = relay.start().await {
                        self.problem(format!("relay {number} did not start: {error:#}"));
                    }
                }
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }
}
