//! The producers at full speed, without a relay and beside a daemon: one pair of measurements.

use anyhow::Result;

use super::{
    Place, full_speed,
    pgbench::{Inserts, Pgbench},
    wakeup::Wakeup,
};
use crate::stage::Stage;

/// So many producers.
const CLIENTS: u32 = 8;

/// What a pair gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beside {
    /// Without a relay.
    pub(crate) without_a_second: f64,
    /// With the daemon on the same cores, as all that follows.
    pub(crate) transactions_a_second: f64,
    /// CPU time of a transaction, in microseconds: PostgreSQL without the daemon's sessions.
    pub(crate) producing_us: f64,
    /// The daemon's sessions.
    pub(crate) relaying_us: f64,
    pub(crate) daemon_us: f64,
    pub(crate) broker_us: f64,
}

/// Measures `seconds` long without a relay, and as long beside the daemon with the settings of the run.
///
/// # Errors
/// pgbench is not there, or a measurement fails.
pub(crate) async fn beside_daemon(stage: &Stage, seconds: u32) -> Result<Beside> {
    let pgbench = Pgbench::find(stage)?;
    let inserts = Inserts {
        clients: CLIENTS,
        seconds,
        rate: None,
    };
    let measure = async |wakeup| {
        let place = Place::prepare(stage, wakeup).await?;
        let measured = place
            .measure(stage, &pgbench, full_speed(CLIENTS), inserts)
            .await?;
        stage.remove(place.installation).await?;
        anyhow::Ok(measured)
    };
    let (without, _) = measure(Wakeup::Nothing).await?;
    let (beside, cost) = measure(Wakeup::Postrider).await?;
    Ok(Beside {
        without_a_second: without.a_second,
        transactions_a_second: beside.a_second,
        producing_us: cost.producing,
        relaying_us: cost.relaying,
        daemon_us: cost.daemon,
        broker_us: cost.broker,
    })
}
