//! Where the claims and the samples of one relay begin: shared by its workers, the watcher of the outbox and the
//! sampler.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use postrider_core::{
    Ask, Floor, Frontier, Lane, LaneStarts, Lanes, Message, Origin, Passable, Passed, Reach, Scan,
    Seq, TransactionId, Walk, Walked, WalkedFrom, Writer,
};
use postrider_postgres::{Claim, ClaimFrom, LookBack, LookFor, OutboxLook, ReadLane, WaitingLanes};
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
    /// Of the same claims, where they walk over messages with a key and the frontier does not come along.
    walk: Walk<Seq>,
    /// Where the next look back begins, if the last one ended within its range.
    looked_back: Option<Seq>,
    /// What is locked is seen and not passed: the lag counts what is on its way. Of the same looks, so with the same
    /// floor.
    samples: Frontier<Seq>,
    /// Of messages with a key. What it passes is only not looked for: their claims begin where their lanes do.
    ordered: Frontier<Seq>,
    /// A row that the last look back has found below it.
    below_ordered: Option<Seq>,
    lanes: Lanes,
    /// Of the writers that the newest look has shown.
    ids: HashMap<Writer, TransactionId>,
    /// Those that a worker has chosen and not given back: another one would find them locked.
    in_hand: HashSet<Lane>,
    known: Known,
    /// The next look is to look at each lane by itself.
    one_by_one: bool,
    /// By the last look at the first.
    many_wait: bool,
    /// Until when a look at the first messages with a key would walk over too much.
    each_until: Option<Instant>,
    /// Until when a claim that finds no message without a key would cost too much.
    spared_until: Option<Instant>,
}

/// A claim that found no message without a key, but walked over others for so long, is not made again for so many times as long while
/// there are others to claim, unless a look shows that something came meanwhile.
const SPARED: u32 = 10;
/// As often as looks are taken, it is made in any case.
const LONGEST_SPARED: Duration = Duration::from_millis(50);

/// A look at the first messages with a key that takes this long walks over what lies dead behind a row that cannot be had, such as one that an operator
/// has locked: each lane by itself is looked at in some milliseconds, and only the lane of that row is walked through from there.
const SLOW_LOOK: Duration = Duration::from_millis(25);
/// For so many times as long as it took; then it is tried again.
const LOOKS_LANE_BY_LANE: u32 = 32;
const LONGEST_LANE_BY_LANE: Duration = Duration::from_secs(60);

/// What the last look found, of so many that the next claims need not look themselves.
#[derive(Debug, Default)]
struct Known {
    lanes: Vec<Lane>,
    /// With it, every claim may be of any of the lanes, `claims` more times; without, each lane is claimed from once.
    reach: Option<Reach>,
    claims: u32,
}

/// How many claims are made by one look that found work all over the lanes, which costs a sixth of a claim.
const CLAIMS_OF_ONE_LOOK: u32 = 16;

/// What was known before a snapshot was taken: what it shows of a lane counts by that.
#[derive(Debug)]
struct Before {
    writers: Passable,
    generation: u64,
}

/// A look for messages with a key.
#[derive(Debug)]
pub(crate) struct OrderedLook {
    scan: Scan<Seq>,
    pub(crate) how: LookFor,
    /// Many waited by the last look at the first: each lane by itself does not tell.
    pub(crate) many_before: bool,
    /// Every lane with its beginning.
    pub(crate) starts: LaneStarts,
    before: Before,
}

impl OrderedLook {
    /// Where it begins.
    pub(crate) fn from(&self) -> Option<Seq> {
        self.scan.from()
    }
}

/// Lanes to be claimed, and what is to be told of them. No other worker of this relay chooses them for as long as this lives.
#[derive(Debug)]
pub(crate) struct ChosenLanes<'a> {
    frontiers: &'a Frontiers,
    pub(crate) starts: LaneStarts,
    /// The most rows that the claim may read.
    rows: u32,
    before: Before,
}

impl ChosenLanes<'_> {
    /// Whether rows may lie beyond what the claim reads.
    pub(crate) fn is_bounded(&self) -> bool {
        self.starts.lanes.iter().any(|start| start.until.is_some())
    }
}

impl Frontiers {
    /// A claim is about to be sent. To be asked before what the claim leaves out: what is given back in between
    /// makes this scan count for nothing.
    pub(crate) fn scan(&self) -> Scan<Seq> {
        self.all().claims.scan()
    }

    /// Where the claim begins that a scan is for.
    pub(crate) fn from(&self, scan: &Scan<Seq>) -> ClaimFrom {
        let mut all = self.all();
        ClaimFrom {
            fresh: all.walk.begin(scan.from()),
            ordered: all.ordered.at(),
        }
    }

    /// A claim that began there was answered.
    pub(crate) fn claimed(&self, scan: Scan<Seq>, from: ClaimFrom, claim: &Claim) {
        let last = claim.messages().last().map(after);
        self.walked(scan, from, claim.walked(), claim.untaken().or(last));
    }

    /// `next`: where to go on behind a claim that is full.
    fn walked(&self, scan: Scan<Seq>, from: ClaimFrom, walked: Walked<Seq>, next: Option<Seq>) {
        let mut all = self.all();
        let passed = match walked {
            Walked::ToTheEnd => Some(Passed::All),
            Walked::Until(until) => Some(Passed::Below(until)),
            Walked::Full => next.map(Passed::Below),
        };
        let began = if from.fresh == scan.from() {
            WalkedFrom::Frontier
        } else {
            WalkedFrom::Walk
        };
        if let (Some(passed), WalkedFrom::Frontier) = (passed, began) {
            all.claims.passed(scan, passed);
        }
        let frontier = all.claims.at();
        all.walk.walked(began, walked, next, frontier);
    }

    /// A claim found no messages without a key, and took so long.
    pub(crate) fn found_no_fresh(&self, began: Instant, took: Duration) {
        let spared = took.saturating_mul(SPARED).min(LONGEST_SPARED);
        self.all().spared_until = began.checked_add(took + spared);
    }

    /// Whether another such claim is not worth its while for now.
    pub(crate) fn spares_fresh(&self, now: Instant) -> bool {
        let all = self.all();
        all.spared_until.is_some_and(|until| now < until) && !all.claims.wants_claim()
    }

    /// Rows are free again that a claim had locked or left out, the lowest of them this one.
    pub(crate) fn given_back(&self, lowest: Seq) {
        self.all().claims.given_back(lowest);
    }

    /// A look for messages with a key is about to be taken. `others`: other relays claim as well, and nobody knows how far a lane has been
    /// read.
    pub(crate) fn look_for_ordered(&self, others: bool, now: Instant) -> OrderedLook {
        let mut all = self.all();
        let one_by_one = std::mem::take(&mut all.one_by_one);
        OrderedLook {
            scan: all.ordered.scan(),
            many_before: all.many_wait,
            how: if all.each_until.is_some_and(|until| now < until) {
                LookFor::Each
            } else if one_by_one || others {
                LookFor::FirstThenEach
            } else {
                LookFor::First
            },
            starts: all.lanes.starts(all.claims.floor().floor()),
            before: all.before(),
        }
    }

    /// The server took so long for it, by its own clock, or did not come to an end: how far away it is says nothing.
    pub(crate) fn look_took(&self, look: &OrderedLook, now: Instant, took: Duration) {
        if look.how != LookFor::Each && took >= SLOW_LOOK {
            let rest = took.saturating_mul(LOOKS_LANE_BY_LANE);
            self.all().each_until = now.checked_add(rest.min(LONGEST_LANE_BY_LANE));
        }
    }

    /// It was taken.
    pub(crate) fn found_ordered(&self, look: OrderedLook, found: &WaitingLanes) {
        let passed = found.lowest.map_or(Passed::All, Passed::Below);
        let mut all = self.all();
        all.ordered.passed(look.scan, passed);
        if look.how != LookFor::Each {
            all.many_wait = found.many;
        }
        for (lane, first) in &found.firsts {
            // Of those that a worker has, its claim tells more.
            if !all.in_hand.contains(lane) {
                all.seen(*lane, *first, &look.before);
            }
        }
        all.known = match &found.reach {
            None => Known::default(),
            Some(reach) => Known {
                lanes: found.lanes.clone(),
                reach: Some(match &all.known.reach {
                    Some(before) => reach.clone().after(before),
                    None => reach.clone(),
                }),
                claims: CLAIMS_OF_ONE_LOOK - 1,
            },
        };
    }

    /// Lanes that a look has found and that may be claimed from without another.
    pub(crate) fn take_known_lanes(&self) -> Vec<Lane> {
        let mut all = self.all();
        let known = &mut all.known;
        match known.claims.checked_sub(1) {
            Some(left @ 1..) if known.reach.is_some() => {
                known.claims = left;
                known.lanes.clone()
            }
            // Where the lanes were left is kept for what the next look finds.
            Some(_) | None => {
                known.claims = 0;
                std::mem::take(&mut known.lanes)
            }
        }
    }

    /// Leaves what this claim has not chosen of them to the next, where each lane is claimed from once.
    pub(crate) fn leave_known_lanes(&self, waiting: &[Lane], chosen: &ChosenLanes<'_>) {
        let is_chosen = |lane: &Lane| chosen.starts.lanes.iter().any(|start| start.lane == *lane);
        let left = waiting.iter().filter(|lane| !is_chosen(lane)).copied();
        let mut all = self.all();
        if all.known.reach.is_none() {
            all.known.lanes = left.collect();
        }
    }

    /// A claim that did not look beyond the reach came back with little: the next takes a look, and looks at each lane by itself if
    /// this one had just looked.
    pub(crate) fn fell_short(&self, had_looked: bool) {
        let mut all = self.all();
        all.known.lanes.clear();
        all.known.claims = 0;
        all.one_by_one |= had_looked;
    }

    /// Up to `most` of these lanes, in turn, that no other worker has, for a claim of so many `rows` of all of them.
    pub(crate) fn choose_lanes(&self, waiting: &[Lane], most: usize, rows: u32) -> ChosenLanes<'_> {
        let mut all = self.all();
        let before = all.before();
        let floor = all.claims.floor().floor();
        let free = waiting.iter().filter(|lane| !all.in_hand.contains(lane));
        let free: Vec<Lane> = free.copied().collect();
        let mut starts = all.lanes.choose(&free, most, floor);
        if let Some(reach) = &all.known.reach {
            reach.bound(&mut starts.lanes, rows);
        }
        all.in_hand
            .extend(starts.lanes.iter().map(|start| start.lane));
        ChosenLanes {
            frontiers: self,
            starts,
            rows,
            before,
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
        let rows: usize = read.iter().map(|lane| lane.seqs.len()).sum();
        let is_full = rows >= usize::try_from(chosen.rows).unwrap_or(usize::MAX);
        if let Some(last) = read.last().filter(|_| is_full) {
            let mut lanes = chosen.starts.lanes.iter();
            lanes.find(|start| start.lane == last.lane);
            if let Some(first) = lanes.next() {
                all.lanes.go_on_at(first.lane);
            }
        }
        for lane in read {
            let left = lane.seqs.iter().copied().find(|seq| is_left(*seq));
            all.seen(lane.lane, left.or(lane.until), &chosen.before);
            if let (Some(reach), Some(until)) = (&mut all.known.reach, lane.until) {
                reach.read(lane.lane, until);
            }
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
        all.ids.clone_from(&look.ids);
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

    /// See [`Frontier::below`]; from where the last look back ended, if that is within.
    pub(crate) fn below(&self) -> Option<(Option<Seq>, Seq)> {
        let all = self.all();
        let (floor, frontier) = all.claims.below()?;
        let from = all.looked_back.filter(|at| *at < frontier).max(floor);
        Some((from, frontier))
    }

    /// What a look back has found there; whether it is over.
    pub(crate) fn looked_back(&self, found: LookBack) -> bool {
        let mut all = self.all();
        all.looked_back = match found {
            LookBack::NoneBelow(until) => Some(until),
            LookBack::Free(_) | LookBack::None => None,
        };
        if let LookBack::Free(free) = found {
            all.claims.given_back(free);
        }
        all.looked_back.is_none()
    }

    /// Where a look back looks for messages with a key: see [`Frontier::below`].
    pub(crate) fn below_ordered(&self) -> Option<(Option<Seq>, Seq)> {
        self.all().ordered.below()
    }

    /// What was found there, now and by the look back before. Nothing is below this frontier but what was committed just now, by a writer that
    /// the watch knew and will soon see ended; what is still there at the next look back was not written as rows are, and no
    /// lane would come back to it. Whether so.
    pub(crate) fn found_below_ordered(&self, found: Option<Seq>) -> bool {
        let mut all = self.all();
        let before = std::mem::replace(&mut all.below_ordered, found);
        let Some(row) = found.filter(|_| found == before) else {
            return false;
        };
        all.below_ordered = None;
        all.ordered.given_back(row);
        all.lanes.reset();
        true
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
        all.looked_back = None;
        all.below_ordered = None;
        all.ids.clear();
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

impl All {
    fn before(&self) -> Before {
        Before {
            writers: Passable::new(self.claims.floor(), &self.ids),
            generation: self.lanes.generation(),
        }
    }

    fn seen(&mut self, lane: Lane, first: Option<Seq>, before: &Before) {
        let Before {
            writers,
            generation,
        } = before;
        self.lanes.seen(lane, first, writers, *generation);
    }
}

impl Drop for ChosenLanes<'_> {
    fn drop(&mut self) {
        let mut all = self.frontiers.all();
        for start in &self.starts.lanes {
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

#[cfg(test)]
mod tests;
