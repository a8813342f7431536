//! Where the claims and the samples of one relay begin: shared by its workers, the watcher of the outbox and the
//! sampler.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};

use postrider_core::{
    Ask, Floor, Frontier, Lane, LaneStart, Lanes, Message, Origin, Passed, Scan, Seq,
};
use postrider_postgres::{Claim, ClaimFrom, OutboxLook, ReadLane};
use tokio::sync::Notify;

/// The frontiers of `outbox.messages`.
///
/// Whatever is wrong with the session in which looks are taken, [`Frontiers::reset`] is the answer: everything begins
/// at the beginning again, which costs time and loses nothing.
#[derive(Debug, Default)]
pub(crate) struct Frontiers {
    all: Mutex<All>,
    moved: Notify,
}

#[derive(Debug, Default)]
struct All {
    /// What is locked is skipped and passed.
    claims: Frontier<Seq>,
    /// What is locked is seen and not passed: the lag counts what is on its way. Of the same looks, so with the same
    /// floor.
    samples: Frontier<Seq>,
    /// Of messages with a key. What it passes is only not looked for: their claims begin where their lanes do.
    ordered: Frontier<Seq>,
    lanes: Lanes,
    /// Those that a worker has chosen and not given back: another one would find them locked.
    in_hand: HashSet<Lane>,
    /// What the last look found, of so many that the next claims need not look themselves.
    known: Vec<Lane>,
}

/// Lanes to be claimed, and what is to be told of them. No other worker of this relay chooses them for as long as this lives.
#[derive(Debug)]
pub(crate) struct ChosenLanes<'a> {
    frontiers: &'a Frontiers,
    pub(crate) starts: Vec<LaneStart>,
    /// As it was known before the claim.
    horizon: Option<Seq>,
    generation: u64,
}

impl Frontiers {
    /// A claim is about to be sent. To be asked before what the claim leaves out: what is given back in between
    /// makes this scan count for nothing.
    pub(crate) fn scan(&self) -> Scan<Seq> {
        self.all().claims.scan()
    }

    /// Where the claim begins that a scan is for.
    pub(crate) fn from(&self, scan: &Scan<Seq>) -> ClaimFrom {
        ClaimFrom {
            fresh: scan.from(),
            ordered: self.all().ordered.at(),
        }
    }

    /// A claim was answered.
    pub(crate) fn claimed(&self, scan: Scan<Seq>, claim: &Claim) {
        let last = claim.messages().last().map(after);
        let passed = match (claim.reached_limit(), claim.untaken().or(last)) {
            (false, _) => Passed::All,
            (true, Some(next)) => Passed::Below(next),
            (true, None) => return,
        };
        self.all().claims.passed(scan, passed);
    }

    /// Rows are free again that a claim had locked or left out, the lowest of them this one.
    pub(crate) fn given_back(&self, lowest: Seq) {
        self.all().claims.given_back(lowest);
    }

    /// A look for messages with a key is about to be taken.
    pub(crate) fn look_for_ordered(&self) -> Scan<Seq> {
        self.all().ordered.scan()
    }

    /// It was taken, and showed this one as the lowest.
    pub(crate) fn found_ordered(&self, scan: Scan<Seq>, lowest: Option<Seq>) {
        let passed = lowest.map_or(Passed::All, Passed::Below);
        self.all().ordered.passed(scan, passed);
    }

    /// Lanes that a look has found and no claim has tried since.
    pub(crate) fn take_known_lanes(&self) -> Vec<Lane> {
        std::mem::take(&mut self.all().known)
    }

    /// Leaves what this claim has not chosen of them to the next.
    pub(crate) fn leave_known_lanes(&self, waiting: &[Lane], chosen: &ChosenLanes<'_>) {
        let is_chosen = |lane: &Lane| chosen.starts.iter().any(|start| start.lane == *lane);
        let left = waiting.iter().filter(|lane| !is_chosen(lane)).copied();
        self.all().known = left.collect();
    }

    /// Every lane with its beginning.
    pub(crate) fn lane_starts(&self) -> Vec<LaneStart> {
        let all = self.all();
        all.lanes.starts(all.claims.floor().floor())
    }

    /// Up to `most` of these lanes, in turn, that no other worker has.
    pub(crate) fn choose_lanes(&self, waiting: &[Lane], most: usize) -> ChosenLanes<'_> {
        let mut all = self.all();
        let floor = all.claims.floor();
        let (floor, horizon) = (floor.floor(), floor.horizon());
        let free = waiting.iter().filter(|lane| !all.in_hand.contains(lane));
        let free: Vec<Lane> = free.copied().collect();
        let starts = all.lanes.choose(&free, most, floor);
        all.in_hand.extend(starts.iter().map(|start| start.lane));
        ChosenLanes {
            frontiers: self,
            starts,
            horizon,
            generation: all.lanes.generation(),
        }
    }

    /// What a claim read of the lanes, and which of it is still there after its settle.
    pub(crate) fn read_lanes(
        &self,
        chosen: &ChosenLanes<'_>,
        read: &[ReadLane],
        is_left: impl Fn(Seq) -> bool,
    ) {
        let mut all = self.all();
        for lane in read {
            let left = lane.seqs.iter().copied().find(|seq| is_left(*seq));
            let beyond = lane.seqs.last().filter(|_| lane.more);
            let first = match (left, beyond) {
                (Some(left), _) => Some(left),
                (None, Some(last)) => Some(Seq(last.0.saturating_add(1))),
                // Nothing was read, and not all was asked for.
                (None, None) if lane.more => continue,
                (None, None) => None,
            };
            all.lanes
                .seen(lane.lane, first, chosen.horizon, chosen.generation);
        }
    }

    /// What the watch knows of the writers, for a claim that takes a look of its own.
    pub(crate) fn floor_of_claims(&self) -> Floor<Seq> {
        self.all().claims.floor().clone()
    }

    /// A sample is about to be taken.
    pub(crate) fn sample(&self) -> Scan<Seq> {
        self.all().samples.scan()
    }

    /// It was taken, and showed this row as the oldest.
    pub(crate) fn sampled(&self, sample: Scan<Seq>, oldest: Option<Seq>) {
        let passed = oldest.map_or(Passed::All, Passed::Below);
        self.all().samples.passed(sample, passed);
    }

    /// Takes in a look, which `counts` or comes soon after the last that did; the question it leads to.
    pub(crate) fn looked(&self, look: &OutboxLook, counts: bool) -> Option<Ask<Seq>> {
        let mut all = self.all();
        let writers = look.writers.iter().copied();
        let looked = all.claims.looked(look.next, writers.clone(), counts);
        if looked.fell {
            all.lanes.reset();
        }
        let _ = all.samples.looked(look.next, writers.clone(), counts);
        let _ = all.ordered.looked(look.next, writers, counts);
        all.claims.ask()
    }

    /// The answer to it.
    pub(crate) fn raise(&self, ask: Ask<Seq>, oldest: Option<Seq>) {
        let mut all = self.all();
        all.claims.raise(ask, oldest);
        all.samples.raise(ask, oldest);
        all.ordered.raise(ask, oldest);
    }

    /// See [`Frontier::below`].
    pub(crate) fn below(&self) -> Option<(Option<Seq>, Seq)> {
        self.all().claims.below()
    }

    /// No row should be below this.
    pub(crate) fn floor(&self) -> Option<Seq> {
        self.all().claims.floor().floor()
    }

    /// The sweep found a row below the floor.
    pub(crate) fn found_below(&self, row: Seq) {
        let mut all = self.all();
        all.claims.found_below(row);
        all.samples.found_below(row);
        all.ordered.found_below(row);
        all.lanes.reset();
    }

    /// Whether something may have appeared since the last claim that found nothing more.
    pub(crate) fn wants_claim(&self) -> bool {
        self.all().claims.wants_claim()
    }

    /// Whether looks may cease until something happens.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.all().claims.is_at_rest()
    }

    /// The session of the looks was lost.
    pub(crate) fn reset(&self) {
        let mut all = self.all();
        all.claims.reset();
        all.samples.reset();
        all.ordered.reset();
        all.lanes.reset();
    }

    /// Something happened to the outbox: a look is worth its while.
    pub(crate) fn touch(&self) {
        self.moved.notify_one();
    }

    /// Waits until something happens to the outbox.
    pub(crate) async fn touched(&self) {
        self.moved.notified().await;
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for ChosenLanes<'_> {
    fn drop(&mut self) {
        let mut all = self.frontiers.all();
        for start in &self.starts {
            all.in_hand.remove(&start.lane);
        }
    }
}

/// Where claims have to begin again when a claim of fresh rows ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Freed {
    lowest: Option<Seq>,
    /// Locked and not taken, for the bytes.
    beyond: Option<Seq>,
}

impl Freed {
    pub(crate) fn of(claim: &Claim) -> Self {
        let fresh = |message: &&Message| message.origin == Origin::Messages;
        let first = claim.messages().first().filter(fresh);
        Self {
            lowest: first.map(|first| first.seq),
            beyond: first.and_then(|_| claim.untaken()),
        }
    }

    /// The lowest row that is free now; `left` when the settle left any where it was.
    pub(crate) fn lowest(self, left: bool) -> Option<Seq> {
        if left { self.lowest } else { self.beyond }
    }
}

fn after(message: &Message) -> Seq {
    Seq(message.seq.0.saturating_add(1))
}
