//! From files to what a connection is made with.

use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, InconsistentKeys, RootCertStore};

use crate::error::{FileError, FileFault};
use crate::files::Contents;
use crate::settings::{Mode, Settings};
use crate::verify::AnyName;

/// What connections are made with until the files change.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) config: Arc<ClientConfig>,
    /// When the first of the certificates in `cert_file` expires, in seconds since the epoch.
    pub(crate) expires: Option<i64>,
}

/// Makes it of the files' contents, and of the system's authorities where no file names others.
pub(crate) fn load(settings: &Settings, contents: &Contents) -> Result<Loaded, FileError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let setup =
        |error: rustls::Error| failed(settings, "mode", FileFault::Setup(error.to_string()));
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(setup)?
        .dangerous()
        .with_custom_certificate_verifier(verifier(settings, contents, &provider)?);
    let (mut config, expires) = match &contents.client {
        None => (builder.with_no_client_auth(), None),
        Some((certificate, key)) => {
            let chain = certificates(settings, "cert_file", certificate)?;
            let expires = earliest_expiry(settings, &chain)?;
            let key = private_key(settings, key)?;
            check_client(settings, &chain, &key, &provider)?;
            let config = builder.with_client_auth_cert(chain, key).map_err(setup)?;
            (config, Some(expires))
        }
    };
    config.resumption = Resumption::disabled();
    Ok(Loaded {
        config: Arc::new(config),
        expires,
    })
}

fn verifier(
    settings: &Settings,
    contents: &Contents,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, FileError> {
    let algorithms = provider.signature_verification_algorithms;
    match settings.mode {
        Mode::Require => Ok(Arc::new(AnyName {
            authorities: None,
            algorithms,
        })),
        Mode::VerifyCa => Ok(Arc::new(AnyName {
            authorities: Some(Arc::new(authorities(settings, contents)?)),
            algorithms,
        })),
        Mode::VerifyFull => {
            let authorities = Arc::new(authorities(settings, contents)?);
            let verifier =
                WebPkiServerVerifier::builder_with_provider(authorities, Arc::clone(provider))
                    .build()
                    .map_err(|error| {
                        failed(settings, "ca_file", FileFault::Setup(error.to_string()))
                    })?;
            Ok(verifier)
        }
    }
}

fn authorities(settings: &Settings, contents: &Contents) -> Result<RootCertStore, FileError> {
    let mut store = RootCertStore::empty();
    match &contents.authorities {
        Some(pem) => {
            let certificates = certificates(settings, "ca_file", pem)?;
            for (index, certificate) in certificates.into_iter().enumerate() {
                store.add(certificate).map_err(|error| {
                    let fault = bad_certificate(index, error);
                    failed(settings, "ca_file", fault)
                })?;
            }
        }
        None => {
            // Some that cannot be read, or are of an old form, are in many a system's store: the others do.
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if store.is_empty() {
                return Err(failed(settings, "ca_file", FileFault::NoSystemAuthorities));
            }
        }
    }
    Ok(store)
}

fn certificates(
    settings: &Settings,
    key: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| failed(settings, key, FileFault::Damaged))?;
    if certificates.is_empty() {
        return Err(failed(settings, key, FileFault::NoCertificate));
    }
    Ok(certificates)
}

fn private_key(settings: &Settings, pem: &[u8]) -> Result<PrivateKeyDer<'static>, FileError> {
    use rustls::pki_types::pem::Error;
    let fault = match PrivateKeyDer::from_pem_slice(pem) {
        Ok(key) => return Ok(key),
        Err(_) if is_encrypted(pem) => FileFault::EncryptedKey,
        Err(Error::NoItemsFound) => FileFault::NoKey,
        Err(_) => FileFault::Damaged,
    };
    Err(failed(settings, "key_file", fault))
}

/// PKCS #8 and the older form of OpenSSL say so, each in its own way.
fn is_encrypted(pem: &[u8]) -> bool {
    let text = String::from_utf8_lossy(pem);
    text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED")
}

fn check_client(
    settings: &Settings,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<(), FileError> {
    let bad_key = |fault| failed(settings, "key_file", fault);
    let signing = provider
        .key_provider
        .load_private_key(key.clone_key())
        .map_err(|error| bad_key(FileFault::BadKey(error.to_string())))?;
    match CertifiedKey::new(chain.to_vec(), signing).keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err(bad_key(FileFault::KeyMismatch)),
        Err(error) => Err(failed(settings, "cert_file", bad_certificate(0, error))),
    }
}

fn earliest_expiry(
    settings: &Settings,
    chain: &[CertificateDer<'static>],
) -> Result<i64, FileError> {
    let mut earliest = i64::MAX;
    for (index, certificate) in chain.iter().enumerate() {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|error| failed(settings, "cert_file", bad_certificate(index, error)))?;
        earliest = earliest.min(parsed.validity().not_after.timestamp());
    }
    Ok(earliest)
}

fn bad_certificate(index: usize, error: impl std::fmt::Display) -> FileFault {
    FileFault::BadCertificate {
        number: index.saturating_add(1),
        reason: error.to_string(),
    }
}

fn failed(settings: &Settings, key: &'static str, fault: FileFault) -> FileError {
    let client = settings.client.as_ref();
    FileError {
        peer: settings.peer,
        key,
        path: match key {
            "ca_file" => settings.ca_file.clone(),
            "cert_file" => client.map(|files| files.certificate.clone()),
            "key_file" => client.map(|files| files.key.clone()),
            _ => None,
        },
        fault,
    }
}
