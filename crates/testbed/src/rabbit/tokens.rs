//! Logins by tokens of OAuth 2, from an issuer of a test's own.

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_ED25519, SigningKey};
use serde_json::json;

use super::{RabbitOptions, RabbitServer, eval::erlang_binary};

/// What tokens have to be meant for.
const AUDIENCE: &str = "rabbitmq";

/// Signs tokens. No broker trusts it but who is told to.
pub struct TokenIssuer(KeyPair);

impl TokenIssuer {
    /// A new one, unlike all others.
    ///
    /// # Errors
    /// None in practice.
    pub fn new() -> Result<Self> {
        Ok(Self(KeyPair::generate_for(&PKCS_ED25519)?))
    }

    /// A token with these scopes (`rabbitmq.write:VHOST/EXCHANGE/ROUTING_KEY`), until then, in seconds since the epoch. No two
    /// are alike.
    ///
    /// # Errors
    /// None in practice.
    pub fn token(&self, scopes: &[&str], expires: u64) -> Result<String> {
        let header = json!({ "alg": "EdDSA", "typ": "JWT" });
        let claims = json!({
            "jti": uuid::Uuid::now_v7().simple().to_string(),
            "sub": "relay",
            "aud": AUDIENCE,
            "scope": scopes,
            "exp": expires,
        });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes())?);
        Ok(format!("{signed}.{signature}"))
    }
}

impl RabbitOptions {
    /// A broker that lets clients log in by token as well.
    pub fn with_logins_by_token() -> Self {
        Self {
            config: vec![
                "auth_backends.1 = internal".to_owned(),
                "auth_backends.2 = rabbit_auth_backend_oauth2".to_owned(),
                format!("auth_oauth2.resource_server_id = {AUDIENCE}"),
            ],
            plugins: vec!["rabbitmq_auth_backend_oauth2".to_owned()],
        }
    }
}

impl RabbitServer {
    /// Accepts the tokens of this issuer, until the broker ends. Channels opened from now on look every
    /// second whether their token is still valid, and not every minute.
    ///
    /// # Errors
    /// The broker is not there or refuses.
    pub async fn trust(&self, issuer: &TokenIssuer) -> Result<()> {
        let key = erlang_binary(&URL_SAFE_NO_PAD.encode(issuer.0.public_key_raw()));
        self.expect_ok(&format!(
            "application:set_env(rabbit, channel_tick_interval, 1000), \
             application:set_env(rabbitmq_auth_backend_oauth2, key_config, \
             [{{default_key, <<\"testbed\">>}}, {{signing_keys, #{{<<\"testbed\">> => {{map, \
             #{{<<\"kty\">> => <<\"OKP\">>, <<\"crv\">> => <<\"Ed25519\">>, <<\"x\">> => {key}}}}}}}}}])."
        ))
        .await
    }
}
