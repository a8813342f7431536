//! Looks at which lanes have messages that wait.

use std::collections::HashMap;

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
}

impl Database {
    /// The lanes of messages with a key at or above `from`, the beginning if not given. Where many wait, and not all over the lanes or
    /// `one_by_one` is asked for, every lane of `starts`, as they were before this, is looked at by itself, so that none is hidden by the others.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn waiting_lanes(
        &self,
        from: Option<Seq>,
        one_by_one: bool,
        starts: &LaneStarts,
    ) -> Result<WaitingLanes, Error> {
        const DOING: &str = "look for messages in order";
        let failed = |error| Error::query(DOING, error);
        let lease = self.lease().await?;
        let sql = &self.sql().ordered;
        let found = self
            .answer(DOING, async {
                let client = lease.client()?;
                let statement = client.prepare_cached(&sql.waiting).await.map_err(failed)?;
                // Within a transaction for its setting alone: to plan these two anew costs as much as they do.
                let from = watch::bound(from);
                let parameters: [&(dyn ToSql + Sync); 1] = [&from];
                let (begun, rows) = future::join(
                    client.batch_execute(begin(Origin::Messages)),
                    client.query(&statement, &parameters),
                )
                .await;
                begun.map_err(failed)?;
                let looked = looked_at(&rows.map_err(failed)?).map_err(failed)?;
                let mut found = looked.waiting()?;
                if found.many {
                    found.reach = looked.reach(&starts.lanes).filter(|_| !one_by_one);
                    found.lanes.clear();
                    if found.reach.is_some() {
                        found
                            .lanes
                            .extend(starts.lanes.iter().map(|start| start.lane));
                    } else {
                        let wire = LanesOnTheWire::new(starts, None);
                        let statement = client.prepare_cached(&sql.lanes).await.map_err(failed)?;
                        let parameters: [&(dyn ToSql + Sync); 4] =
                            [&wire.lanes, &wire.from, &wire.passed, &wire.since];
                        let rows = client.query(&statement, &parameters).await;
                        let mut firsts = HashMap::new();
                        for row in rows.map_err(failed)? {
                            let lane = lane(row.try_get(0).map_err(failed)?)?;
                            firsts.insert(lane, Seq(row.try_get(1).map_err(failed)?));
                            found.lanes.push(lane);
                        }
                        let every = starts.lanes.iter().map(|start| start.lane);
                        found.firsts = every
                            .map(|lane| (lane, firsts.get(&lane).copied()))
                            .collect();
                    }
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
}

fn looked_at(rows: &[tokio_postgres::Row]) -> Result<Looked, tokio_postgres::Error> {
    let mut looked = Looked::default();
    for row in rows {
        looked.lanes.push(row.try_get(0)?);
        let (lowest, highest) = (Seq(row.try_get(1)?), Seq(row.try_get(2)?));
        looked.lowest = Some(looked.lowest.map_or(lowest, |known| known.min(lowest)));
        looked.highest = looked.highest.max(Some(highest));
        looked.rows += row.try_get::<_, i64>(3)?;
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
