//! Ports for TLS beside the broker's own, each with a certificate of its own.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{RabbitOptions, RabbitServer, eval::erlang_string};
use crate::{ports::free_port, tls::Identity};

/// What a port for TLS wants of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Nothing.
    Ignored,
    /// A certificate that the authority has signed; none is refused.
    Required,
}

impl RabbitOptions {
    /// A broker that lets clients log in by the common name of their certificate as well.
    pub fn with_logins_by_certificate() -> Self {
        Self {
            config: [
                "auth_mechanisms.1 = PLAIN",
                "auth_mechanisms.2 = AMQPLAIN",
                "auth_mechanisms.3 = EXTERNAL",
                "ssl_cert_login_from = common_name",
                // The plugin insists on it, whatever a single port has.
                "ssl_options.verify = verify_peer",
            ]
            .map(str::to_owned)
            .to_vec(),
            plugins: vec!["rabbitmq_auth_mechanism_ssl".to_owned()],
        }
    }
}

impl RabbitServer {
    /// Opens one more port, for AMQP by TLS, on a running broker, until that ends; the port. The files, those of the
    /// certificate and that of the authority of clients, are written to `directory`, which has to stay.
    ///
    /// # Errors
    /// The broker is not there or refuses.
    pub async fn open_tls_port(
        &self,
        directory: &Path,
        identity: &Identity,
        authority: &str,
        clients: ClientCertificates,
    ) -> Result<u16> {
        // The broker keeps what it has read under a file's name for two minutes.
        let name = format!("port-{}", uuid::Uuid::now_v7().simple());
        let (certificate, key) = identity.write(directory, &name)?;
        let authorities = directory.join(format!("{name}.authority"));
        std::fs::write(&authorities, authority)?;
        let port = free_port()?;
        let verify = match clients {
            ClientCertificates::Ignored => "{verify, verify_none}",
            ClientCertificates::Required => "{verify, verify_peer}, {fail_if_no_peer_cert, true}",
        };
        let file = |path: &Path| erlang_string(&path.display().to_string());
        let answer = self
            .eval(&format!(
                "{{ok, _}} = application:ensure_all_started(ssl), \
                 rabbit_networking:start_ssl_listener({{\"127.0.0.1\", {port}}}, \
                 [{{certfile, {}}}, {{keyfile, {}}}, {{cacertfile, {}}}, {verify}], 2).",
                file(&certificate),
                file(&key),
                file(&authorities),
            ))
            .await?;
        ensure!(
            answer.contains("ok"),
            "the broker opened no port for TLS: {answer}"
        );
        Ok(port)
    }
}
