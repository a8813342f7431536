//! Hands a running relay what may change while it runs.
//!
//! A task takes the whole of it once for each thing that it does, so that one batch is claimed, sent and judged by one
//! version. Who sleeps by an old interval is woken.

use std::sync::Arc;

use tokio::sync::watch;

use crate::settings::Reloadable;
use crate::shared::Shared;

/// What is in force now.
#[derive(Debug)]
pub(crate) struct Live(watch::Sender<Arc<Reloadable>>);

impl Live {
    pub(crate) fn new(reloadable: Reloadable) -> Self {
        Self(watch::Sender::new(Arc::new(reloadable)))
    }

    pub(crate) fn get(&self) -> Arc<Reloadable> {
        Arc::clone(&self.0.borrow())
    }

    /// For tasks that sleep: they see a change at once.
    pub(crate) fn subscribe(&self) -> Subscription {
        Subscription(self.0.subscribe())
    }
}

/// A task's own view of what is in force.
pub(crate) struct Subscription(watch::Receiver<Arc<Reloadable>>);

impl Subscription {
    pub(crate) fn get(&mut self) -> Arc<Reloadable> {
        Arc::clone(&self.0.borrow_and_update())
    }

    /// Waits until something else is in force than what [`Self::get`] gave last.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The relay is gone, and with it whoever could say so.
            std::future::pending::<()>().await;
        }
    }
}

/// Tells a relay what to do from now on; for as long as it runs, and before.
#[derive(Debug, Clone)]
pub struct Reloader(pub(crate) Arc<Shared>);

impl Reloader {
    /// Puts `reloadable` in force. A batch that is in flight was claimed by what was in force before, and its
    /// failures are judged by what is in force when they are known. Messages that wait already go on waiting for as
    /// long as they were told to.
    pub fn apply(&self, reloadable: Reloadable) {
        let Shared {
            live,
            breakers,
            awake,
            wakeup,
            ..
        } = &*self.0;
        breakers.decide_by(reloadable.retry, reloadable.unroutable.clone());
        awake.quiet_above(reloadable.quiet_above);
        live.0.send_replace(Arc::new(reloadable));
        wakeup.notify_waiters();
    }
}
