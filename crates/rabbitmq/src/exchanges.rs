//! Which exchanges there are, known before anything is sent to them.
//!
//! The broker closes the channel over a message to an exchange that is missing, and what had been sent
//! behind it is sent again: some fifty repeats of good messages for a single bad one. So each name is
//! asked for once, by a passive declaration (which needs no permission), and remembered.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapin::ExchangeKind;
use lapin::options::ExchangeDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use postrider_core::Message;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use crate::classify::ChannelError;

/// How many names are remembered. With more in use, they are asked for again now and then.
const MOST_KNOWN: usize = 4096;
/// How many questions may wait. Publishers ask one by one, so this is about their number.
const MOST_WAITING: usize = 64;

/// The exchanges of one connection. Shared by its publishers.
pub(crate) struct Exchanges {
    known: Mutex<HashSet<String>>,
    questions: mpsc::Sender<Question>,
}

struct Question {
    exchange: ShortString,
    answer: oneshot::Sender<Option<ChannelError>>,
}

impl Exchanges {
    /// Starts the one task that asks, on a channel of its own. In a task, a question is always seen to
    /// its end: the answer to one that was given up would be taken for that to the next.
    pub(crate) fn new(connection: Arc<lapin::Connection>) -> (Arc<Self>, AbortOnDropHandle<()>) {
        let (questions, waiting) = mpsc::channel(MOST_WAITING);
        let exchanges = Arc::new(Self {
            known: Mutex::default(),
            questions,
        });
        let task = tokio::spawn(answer(connection, waiting));
        (exchanges, AbortOnDropHandle::new(task))
    }

    /// The exchanges of the batch that are not known, each once.
    pub(crate) fn unknown<'a>(&self, batch: &'a [Message]) -> Vec<&'a str> {
        let mut unknown = Vec::new();
        let mut seen = HashSet::new();
        let known = self.known();
        // The default exchange always exists, and may not be asked for.
        let mut last = "";
        for message in batch {
            let exchange = message.exchange.as_str();
            if exchange == last {
                continue;
            }
            last = exchange;
            if !exchange.is_empty() && !known.contains(exchange) && seen.insert(exchange) {
                unknown.push(exchange);
            }
        }
        unknown
    }

    /// Asks the broker. What it says when there is no such exchange; `None` when there is one, or
    /// nothing can be said: publishing will tell.
    pub(crate) async fn missing(&self, exchange: &str) -> Option<ChannelError> {
        // What does not fit into AMQP is refused before it is sent.
        let name = ShortString::try_new(exchange).ok()?;
        let (answer, answered) = oneshot::channel();
        let question = Question {
            exchange: name,
            answer,
        };
        self.questions.send(question).await.ok()?;
        let missing = answered.await.ok()?;
        if missing.is_none() {
            let mut known = self.known();
            if known.len() >= MOST_KNOWN {
                known.clear();
            }
            known.insert(exchange.to_owned());
        }
        missing
    }

    /// The broker has said since that there is no such exchange.
    pub(crate) fn forget(&self, exchange: &str) {
        self.known().remove(exchange);
    }

    fn known(&self) -> MutexGuard<'_, HashSet<String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers the questions one after the other, with a new channel after each that closed one. What
/// cannot be answered is dropped.
async fn answer(connection: Arc<lapin::Connection>, mut waiting: mpsc::Receiver<Question>) {
    let mut open: Option<lapin::Channel> = None;
    while let Some(question) = waiting.recv().await {
        if question.answer.is_closed() {
            continue;
        }
        let channel = match open.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => match connection.create_channel().await {
                Ok(channel) => channel,
                Err(error) => {
                    tracing::debug!(%error, "no channel to ask for exchanges on");
                    continue;
                }
            },
        };
        let options = ExchangeDeclareOptions {
            passive: true,
            ..ExchangeDeclareOptions::default()
        };
        let asked = channel
            .exchange_declare(
                question.exchange,
                ExchangeKind::Direct,
                options,
                FieldTable::default(),
            )
            .await;
        let missing = match asked {
            Ok(()) => None,
            Err(error) => match ChannelError::of(&error) {
                Some(said) if said.code == 404 => Some(said),
                // It can be asked for, at least: that it is missing is not what was said.
                Some(_) => None,
                None => {
                    tracing::debug!(%error, "could not ask for an exchange");
                    continue;
                }
            },
        };
        open = Some(channel);
        // The one who asked may have gone on without.
        let _gone = question.answer.send(missing);
    }
}
