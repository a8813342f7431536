//! Hands a renewed token to the connection that is open, so that it outlives the token it was opened with.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::token::{Token, TokenFile, unix_now};

/// How often the file is looked at while a connection is open.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

/// Until when the broker should be content with the token that it was given last.
#[derive(Clone)]
pub(crate) struct Validity(Arc<AtomicI64>);

impl Validity {
    pub(crate) fn of(token: Option<&Token>) -> Self {
        Self(Arc::new(AtomicI64::new(end(token))))
    }

    /// Nothing that is refused now says anything about what it was refused for.
    pub(crate) fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed) <= unix_now()
    }

    fn set(&self, token: &Token) {
        self.0.store(end(Some(token)), Ordering::Relaxed);
    }
}

fn end(token: Option<&Token>) -> i64 {
    token.and_then(Token::expires).unwrap_or(i64::MAX)
}

/// Starts the task that looks at the file, for a connection that was opened with `used`. It ends with the
/// connection, or when the handle is dropped.
pub(crate) fn keep_renewed(
    connection: Arc<lapin::Connection>,
    file: TokenFile,
    mut used: Token,
    validity: Validity,
) -> AbortOnDropHandle<()> {
    let task = tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let token = file.current().await;
            if !connection.status().connected() {
                return;
            }
            // One that has expired would be refused, and the connection ended with it, while the one before may be
            // good still.
            if token == used || token.has_expired() {
                continue;
            }
            // Without a timeout of its own: the answer comes, or heartbeats end the connection. While the broker blocks
            // publishers it reads nothing, and one waiting is enough.
            let handed = connection
                .update_secret(token.secret().into(), "token renewed".into())
                .await;
            match handed {
                Ok(()) => {
                    info!(
                        event = "token_renewed",
                        peer = "broker",
                        "the broker took the new token on the open connection"
                    );
                    validity.set(&token);
                }
                Err(error) => warn!(
                    event = "token_refused",
                    peer = "broker",
                    file = %file.path().display(),
                    %error,
                    "the broker did not take the new token on the open connection"
                ),
            }
            used = token;
        }
    });
    AbortOnDropHandle::new(task)
}
