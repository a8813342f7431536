//! Looks at which lanes have messages that wait.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future;
use postgres_types::ToSql;
use postrider_core::{FirstRows, Lane, LaneStart, LaneStarts, Origin, Reach, Seq};

use super::statements::LOOKED_THROUGH;
use super::{LanesOnTheWire, lane};
use crate::claim::begin;
use crate::database::Database;
use crate::error::Error;
use crate::watch;

/// Over how many lanes the rows of a look have to be spread for all to be taken for ones that have work. A half is what shows where two
/// workers take turns: the rows that one has in its hands are the lowest, of the lanes that it has.
const SPREAD: usize = 64;

/// How to look for messages with a key that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookFor {
    /// The first of them. Where many wait, they tell of all lanes if they are of many, and else each lane is looked at by itself.
    First,
    /// The same, but where many wait, each lane is looked at by itself in any case, so that none is hidden by the others.
    FirstThenEach,
    /// Each lane by itself. Where a row that cannot be had keeps the look at the first from beginning farther on, only the lane that it is in is
    /// walked through from there.
    Each,
}

/// Which lanes have messages that wait.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WaitingLanes {
    /// Their lanes, in no order.
    pub lanes: Vec<Lane>,
    /// The lowest message with a key there was, from where the look began.
    pub lowest: Option<Seq>,
    /// So many wait that another claim will find some in each of them.
    pub many: bool,
    /// How far claims of them have to read, where very many wait that are spread over the lanes: then all lanes are named.
    pub reach: Option<Reach>,
    /// Where each lane was looked at by itself, the first row of each from its beginning on, all by one snapshot; `None` where there was none.
    pub firsts: Vec<(Lane, Option<Seq>)>,
    /// How long the server has looked for the first of them.
    pub took: Duration,
}

impl Database {
    /// The lanes of messages with a key. The first are those at or above `from`, the beginning if not given; a lane by itself is looked at from its
    /// beginning on, by `starts` as they were before this.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn waiting_lanes(
        &self,
        from: Option<Seq>,
        look: LookFor,
        starts: &LaneStarts,
    ) -> Result<WaitingLanes, Error> {
        const DOING: &str = "look for messages in order";
        let failed = |error| Error::query(DOING, error);
        let lease = self.lease().await?;
        let sql = &self.sql().ordered;
        let found = self
            .answer(DOING, async {
                let client = lease.client()?;
                // Within a transaction for its setting alone: to plan these two anew costs as much as they do.
                let begin = || client.batch_execute(begin(Origin::Messages));
                let mut found = WaitingLanes::default();
                let mut each = look == LookFor::Each;
                if !each {
                    let statement = client.prepare_cached(&sql.waiting).await.map_err(failed)?;
                    let from = watch::bound(from);
                    let parameters: [&(dyn ToSql + Sync); 1] = [&from];
                    let (begun, rows) =
                        future::join(begin(), client.query(&statement, &parameters)).await;
                    begun.map_err(failed)?;
                    let looked = looked_at(&rows.map_err(failed)?).map_err(failed)?;
                    found = looked.waiting()?;
                    if found.many {
                        let reach = looked.reach(&starts.lanes);
                        found.reach = reach.filter(|_| look == LookFor::First);
                        each = found.reach.is_none();
                        let every = starts.lanes.iter().map(|start| start.lane);
                        found.lanes = every.filter(|_| !each).collect();
                    }
                }
                if each {
                    let wire = LanesOnTheWire::new(starts, None);
                    let statement = client.prepare_cached(&sql.lanes).await.map_err(failed)?;
                    let parameters: [&(dyn ToSql + Sync); 4] =
                        [&wire.lanes, &wire.from, &wire.passed, &wire.since];
                    let query = client.query(&statement, &parameters);
                    let rows = if look == LookFor::Each {
                        let (begun, rows) = future::join(begin(), query).await;
                        begun.map_err(failed)?;
                        rows
                    } else {
                        query.await
                    };
                    let mut firsts = HashMap::new();
                    for row in rows.map_err(failed)? {
                        let lane = lane(row.try_get(0).map_err(failed)?)?;
                        firsts.insert(lane, Seq(row.try_get(1).map_err(failed)?));
                        found.lanes.push(lane);
                    }
                    if look == LookFor::Each {
                        found.lowest = firsts.values().min().copied();
                        // How many there are of each is not known: another claim of those that this one leaves is worth its while all the same.
                        found.many = found.lanes.len() >= SPREAD;
                    }
                    let every = starts.lanes.iter().map(|start| start.lane);
                    found.firsts = every
                        .map(|lane| (lane, firsts.get(&lane).copied()))
                        .collect();
                }
                client.batch_execute("COMMIT").await.map_err(failed)?;
                Ok(found)
            })
            .await?;
        lease.give_back();
        Ok(found)
    }
}

/// What a look through the first rows has shown.
#[derive(Default)]
struct Looked {
    lanes: Vec<i32>,
    lowest: Option<Seq>,
    highest: Option<Seq>,
    rows: i64,
    took: Duration,
}

fn looked_at(rows: &[tokio_postgres::Row]) -> Result<Looked, tokio_postgres::Error> {
    let mut looked = Looked::default();
    for row in rows {
        looked.lanes.push(row.try_get(0)?);
        let (lowest, highest) = (Seq(row.try_get(1)?), Seq(row.try_get(2)?));
        looked.lowest = Some(looked.lowest.map_or(lowest, |known| known.min(lowest)));
        looked.highest = looked.highest.max(Some(highest));
        looked.rows += row.try_get::<_, i64>(3)?;
        let took = Duration::try_from_secs_f64(row.try_get(4)?).unwrap_or_default();
        looked.took = looked.took.max(took);
    }
    Ok(looked)
}

impl Looked {
    fn waiting(&self) -> Result<WaitingLanes, Error> {
        Ok(WaitingLanes {
            lanes: self
                .lanes
                .iter()
                .copied()
                .map(lane)
                .collect::<Result<_, _>>()?,
            lowest: self.lowest,
            many: self.rows >= LOOKED_THROUGH,
            took: self.took,
            ..WaitingLanes::default()
        })
    }

    /// How far claims have to read; `None` where the rows are in too few lanes to tell of the others.
    fn reach(&self, starts: &[LaneStart]) -> Option<Reach> {
        let first = FirstRows {
            lowest: self.lowest?,
            highest: self.highest?,
            rows: u32::try_from(self.rows).unwrap_or(u32::MAX),
        };
        let reach = Reach::of_look(&first, starts);
        (self.lanes.len() >= SPREAD).then_some(reach)
    }
}
