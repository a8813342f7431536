//! Users and what they may do.

use anyhow::Result;

use super::{RabbitServer, eval::erlang_binary};

impl RabbitServer {
    /// Adds a user without any rights.
    ///
    /// # Errors
    /// The broker is not there or refuses.
    pub async fn add_user(&self, name: &str, password: &str) -> Result<()> {
        self.expect_ok(&format!(
            "rabbit_auth_backend_internal:add_user({}, {}, <<\"testbed\">>).",
            erlang_binary(name),
            erlang_binary(password)
        ))
        .await
    }

    /// Sets a user's rights in a virtual host: regular expressions for configure, write and read.
    ///
    /// # Errors
    /// The broker is not there or refuses.
    pub async fn set_permissions(
        &self,
        user: &str,
        vhost: &str,
        configure: &str,
        write: &str,
        read: &str,
    ) -> Result<()> {
        self.expect_ok(&format!(
            "rabbit_auth_backend_internal:set_permissions({}, {}, {}, {}, {}, <<\"testbed\">>).",
            erlang_binary(user),
            erlang_binary(vhost),
            erlang_binary(configure),
            erlang_binary(write),
            erlang_binary(read)
        ))
        .await
    }
}
