//! The end: all faults are lifted, everything has to arrive, and the books are compared.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use postrider_testbed::{AuditReport, Client, OrderReport};
use tokio::time::{sleep, timeout};

use super::{
    fault::{Fault, RELAYS},
    plan::REST_MS,
    scene::Scene,
    stage::CALM,
};

/// Everything has to be delivered and both relays to be ready so long after the last fault.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(300);

const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How long nothing must arrive before the consumers are believed to have all.
const QUIET: Duration = Duration::from_millis(1_000);

/// So long after its end, a fault of everything may still be felt: connections are made anew, a backlog is sent.
const AFTERMATH: Duration = Duration::from_millis(REST_MS);

/// What the run came to.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) books: AuditReport,
    /// Whether the messages of each key came in order.
    pub(crate) order: OrderReport,
    /// Rows in `messages`, `deferred`, `dead_letters`, `parked` and `blocked_keys` at the end.
    pub(crate) left: [i64; 5],
    /// Dead letters that were retried at the end, by reason.
    pub(crate) dead_letters: BTreeMap<String, i64>,
    /// From the end of the last fault until all was delivered.
    pub(crate) recovery: Duration,
    pub(crate) relay_restarts: u64,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// Warnings and errors of the relays' logs, by event and reason: which faults were felt.
    pub(crate) events: BTreeMap<String, u64>,
    /// Scheduled messages: arrived, early, without their time.
    pub(crate) scheduled: (u64, u64, u64),
    /// How many messages of routes without a fault were on their way while, at most, other routes had one, and the
    /// longest time one of them took.
    pub(crate) neighbours: (usize, Duration),
    /// The longest time any message but a scheduled one took, whatever was going on.
    pub(crate) longest: Duration,
    pub(crate) problems: Vec<String>,
}

impl Report {
    pub(crate) fn is_good(&self) -> bool {
        let (scheduled, early, untimed) = self.scheduled;
        self.books.is_clean()
            && self.books.unknown == 0
            && self.books.delivered > 0
            && self.order.is_clean()
            && self.order.delivered > 0
            && self.left == [0; 5]
            && scheduled > 0
            && early == 0
            && untimed == 0
            && self.problems.is_empty()
    }
}

/// Waits until everything is delivered and nothing is left, stops the relays, and compares the books.
pub(crate) async fn finish(scene: &Scene) -> Result<Report> {
    let lifted = Instant::now();
    scene
        .traffic
        .stop_producing()
        .await
        .context("the producers could not be stopped")?;
    let client = Client::connect(&scene.stage.database.url).await?;
    let mut dead_letters = BTreeMap::new();
    let recovered = timeout(
        RECOVERY_DEADLINE,
        recover(scene, &client, &mut dead_letters),
    )
    .await;
    match recovered {
        Ok(recovered) => recovered?,
        Err(_) => scene.problem(format!(
            "not everything was delivered within {RECOVERY_DEADLINE:?}: {}",
            state(scene, &client).await?
        )),
    }
    let recovery = lifted.elapsed();
    let mut relay_restarts = 0;
    let mut events = BTreeMap::new();
    for number in 1..=RELAYS {
        let mut relay = scene.relay(number).await?;
        relay_restarts += relay.restarts();
        if let Err(error) = relay.stop().await {
            scene.problem(format!("{error:#}"));
        }
        relay.count_events(&mut events);
    }
    // From here on nothing is published: what comes now was on its way.
    consume_all(scene).await;
    let left = rows(&client).await?;
    let audit = &scene.traffic.audit;
    let suffered = scene.suffered();
    let mut faults = BTreeMap::new();
    for (fault, ..) in &suffered {
        *faults.entry(fault.kind()).or_default() += 1;
    }
    let queues: BTreeMap<_, _> = audit
        .deliveries()
        .into_iter()
        .map(|delivery| (delivery.id, delivery.queue))
        .collect();
    let mut neighbours = (0, Duration::ZERO);
    let mut longest = Duration::ZERO;
    for (id, committed, arrived) in audit.journeys() {
        let queue = queues.get(&id).map_or("", String::as_str);
        let wait = arrived.saturating_duration_since(committed);
        if queue != super::stage::LATER {
            longest = longest.max(wait);
        }
        if CALM.contains(&queue) && !was_disturbed(&suffered, committed, arrived) {
            neighbours = (neighbours.0 + 1, neighbours.1.max(wait));
        }
    }
    Ok(Report {
        books: audit.report(),
        order: audit.order(),
        left,
        dead_letters,
        recovery,
        relay_restarts,
        faults,
        events,
        scheduled: scene.traffic.scheduled(),
        neighbours,
        longest,
        problems: scene.problems(),
    })
}

/// Whether a fault of more than one route was felt between these times.
fn was_disturbed(
    suffered: &[(Fault, Instant, Instant)],
    committed: Instant,
    arrived: Instant,
) -> bool {
    suffered.iter().any(|(fault, from, to)| {
        !fault.is_of_one_route() && *from <= arrived && committed <= *to + AFTERMATH
    })
}

/// Retries dead letters for as long as there are any, until nothing is left and both relays are ready.
async fn recover(
    scene: &Scene,
    client: &Client,
    dead_letters: &mut BTreeMap<String, i64>,
) -> Result<()> {
    loop {
        let left = rows(client).await?;
        if left[2] > 0 {
            retry(scene, client, dead_letters).await?;
        } else if left == [0; 5]
            && scene.traffic.audit.report().lost.is_empty()
            && readiness(scene).await?.is_empty()
        {
            return Ok(());
        }
        sleep(LOOK_INTERVAL).await;
    }
}

async fn retry(
    scene: &Scene,
    client: &Client,
    dead_letters: &mut BTreeMap<String, i64>,
) -> Result<()> {
    for row in client
        .query(
            "SELECT reason::text, count(*) FROM outbox.dead_letters GROUP BY reason",
            &[],
        )
        .await?
    {
        *dead_letters.entry(row.get(0)).or_default() += row.get::<_, i64>(1);
    }
    let answer = scene
        .relay(1)
        .await?
        .command(&["dead-letters", "retry", "--all"])
        .await?;
    scene
        .screen
        .event(&format!("dead-letters retry --all: {}", answer.trim()));
    Ok(())
}

/// What the relays that are not ready say about that.
async fn readiness(scene: &Scene) -> Result<String> {
    let mut unready = String::new();
    for number in 1..=RELAYS {
        if let Some(why) = scene.relay(number).await?.unready().await {
            unready.push_str(&format!(" relay {number}: {why}"));
        }
    }
    Ok(unready)
}

async fn state(scene: &Scene, client: &Client) -> Result<String> {
    Ok(format!(
        "messages, deferred, dead letters, parked, blocked keys: {:?}; in queues: {:?};{} {}",
        rows(client).await?,
        scene.stage.queued().await,
        readiness(scene).await?,
        scene.traffic.audit.report()
    ))
}

async fn rows(client: &Client) -> Result<[i64; 5]> {
    let row = client
        .query_one(
            "SELECT (SELECT count(*) FROM outbox.messages), (SELECT count(*) FROM outbox.deferred), \
             (SELECT count(*) FROM outbox.dead_letters), (SELECT count(*) FROM outbox.parked), \
             (SELECT count(*) FROM outbox.blocked_keys)",
            &[],
        )
        .await
        .context("could not count what is left")?;
    Ok([0, 1, 2, 3, 4].map(|column| row.get(column)))
}

/// Waits until the queues are empty and nothing has arrived for a moment.
async fn consume_all(scene: &Scene) {
    let audit = &scene.traffic.audit;
    let end = Instant::now() + RECOVERY_DEADLINE;
    loop {
        let before = audit.delivery_count();
        let queued = scene.stage.queued().await;
        sleep(QUIET).await;
        match queued {
            Ok(0) if audit.delivery_count() == before => return,
            queued if Instant::now() >= end => {
                scene.problem(format!("the queues were not emptied: {queued:?}"));
                return;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_counts_as_a_neighbour_unless_a_fault_of_everything_or_its_aftermath_was_under_way()
    {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let storm = [(Fault::BrokerKilled, at(100), at(110))];
        assert!(!was_disturbed(&storm, at(90), at(99)));
        assert!(was_disturbed(&storm, at(90), at(101)));
        assert!(was_disturbed(&storm, at(105), at(200)));
        assert!(was_disturbed(&storm, at(115), at(116)));
        assert!(!was_disturbed(&storm, at(111) + AFTERMATH, at(200)));
        let lull = [(Fault::QueueSuspended { queue: 1 }, at(100), at(110))];
        assert!(!was_disturbed(&lull, at(105), at(108)));
    }
}
