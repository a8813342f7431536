//! Rows that the database does not let be deleted, while it is told so.

use anyhow::Result;
use postrider_testbed::{Client, TestDatabase};

/// One row in forty, wherever it is when its turn comes to be deleted or moved.
const INSTALL: &str = "
    CREATE TABLE public.keeping (now boolean NOT NULL);
    CREATE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (SELECT FROM public.keeping) THEN
            RAISE EXCEPTION 'message % is kept', OLD.seq;
        END IF;
        RETURN OLD;
    END
    $$;
    CREATE TRIGGER keep BEFORE DELETE ON outbox.messages FOR EACH ROW WHEN (OLD.seq % 40 = 7) EXECUTE FUNCTION public.keep();
    CREATE TRIGGER keep BEFORE DELETE ON outbox.deferred FOR EACH ROW WHEN (OLD.seq % 40 = 7) EXECUTE FUNCTION public.keep();
    CREATE TRIGGER keep BEFORE DELETE ON outbox.parked FOR EACH ROW WHEN (OLD.seq % 40 = 7) EXECUTE FUNCTION public.keep();
";

/// Prepares the outbox for [`keep`].
pub(crate) async fn install(database: &TestDatabase) -> Result<()> {
    let client = Client::connect(&database.url).await?;
    client.batch_execute(INSTALL).await?;
    Ok(())
}

/// Has the database keep some rows, or none any more. Also while it is read-only for everybody else.
pub(crate) async fn keep(database: &TestDatabase, on: bool) -> Result<()> {
    let client = Client::connect(&database.url).await?;
    let order = if on {
        "INSERT INTO public.keeping VALUES (true)"
    } else {
        "DELETE FROM public.keeping"
    };
    client
        .batch_execute(&format!("BEGIN READ WRITE; {order}; COMMIT"))
        .await?;
    Ok(())
}
