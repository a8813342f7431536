//! Tries whether the rows of a claim can be deleted, and takes that back.

use futures_util::future;
use postgres_types::Type;
use postrider_core::Origin;

use super::{in_one_order, rows};
use crate::claim::Claim;
use crate::database::Lease;
use crate::error::Error;

const DOING: &str = "delete messages, which is tried before they are sent";
const BEGIN: &str = "SAVEPOINT rehearsal";
/// What a deferred constraint would object to at the end of the transaction, it objects to here.
const CONSTRAINTS: &str = "SET CONSTRAINTS ALL IMMEDIATE";
const TAKE_BACK: &str = "ROLLBACK TO SAVEPOINT rehearsal";

impl Claim {
    /// Deletes the rows of the claim, as a settle does, and takes that back, in one round trip: so it is known whether the database lets
    /// them go before anything of them is sent. They stay locked.
    ///
    /// # Errors
    /// What the database says to the deletion, [`Error::Kept`] if that was less than it should have been: the claim is as it was
    /// before, and can be released. After an error of the connection that is given up, which frees the rows as well.
    pub async fn rehearse(&mut self) -> Result<(), Error> {
        let Some(lease) = self.lease.take() else {
            return Ok(());
        };
        let said = self
            .database
            .answer(DOING, self.delete_and_take_back(&lease))
            .await?;
        self.lease = Some(lease);
        let (named, deleted) = (self.seqs.len() as u64, said?);
        if deleted != named {
            return Err(Error::Kept { named, deleted });
        }
        Ok(())
    }

    /// How many rows could be deleted, or why none could.
    async fn delete_and_take_back(&self, lease: &Lease) -> Result<Result<u64, Error>, Error> {
        let failed = |error| Error::query(DOING, error);
        let client = lease.client()?;
        let sql = self.database.sql().settle(self.origin);
        let delete = client.prepare_typed_cached(&sql.delete, &[Type::INT8_ARRAY]);
        let delete = delete.await.map_err(failed)?;
        let keys = match self.origin {
            Origin::Messages => Vec::new(),
            Origin::Deferred | Origin::Parked => in_one_order(self.keys.iter().map(|(_, key)| key)),
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
            rows(client, Some(&delete), vec![&self.seqs]),
            client.batch_execute(CONSTRAINTS),
            client.batch_execute(TAKE_BACK),
        )
        .await;
        taken_back.map_err(failed)?;
        // The first that failed has the reason; those behind it only say that the transaction had failed.
        let said = begun.and(locked).and(deleted);
        let said = said.and_then(|deleted| checked.map(|()| deleted));
        Ok(said.map_err(failed))
    }
}
