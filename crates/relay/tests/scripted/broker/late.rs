//! Confirms that come after their batch was settled.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use postrider_core::LateNews;
use postrider_relay::Late;

use super::Scripted;

/// Messages of a batch that may still be confirmed.
#[derive(Debug)]
pub(crate) struct ScriptedLate {
    broker: Scripted,
    positions: Vec<usize>,
    tickets: Vec<u64>,
}

impl ScriptedLate {
    pub(super) fn new(broker: &Scripted, late: Vec<(usize, u64)>) -> Self {
        broker.0.lates.fetch_add(1, Ordering::SeqCst);
        let (positions, tickets) = late.into_iter().unzip();
        Self {
            broker: broker.clone(),
            positions,
            tickets,
        }
    }
}

impl Late for ScriptedLate {
    fn positions(&self) -> &[usize] {
        let mut asked = self.broker.0.asked_at.lock().unwrap();
        asked.get_or_insert_with(SystemTime::now);
        &self.positions
    }

    async fn next(mut self) -> (LateNews, Option<Self>) {
        let mut words = self.broker.0.words.subscribe();
        let any = |words: &HashMap<u64, bool>| {
            let mut tickets = self.tickets.iter();
            tickets.any(|ticket| words.contains_key(ticket))
        };
        let words = words.wait_for(any).await.unwrap().clone();
        let mut news = LateNews::default();
        let mut left = Vec::new();
        for (position, ticket) in self.positions.drain(..).zip(self.tickets.drain(..)) {
            match words.get(&ticket) {
                Some(true) => news.confirmed.push(position),
                Some(false) => news.lost.push(position),
                None => left.push((position, ticket)),
            }
        }
        (self.positions, self.tickets) = left.into_iter().unzip();
        let left = (!self.positions.is_empty()).then_some(self);
        (news, left)
    }
}

impl Drop for ScriptedLate {
    fn drop(&mut self) {
        self.broker.0.lates.fetch_sub(1, Ordering::SeqCst);
    }
}
