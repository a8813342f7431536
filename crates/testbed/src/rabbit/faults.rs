//! What goes wrong with a broker that runs.

use std::time::Duration;

use anyhow::Result;

use super::{
    MEMORY_WATERMARK, RabbitServer,
    eval::{erlang_binary, erlang_string},
};
use crate::wait_until;

impl RabbitServer {
    /// Closes all AMQP connections from the broker's side, with this reason (320, CONNECTION_FORCED).
    ///
    /// # Errors
    /// The broker is not there.
    pub async fn close_connections(&self, reason: &str) -> Result<()> {
        self.eval(&format!(
            "[rabbit_networking:close_connection(P, {}) || P <- rabbit_networking:local_connections()].",
            erlang_string(reason)
        ))
        .await?;
        Ok(())
    }

    /// Raises (or lifts) the memory alarm, and returns once it is in force: publishers are blocked from then on.
    ///
    /// # Errors
    /// The broker is not there, or the alarm does not change within a minute.
    pub async fn set_memory_alarm(&self, on: bool) -> Result<()> {
        let watermark = if on { "0.00001" } else { MEMORY_WATERMARK };
        self.eval(&format!(
            "vm_memory_monitor:set_vm_memory_high_watermark({watermark})."
        ))
        .await?;
        let wanted = if on { "true" } else { "false" };
        wait_until(
            Duration::from_secs(60),
            "the memory alarm to change",
            async || {
                self.eval("lists:any(fun({{resource_limit, memory, _}, _}) -> true; (_) -> false end, rabbit_alarm:get_alarms()).")
                    .await
                    .is_ok_and(|answer| answer == wanted)
            },
        )
        .await
    }

    /// Stops the process of a queue: it takes messages into its mailbox and answers nobody.
    ///
    /// # Errors
    /// There is no such queue, or the broker is not there.
    pub async fn suspend_queue(&self, vhost: &str, queue: &str) -> Result<()> {
        self.on_queue("suspend", vhost, queue).await
    }

    /// Lets the process of a suspended queue go on.
    ///
    /// # Errors
    /// There is no such queue, or the broker is not there.
    pub async fn resume_queue(&self, vhost: &str, queue: &str) -> Result<()> {
        self.on_queue("resume", vhost, queue).await
    }

    async fn on_queue(&self, action: &str, vhost: &str, queue: &str) -> Result<()> {
        // The process of a quorum queue is named, that of a classic one is not.
        self.expect_ok(&format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r({}, queue, {})), \
             P = case amqqueue:get_pid(Q) of {{Name, _}} -> Name; Pid -> Pid end, sys:{action}(P), ok.",
            erlang_binary(vhost),
            erlang_binary(queue)
        ))
        .await
    }
}
