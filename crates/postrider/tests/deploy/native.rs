//! The services of `docker-compose.yml`, run here with the settings that they have there.

use std::collections::BTreeMap;

use postrider_testbed::daemon::{Daemon, DaemonOptions};
use postrider_testbed::{orders, shared};
use tokio::sync::mpsc;

use crate::compose::{RELAYS, environment};
use crate::observed::DEADLINE;
use crate::program::postrider;

#[tokio::test(flavor = "multi_thread")]
async fn the_services_do_natively_what_they_do_in_containers() {
    let (database, vhost) = (shared::database().await, shared::vhost().await);
    // The same settings, with the test's servers in place of the containers.
    let here = |service: &str| -> BTreeMap<String, String> {
        let native = environment(service).into_iter().map(|(name, value)| {
            let value = match name.as_str() {
                "POSTRIDER_DATABASE_URL" | "ORDERS_DATABASE_URL" => &database.url,
                "POSTRIDER_BROKER_URL" | "ORDERS_BROKER_URL" => &vhost.url,
                _ => &value,
            };
            let value = value.clone();
            (name, value)
        });
        native.collect()
    };
    let migration = here("migrate");
    let migrated = postrider(
        &["migrate"],
        migration
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    );
    assert!(migrated.status.success(), "{migrated:?}");

    let mut relays = Vec::new();
    for relay in RELAYS {
        let mut options = DaemonOptions::new(env!("CARGO_BIN_EXE_postrider"));
        for (name, value) in here(relay) {
            // Both would take the same port of this machine: the testbed chooses.
            if name != "POSTRIDER_HTTP_LISTEN" {
                options = options.env(name, value);
            }
        }
        relays.push(Daemon::start(options).await.unwrap());
    }
    let producer = here("producer");
    let rate = producer["ORDERS_RATE"].parse().unwrap();
    let producing =
        tokio::spawn(
            async move { orders::place(&producer["ORDERS_DATABASE_URL"], rate, |_| {}).await },
        );
    let consumer = here("consumer");
    let (said, mut reports) = mpsc::unbounded_channel();
    let consuming = tokio::spawn(async move {
        orders::receive(&consumer["ORDERS_BROKER_URL"], move |line| {
            let _ = said.send(line);
        })
        .await
    });

    let arrive = async {
        loop {
            let line = reports.recv().await.unwrap();
            let received = line.strip_prefix("received ");
            if received.is_some_and(|orders| !orders.starts_with("0 ")) {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, arrive).await.unwrap();
    for relay in &relays {
        let both = |relays: f64| (relays - 2.0).abs() < f64::EPSILON;
        relay
            .wait_for_metric("postrider_relays", &[], both, DEADLINE)
            .await
            .unwrap();
    }
    producing.abort();
    consuming.abort();
}
