//! TLS of a private server, and who may come in by which way.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, chown},
};

use anyhow::{Context, Result};

use super::PostgresServer;
use crate::tls::Identity;

impl PostgresServer {
    /// Shows this certificate from now on to whoever connects.
    ///
    /// # Errors
    /// The server is not there, has no TLS, or belongs to another process.
    pub async fn show_certificate(&self, identity: &Identity) -> Result<()> {
        self.write_certificate(identity)?;
        let client = self.client("postgres").await?;
        client
            .query_one("SELECT pg_reload_conf()", &[])
            .await
            .context("could not reload the configuration")?;
        Ok(())
    }

    /// The lines for `postgresql.conf`.
    pub(super) fn set_up_tls(&self, identity: &Identity, authority: &str) -> Result<String> {
        self.write_certificate(identity)?;
        let authorities = self.data_dir().join("authority.crt");
        fs::write(&authorities, authority)?;
        Ok("ssl = on\nssl_cert_file = 'shown.crt'\nssl_key_file = 'shown.key'\nssl_ca_file = 'authority.crt'\n".to_owned())
    }

    /// The server insists that nobody else may read its key.
    fn write_certificate(&self, identity: &Identity) -> Result<()> {
        let (certificate, key) = identity.write(&self.data_dir(), "shown")?;
        for path in [certificate, key] {
            if let Some(user) = self.own()?.user {
                chown(&path, Some(user.uid), Some(user.gid))?;
            }
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        }
        Ok(())
    }

    pub(super) fn allow(&self, lines: &[String]) -> Result<()> {
        let file = self.data_dir().join("pg_hba.conf");
        let rest = fs::read_to_string(&file)?;
        fs::write(&file, format!("{}\n{rest}", lines.join("\n")))?;
        Ok(())
    }
}
