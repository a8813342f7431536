//! The scripted broker, and the publishers it hands out.
//!
//! What it takes responsibility for it writes to a ledger in the test's database, in a transaction that
//! is over before anybody hears of a confirm. So the database itself can tell, in the transaction that
//! removes a row, whether somebody has taken its message (see `outbox.rs`).

mod late;
mod publisher;
mod script;
mod view;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use postrider_core::{Message, Reason};
use postrider_relay::{Broker, Progress, Publish};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::fate::{Fate, Word};
use publisher::ScriptedPublisher;
use script::{Drawn, Script, Waiting};
use view::View;

/// An exchange and a routing key.
pub(crate) type Route = (String, String);

/// A batch that a publisher was given.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) generation: u64,
    /// On a connection of its own.
    pub(crate) isolated: bool,
    /// Whether the broker had answered on this connection before.
    pub(crate) proven: bool,
    pub(crate) ids: Vec<Uuid>,
}

/// A point at which publishes stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Before anything is taken.
    Untaken,
    /// After it was taken, before anybody is told.
    Taken,
    /// Before anything is taken, and only on connections for suspects.
    Isolated,
}

/// A broker that does what it is told. Clones are the same broker.
#[derive(Debug, Clone)]
pub(crate) struct Scripted(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    link: watch::Sender<View>,
    hold: watch::Sender<Option<Hold>>,
    /// How many publishes have come to the point where they are held.
    held: watch::Sender<usize>,
    /// What was said of a publish that was not confirmed in time: whether it is taken.
    words: watch::Sender<HashMap<u64, bool>>,
    script: Mutex<Script>,
    tickets: Mutex<u64>,
    lates: AtomicUsize,
    /// When the relay first asked which messages may be confirmed late.
    asked_at: Mutex<Option<SystemTime>>,
    ledger: tokio_postgres::Client,
}

impl Scripted {
    /// A broker that is there, takes everything, and writes what it takes by `ledger`.
    pub(crate) fn new(ledger: tokio_postgres::Client) -> Self {
        Self(Arc::new(Shared {
            link: watch::Sender::new(View {
                away: false,
                alarms: 0,
                generation: 1,
                proven: Arc::default(),
            }),
            hold: watch::Sender::new(None),
            held: watch::Sender::new(0),
            words: watch::Sender::default(),
            script: Mutex::default(),
            tickets: Mutex::default(),
            lates: AtomicUsize::new(0),
            asked_at: Mutex::default(),
            ledger,
        }))
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.script.lock().unwrap()
    }

    /// The message meets these fates, one a publish, and is confirmed after them.
    pub(crate) fn fates(&self, id: Uuid, fates: impl IntoIterator<Item = Fate>) {
        self.script().fates.entry(id).or_default().extend(fates);
    }

    /// After its other fates the message always meets this one.
    pub(crate) fn always(&self, id: Uuid, fate: Fate) {
        self.script().always.insert(id, fate);
    }

    /// The message ends every connection that it is sent on.
    pub(crate) fn culprit(&self, id: Uuid) {
        self.script().culprits.insert(id);
    }

    /// No message ends connections any more.
    pub(crate) fn acquit_all(&self) {
        self.script().culprits.clear();
    }

    /// Every message to the exchange is refused for this reason; for none any more.
    pub(crate) fn refuse(&self, exchange: &str, reason: Option<Reason>) {
        let refusing = &mut self.script().refusing;
        match reason {
            Some(reason) => refusing.insert(exchange.to_owned(), reason),
            None => refusing.remove(exchange),
        };
    }

    /// The queue behind the route is full, or not.
    pub(crate) fn fill(&self, route: &Route, full: bool) {
        let routes = &mut self.script().full;
        if full {
            routes.insert(route.clone());
        } else {
            routes.remove(route);
        }
    }

    /// The queue behind the route answers nobody from now on.
    pub(crate) fn stick(&self, route: &Route) {
        self.script().stuck.insert(route.clone());
    }

    /// The queue behind the route takes everything that waits in it, and answers again.
    pub(crate) async fn free(&self, route: &Route) {
        let waiting = {
            let mut script = self.script();
            script.stuck.remove(route);
            script.take_waiting(|waiting| waiting.stuck.as_ref() == Some(route))
        };
        self.answer(waiting, true).await;
    }

    /// What was published of this message and waits for a command is taken, or is not.
    pub(crate) async fn answer_late(&self, id: Uuid, taken: bool) {
        let waiting = self.script().take_waiting(|waiting| waiting.id == id);
        assert!(!waiting.is_empty(), "nothing of {id} waits for an answer");
        self.answer(waiting, taken).await;
    }

    async fn answer(&self, waiting: Vec<Waiting>, taken: bool) {
        if taken {
            let ids: Vec<Uuid> = waiting.iter().map(|waiting| waiting.id).collect();
            self.take(&ids).await;
        }
        self.0.words.send_modify(|words| {
            words.extend(waiting.iter().map(|waiting| (waiting.ticket, taken)));
        });
    }

    /// The connection ends; the next one is there at once, or when [`Self::come_back`] says so.
    pub(crate) fn lose(&self) {
        self.end(None);
    }

    /// The connection ends if it owes anybody an answer that will not come.
    pub(crate) fn lose_unanswered(&self) {
        let unanswered = self
            .script()
            .waiting
            .iter()
            .any(|waiting| waiting.commanded);
        if unanswered {
            self.lose();
        }
    }

    pub(crate) fn go_away(&self) {
        self.0.link.send_modify(|link| link.away = true);
        self.end(None);
    }

    pub(crate) fn come_back(&self) {
        self.0.link.send_modify(|link| link.away = false);
    }

    /// An alarm begins: nothing is taken until it is over.
    pub(crate) fn block(&self) {
        self.0.link.send_modify(|link| link.alarms += 1);
    }

    pub(crate) fn unblock(&self) {
        self.0.link.send_modify(|link| link.alarms -= 1);
    }

    /// Has publishes stand still at this point, until told otherwise.
    pub(crate) fn hold(&self, hold: Option<Hold>) {
        self.0.held.send_replace(0);
        self.0.hold.send_replace(hold);
    }

    /// Waits until so many publishes stand still.
    pub(crate) async fn held(&self, publishes: usize) {
        let mut held = self.0.held.subscribe();
        let reached = held.wait_for(|held| *held >= publishes);
        let waited = tokio::time::timeout(crate::outbox::DEADLINE, reached).await;
        waited.expect("nothing was published in time").unwrap();
    }

    /// After the script has ended a connection, the broker is away for so long.
    pub(crate) fn is_away_after_a_loss(&self, for_ms: u64) {
        self.script().away_ms = for_ms;
    }

    pub(crate) fn batches(&self) -> Vec<Batch> {
        self.script().batches.clone()
    }

    /// How often the message was sent.
    pub(crate) fn sent(&self, id: Uuid) -> usize {
        let script = self.script();
        let batches = script.batches.iter();
        batches
            .flat_map(|batch| &batch.ids)
            .filter(|sent| **sent == id)
            .count()
    }

    /// How many batches somebody waits for late confirms of.
    pub(crate) fn lates(&self) -> usize {
        self.0.lates.load(Ordering::SeqCst)
    }

    pub(crate) fn asked_at(&self) -> SystemTime {
        self.0.asked_at.lock().unwrap().expect("nobody asked")
    }

    /// Takes responsibility for these messages: in the ledger when this is over.
    async fn take(&self, ids: &[Uuid]) {
        if ids.is_empty() {
            return;
        }
        let insert = "INSERT INTO audit.taken (id) SELECT unnest($1::uuid[])";
        self.0.ledger.execute(insert, &[&ids]).await.unwrap();
    }

    /// The connection ends (if it is still of this generation), and with it every hope for what it has not
    /// answered.
    fn end(&self, generation: Option<u64>) {
        let current = self.0.link.borrow().generation;
        if generation.is_some_and(|generation| generation != current) {
            return;
        }
        let (waiting, away) = {
            let mut script = self.script();
            let away = generation.map_or(0, |_| script.away_ms);
            (
                script.take_waiting(|waiting| waiting.generation <= current),
                away,
            )
        };
        self.0.link.send_modify(|link| {
            link.end();
            link.away |= away > 0;
        });
        self.0.words.send_modify(|words| {
            words.extend(waiting.iter().map(|waiting| (waiting.ticket, false)));
        });
        if away > 0 {
            let broker = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(away)).await;
                broker.come_back();
            });
        }
    }

    /// What each message of a batch meets, and for how long an alarm is raised over one of them.
    fn draw(&self, publisher: &ScriptedPublisher, batch: &[Message]) -> Vec<Drawn> {
        let mut script = self.script();
        script.batches.push(Batch {
            generation: publisher.view.generation,
            isolated: publisher.isolated,
            proven: publisher.is_proven(),
            ids: batch.iter().map(|message| message.id).collect(),
        });
        let mut ended = false;
        let mut stopped: HashSet<&str> = HashSet::new();
        let drawn = batch.iter().map(|message| {
            if message.key().is_some_and(|key| stopped.contains(key)) {
                return Drawn::HeldBack;
            }
            let drawn = if ended {
                Drawn::NotReached
            } else {
                script.draw(message)
            };
            ended |= drawn.ends_connection();
            if !drawn.is_confirmed() {
                stopped.extend(message.key());
            }
            drawn
        });
        drawn.collect()
    }

    /// Gives the publish of a message that is not confirmed in time a ticket, and has it answered.
    fn ticket(
        &self,
        publisher: &ScriptedPublisher,
        id: Uuid,
        word: Word,
        stuck: Option<Route>,
    ) -> u64 {
        let ticket = {
            let mut tickets = self.0.tickets.lock().unwrap();
            *tickets += 1;
            *tickets
        };
        let mut script = self.script();
        // It may have been freed since this was sent.
        let is_stuck = stuck.as_ref().map(|route| script.stuck.contains(route));
        script.waiting.push(Waiting {
            ticket,
            generation: publisher.view.generation,
            id,
            commanded: word == Word::OnCommand && stuck.is_none(),
            stuck,
        });
        drop(script);
        let word = if is_stuck == Some(false) {
            Word::After(0)
        } else {
            word
        };
        let (after, taken) = match word {
            Word::OnCommand => return ticket,
            Word::After(after) => (after, true),
            Word::NotTakenAfter(after) => (after, false),
        };
        let broker = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after)).await;
            let waiting = broker
                .script()
                .take_waiting(|waiting| waiting.ticket == ticket);
            broker.answer(waiting, taken).await;
        });
        ticket
    }
}

impl Broker for Scripted {
    type Publisher = ScriptedPublisher;

    async fn keep(&self, progress: &Progress, stop: &CancellationToken) {
        let mut link = self.0.link.subscribe();
        loop {
            let view = link.borrow_and_update().clone();
            if view.away {
                progress.broker_lost("the script says so", Duration::ZERO);
            } else if view.is_blocked() {
                progress.broker_blocked("the script says so", Instant::now());
            } else {
                progress.broker_connected("the script");
                progress.broker_unblocked(Instant::now());
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = link.changed() => changed.unwrap(),
            }
        }
    }

    async fn ready(&self, held: Option<ScriptedPublisher>) -> ScriptedPublisher {
        let mut link = self.0.link.subscribe();
        let view = link.wait_for(View::is_up).await.unwrap().clone();
        match held {
            Some(held) if held.usable && held.view.generation == view.generation => held,
            _ => ScriptedPublisher {
                broker: self.clone(),
                view,
                isolated: false,
                usable: true,
            },
        }
    }

    async fn isolated(&self) -> Option<ScriptedPublisher> {
        let mut view = self.0.link.borrow().clone();
        view.proven = Arc::default();
        (!view.away).then(|| ScriptedPublisher {
            broker: self.clone(),
            view,
            isolated: true,
            usable: true,
        })
    }

    async fn blocked(&self) {
        let mut link = self.0.link.subscribe();
        link.wait_for(View::is_blocked).await.unwrap();
    }
}
