//! Tries whether the rows of a claim can be deleted, and takes that back.

use std::time::{Duration, Instant};

use futures_util::future;
use postgres_types::Type;
use postrider_core::{Origin, Seq};

use super::{in_one_order, rows};
use crate::claim::Claim;
use crate::database::Lease;
use crate::error::Error;

const DOING: &str = "delete messages, which is tried before they are sent";
const BEGIN: &str = "SAVEPOINT rehearsal";
/// What a deferred constraint would object to at the end of the transaction, it objects to here.
const CONSTRAINTS: &str = "SET CONSTRAINTS ALL IMMEDIATE";
const TAKE_BACK: &str = "ROLLBACK TO SAVEPOINT rehearsal; RELEASE SAVEPOINT rehearsal";

/// How many deletions are tried to find those of a claim that are refused. One among a thousand rows takes 21, and each costs a round trip.
const MOST_TRIES: usize = 100;
/// How many of them as long as none went well: each that is refused is an error in the server's log, and where all rows are refused nothing is to be found.
const MOST_IN_VAIN: usize = 24;
/// After this long no further one is begun, over a slow path: the claim is open, and its worker is to show that it is alive.
const LONGEST: Duration = Duration::from_secs(10);

/// What the database does not let go of a claim.
#[derive(Debug)]
pub struct Refusal {
    /// Rows that it keeps, each tried by itself, ascending. There may be more; none, if time was over before.
    pub kept: Vec<Seq>,
    /// Whether it would let others of the claim go: then it is about these rows, and not about all.
    pub others_go: bool,
    /// What it said, of one row if that is known.
    pub error: Error,
}

impl Claim {
    /// Deletes the rows of the claim, as a settle does, and takes that back, in one round trip: so it is known whether the database lets
    /// them go before anything of them is sent. If it does not, parts of them are tried, down to single rows. They stay locked, and the
    /// claim stays open.
    ///
    /// # Errors
    /// Of the connection, of time, or because another transaction was in the way: the connection is given up, which frees the rows.
    pub async fn rehearse(&mut self) -> Result<Option<Refusal>, Error> {
        let Some(lease) = self.lease.take() else {
            return Ok(None);
        };
        let (mut kept, mut others_go, mut said) = (Vec::new(), false, None);
        let mut parts = vec![self.seqs.as_slice()];
        let began = Instant::now();
        for tries in 0..MOST_TRIES {
            let is_in_vain = tries >= MOST_IN_VAIN && !others_go;
            if is_in_vain || began.elapsed() >= LONGEST {
                break;
            }
            let part = if kept.is_empty() || others_go {
                parts.pop()
            } else {
                // The largest that is left tells soonest whether others go.
                (!parts.is_empty()).then(|| parts.remove(0))
            };
            let Some(part) = part else {
                break;
            };
            let trying = self.delete_and_take_back(&lease, part);
            let Err(error) = self.database.answer(DOING, trying).await? else {
                others_go = true;
                continue;
            };
            if kept.is_empty() {
                said = Some(error);
            }
            match part {
                [] => {}
                [seq] => kept.push(Seq(*seq)),
                _ => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
            }
        }
        self.lease = Some(lease);
        kept.sort_unstable();
        Ok(said.map(|error| Refusal {
            kept,
            others_go,
            error,
        }))
    }

    /// Whether these rows could be deleted, or what refused it.
    async fn delete_and_take_back(
        &self,
        lease: &Lease,
        seqs: &[i64],
    ) -> Result<Result<(), Error>, Error> {
        let failed = |error| Error::query(DOING, error);
        let client = lease.client()?;
        let sql = self.database.sql().settle(self.origin);
        let delete = client.prepare_typed_cached(&sql.delete, &[Type::INT8_ARRAY]);
        let delete = delete.await.map_err(failed)?;
        let keys = match self.origin {
            Origin::Messages => Vec::new(),
            Origin::Deferred | Origin::Parked => {
                in_one_order(seqs.iter().filter_map(|seq| self.keys.get(*seq)))
            }
        };
        let lock = if keys.is_empty() {
            None
        } else {
            let lock = client.prepare_typed_cached(&sql.lock_keys, &[Type::TEXT_ARRAY]);
            Some(lock.await.map_err(failed)?)
        };
        // Polled in this order, all are on the wire before the first answer is awaited.
        let (begun, locked, deleted, checked, taken_back) = future::join5(
            client.batch_execute(BEGIN),
            rows(client, lock.as_ref(), vec![&keys]),
            rows(client, Some(&delete), vec![&seqs]),
            client.batch_execute(CONSTRAINTS),
            client.batch_execute(TAKE_BACK),
        )
        .await;
        begun.map_err(failed)?;
        taken_back.map_err(failed)?;
        // The first that failed has the reason; those behind it only say that the transaction had failed.
        let said = locked.and(deleted);
        let said = said.and_then(|deleted| checked.map(|()| deleted));
        let (named, deleted) = match said.map_err(failed) {
            Ok(deleted) => (seqs.len() as u64, deleted),
            Err(error) if error.is_refusal() => return Ok(Err(error)),
            Err(error) => return Err(error),
        };
        Ok(if deleted == named {
            Ok(())
        } else {
            Err(Error::Kept { named, deleted })
        })
    }
}
