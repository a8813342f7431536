//! Facts about the server for `postrider check`. Nothing here judges, and nothing changes anything.

mod exchanges;
mod horizon;
mod server;
mod vacuum;

pub use exchanges::{ExchangeUse, NamedExchanges, Unroutable};
pub use horizon::{HeldBy, Holder, SlotFacts};
pub use server::ServerFacts;
pub use vacuum::TableVacuum;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::database::Database;
use crate::error::Error;

impl Database {
    /// Rows of one statement.
    async fn ask(
        &self,
        doing: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        let lease = self.lease().await?;
        let rows = self
            .answer(doing, async {
                let asked = lease.client()?.query(sql, parameters).await;
                asked.map_err(|error| Error::query(doing, error))
            })
            .await?;
        lease.give_back();
        Ok(rows)
    }
}
