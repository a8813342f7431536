//! Confirms that come after their batch was settled.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

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

    async fn confirmed(self) -> Vec<usize> {
        let mut words = self.broker.0.words.subscribe();
        let all = |words: &HashMap<u64, bool>| {
            self.tickets.iter().all(|ticket| words.contains_key(ticket))
        };
        let words = words.wait_for(all).await.unwrap();
        let answered = self.positions.iter().zip(&self.tickets);
        answered
            .filter(|(_, ticket)| words[*ticket])
            .map(|(position, _)| *position)
            .collect()
    }
}

impl Drop for ScriptedLate {
    fn drop(&mut self) {
        self.broker.0.lates.fetch_sub(1, Ordering::SeqCst);
    }
}
