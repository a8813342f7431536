//! An authority of a test's own, and the certificates it signs.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};

/// Signs certificates. Nobody trusts it but who is told to.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, both in PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The private key, in PKCS #8.
    pub key: String,
}

impl Authority {
    /// A new one, unlike all others.
    ///
    /// # Errors
    /// None in practice.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        let name = format!("testbed authority {}", uuid::Uuid::now_v7().simple());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self(CertifiedIssuer::self_signed(
            params,
            KeyPair::generate()?,
        )?))
    }

    /// Its own certificate, in PEM: what others trust.
    pub fn certificate(&self) -> String {
        self.0.pem()
    }

    /// For a server by these names and addresses.
    ///
    /// # Errors
    /// One of them is neither.
    pub fn server(&self, names: &[&str]) -> Result<Identity> {
        self.sign(server_params(names)?)
    }

    /// For a server by these names and addresses, and no longer valid since 2001.
    ///
    /// # Errors
    /// One of them is neither.
    pub fn expired_server(&self, names: &[&str]) -> Result<Identity> {
        let mut params = server_params(names)?;
        expire(&mut params);
        self.sign(params)
    }

    /// For a client, who is called so (CN).
    ///
    /// # Errors
    /// None in practice.
    pub fn client(&self, name: &str) -> Result<Identity> {
        self.sign(client_params(name))
    }

    /// For a client, and no longer valid since 2001.
    ///
    /// # Errors
    /// None in practice.
    pub fn expired_client(&self, name: &str) -> Result<Identity> {
        let mut params = client_params(name);
        expire(&mut params);
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        Ok(Identity {
            certificate: params.signed_by(&key, &self.0)?.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl Identity {
    /// Writes `NAME.crt` and `NAME.key` into a directory, over what is there; their paths.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write(&self, directory: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
        let certificate = directory.join(format!("{name}.crt"));
        let key = directory.join(format!("{name}.key"));
        for (path, text) in [(&certificate, &self.certificate), (&key, &self.key)] {
            fs::write(path, text).with_context(|| format!("could not write {}", path.display()))?;
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
        }
        Ok((certificate, key))
    }
}

fn server_params(names: &[&str]) -> Result<CertificateParams> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn client_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn expire(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2001, 1, 1);
}
