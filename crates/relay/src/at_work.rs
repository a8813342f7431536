//! Which workers are in a cycle, and since when.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use postrider_core::stand_by;
use tokio::time::Instant;

/// By the number of each worker.
#[derive(Debug)]
pub(crate) struct AtWork(Mutex<Vec<Option<Instant>>>);

/// A worker is in a cycle for as long as this lives.
#[derive(Debug)]
pub(crate) struct InCycle<'a> {
    at_work: &'a AtWork,
    worker: usize,
}

impl AtWork {
    pub(crate) fn new(workers: usize) -> Self {
        Self(Mutex::new(vec![None; workers]))
    }

    pub(crate) fn begin(&self, worker: usize) -> InCycle<'_> {
        self.set(worker, Some(Instant::now()));
        InCycle {
            at_work: self,
            worker,
        }
    }

    /// For how long this worker is to leave to the others what comes; `None` if it is to look itself.
    pub(crate) fn stand_by(&self, worker: usize) -> Option<Duration> {
        let now = Instant::now();
        let began = self.began();
        let others = began.iter().enumerate();
        let others = others.filter(|(number, _)| *number != worker);
        stand_by(others.filter_map(|(_, began)| began.map(|began| now - began)))
    }

    /// Waits until none of the others is about to look.
    pub(crate) async fn not_left_to_others(&self, worker: usize) {
        while let Some(nap) = self.stand_by(worker) {
            tokio::time::sleep(nap).await;
        }
    }

    fn set(&self, worker: usize, began: Option<Instant>) {
        if let Some(slot) = self.began().get_mut(worker) {
            *slot = began;
        }
    }

    fn began(&self) -> MutexGuard<'_, Vec<Option<Instant>>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for InCycle<'_> {
    fn drop(&mut self) {
        self.at_work.set(self.worker, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    async fn waits(at_work: &AtWork, worker: usize) -> Duration {
        let from = Instant::now();
        at_work.not_left_to_others(worker).await;
        from.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_does_not_wait_for_itself_nor_for_one_whose_cycle_is_over() {
        let at_work = AtWork::new(2);
        let own = at_work.begin(1);
        drop(at_work.begin(0));
        assert_eq!(waits(&at_work, 1).await, MS(0));
        drop(own);
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_leaves_what_comes_to_one_that_is_at_it_again_and_again() {
        let at_work = AtWork::new(2);
        let busy = async {
            for _ in 0..100 {
                let in_cycle = at_work.begin(0);
                tokio::time::sleep(MS(3)).await;
                drop(in_cycle);
            }
        };
        let idle = async {
            tokio::time::sleep(MS(1)).await;
            waits(&at_work, 1).await
        };
        let ((), waited) = tokio::join!(busy, idle);
        assert!(waited >= MS(290), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_does_not_wait_for_one_that_is_held_up() {
        let at_work = AtWork::new(3);
        let held_up = at_work.begin(0);
        tokio::time::sleep(MS(4)).await;
        assert_eq!(waits(&at_work, 1).await, MS(6));
        assert_eq!(waits(&at_work, 2).await, MS(0));
        drop(held_up);
    }
}
