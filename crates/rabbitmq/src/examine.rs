//! What can be known of a broker by AMQP alone, with a user that may do nothing but publish; for `postrider check`.
//!
//! Nothing here changes anything, and no message reaches a queue. Of what kind an exchange is, which queues are
//! bound to it and what they are, AMQP does not tell: only RabbitMQ's management does.

use std::time::Duration;

use lapin::options::{BasicPublishOptions, ExchangeDeclareOptions, ExchangeUnbindOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, ExchangeKind, PublisherConfirm};
use tokio::time::timeout;

use crate::classify::ChannelError;
use crate::publisher::open_channel;
use crate::{Connection, Error, LinkState, Settings};

/// How long an answer is waited for. Under an alarm there is none.
const ANSWER: Duration = Duration::from_secs(3);

/// No exchange is meant: a name for the other end of a binding that is not there.
const NOWHERE: &str = "postrider.check";

/// Whether there is an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// There is.
    Yes,
    /// There is none; what the broker said.
    No(String),
    /// It could not be asked for.
    Unknown,
}

/// Whether the user may publish to an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MayPublish {
    /// It may. Topic permissions may refuse single routing keys all the same.
    Yes,
    /// It may not; what the broker said.
    No(String),
    /// It could not be asked for.
    Unknown,
}

/// Whether the broker takes messages now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alarm {
    /// It does.
    None,
    /// It does not, for this reason.
    Raised(String),
    /// It did not answer.
    Unknown,
}

impl Connection {
    /// How many channels the broker allows on a connection; 0 for any number.
    #[must_use]
    pub fn channel_max(&self) -> u16 {
        self.lapin.configuration().channel_max()
    }

    /// Asks for an exchange by a passive declaration, which needs no permission. The default exchange is always there.
    pub async fn find_exchange(&self, exchange: &str) -> Found {
        if exchange.is_empty() {
            return Found::Yes;
        }
        let Ok(name) = ShortString::try_new(exchange) else {
            return Found::Unknown;
        };
        let asked = async {
            let channel = self.lapin.create_channel().await?;
            let options = ExchangeDeclareOptions {
                passive: true,
                ..ExchangeDeclareOptions::default()
            };
            channel
                .exchange_declare(name, ExchangeKind::Direct, options, FieldTable::default())
                .await
        };
        match timeout(ANSWER, asked).await {
            Ok(Ok(())) => Found::Yes,
            Ok(Err(error)) => match ChannelError::of(&error) {
                Some(said) if said.code == 404 => Found::No(said.text),
                _ => Found::Unknown,
            },
            Err(_) => Found::Unknown,
        }
    }

    /// Whether the user may write to an exchange that is there, without writing to it: by taking a binding away
    /// from it that it does not have. For that the broker first asks for `write` on the exchange, and then for
    /// `read` on the other end, which this user need not have: whose name the refusal has tells how far it came.
    pub async fn may_publish(&self, exchange: &str) -> MayPublish {
        if exchange.is_empty() {
            return self.may_publish_to_default().await;
        }
        let Ok(name) = ShortString::try_new(exchange) else {
            return MayPublish::Unknown;
        };
        let asked = async {
            let channel = self.lapin.create_channel().await?;
            channel
                .exchange_unbind(
                    name,
                    NOWHERE.into(),
                    NOWHERE.into(),
                    ExchangeUnbindOptions::default(),
                    FieldTable::default(),
                )
                .await
        };
        match timeout(ANSWER, asked).await {
            Ok(Ok(())) => MayPublish::Yes,
            Ok(Err(error)) => match ChannelError::of(&error) {
                Some(said) if said.code == 403 && !said.text.contains(NOWHERE) => {
                    MayPublish::No(said.text)
                }
                // Refused at the other end, or there is no such end: the first question was answered.
                Some(said) if said.code == 403 || said.code == 404 => MayPublish::Yes,
                _ => MayPublish::Unknown,
            },
            Err(_) => MayPublish::Unknown,
        }
    }

    /// No binding can be taken from the default exchange. But it routes to the queue that the key names: a key that
    /// no queue has sends a message nowhere.
    async fn may_publish_to_default(&self) -> MayPublish {
        let asked = async {
            let channel = open_channel(&self.lapin).await?;
            // By its confirm and not by a question behind it: a channel that is closed before that one is asked says
            // only that it is closed, and not why.
            publish_nowhere(&channel).await?.await
        };
        match timeout(ANSWER, asked).await {
            Ok(Ok(_)) => MayPublish::Yes,
            Ok(Err(error)) => match ChannelError::of(&error) {
                Some(said) if said.code == 403 => MayPublish::No(said.text),
                _ => MayPublish::Unknown,
            },
            Err(_) => MayPublish::Unknown,
        }
    }

    /// Whether the broker has raised an alarm. It says so only to those that publish: so a message is sent that
    /// goes nowhere, to the default exchange, with a key that no queue has. Whether the user may do so makes no
    /// difference. While it is raised the broker hears nothing more on this connection: it is of no use then.
    pub async fn alarm(&self) -> Alarm {
        let mut link = self.watch();
        let asked = async {
            let channel = self.lapin.create_channel().await?;
            publish_nowhere(&channel).await?;
            open_channel(&self.lapin).await
        };
        let blocked = async {
            let found = link.wait_for(|state| matches!(state, LinkState::Blocked { .. }));
            found.await.map(|state| state.clone())
        };
        tokio::select! {
            // The alarm is told before the broker stops to listen: it comes first.
            biased;
            Ok(LinkState::Blocked { reason }) = blocked => Alarm::Raised(reason),
            answered = asked => match answered {
                Ok(_) => Alarm::None,
                Err(error) => {
                    tracing::debug!(%error, "could not ask for an alarm");
                    Alarm::Unknown
                }
            },
            () = tokio::time::sleep(ANSWER) => Alarm::Unknown,
        }
    }
}

async fn publish_nowhere(channel: &lapin::Channel) -> lapin::Result<PublisherConfirm> {
    let nobody = format!("{NOWHERE}.{}", uuid::Uuid::new_v4());
    let properties = BasicProperties::default();
    let options = BasicPublishOptions::default();
    let key = ShortString::try_new(nobody).unwrap_or_default();
    channel
        .basic_publish("".into(), key, options, &[], properties)
        .await
}

/// Whether the broker knows exchanges of this kind at all, as `x-delayed-message` is one of a plugin; `None` when it
/// cannot be said. Asked for on a connection of its own, which the broker may end over it: by a declaration of the default exchange,
/// which nobody may declare, so that none can come of it.
///
/// # Errors
/// When there is no connection.
pub async fn examine_exchange_type(settings: &Settings, kind: &str) -> Result<Option<bool>, Error> {
    let connection = Connection::open(settings, 0).await?;
    let asked = async {
        let channel = connection.lapin.create_channel().await?;
        channel
            .exchange_declare(
                "".into(),
                ExchangeKind::Custom(kind.to_owned()),
                ExchangeDeclareOptions::default(),
                FieldTable::default(),
            )
            .await
    };
    let answered = timeout(ANSWER, asked).await;
    connection.close(ANSWER).await;
    let Ok(Err(error)) = answered else {
        return Ok(None);
    };
    let lapin::ErrorKind::ProtocolError(said) = error.kind() else {
        return Ok(None);
    };
    let text = said.get_message().as_str();
    Ok(if text.contains("exchange type") {
        Some(false)
    } else {
        (said.get_id() == 403).then_some(true)
    })
}
