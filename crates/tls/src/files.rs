//! The files as they are now, before anything is made of them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{FileError, FileFault};
use crate::settings::{Peer, Settings};

/// A bundle of all authorities there are has some 250 kB; whoever names `/dev/zero` shall hear of it.
const MAX_BYTES: u64 = 4 << 20;

/// The contents of the files that the settings name.
pub(crate) struct Contents {
    pub(crate) authorities: Option<Vec<u8>>,
    /// Certificate and key.
    pub(crate) client: Option<(Vec<u8>, Vec<u8>)>,
}

/// What was found, to see whether it is something else the next time: contents, or why there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    Contents([u8; 32]),
    Trouble(String),
}

impl Contents {
    /// Reads them all anew. They are small: modification times, which a copy or a mounted secret may leave as they
    /// were, are not asked.
    pub(crate) fn read(settings: &Settings) -> Result<Self, FileError> {
        let read = |key, path: &Path| read(settings.peer, key, path);
        let authorities = settings.ca_file.as_deref();
        let client = settings.client.as_ref();
        Ok(Self {
            authorities: authorities.map(|path| read("ca_file", path)).transpose()?,
            client: client
                .map(|files| {
                    Ok((
                        read("cert_file", &files.certificate)?,
                        read("key_file", &files.key)?,
                    ))
                })
                .transpose()?,
        })
    }

    pub(crate) fn seen(&self) -> Seen {
        let mut hash = Sha256::new();
        let client = self.client.as_ref();
        let parts = [
            self.authorities.as_ref(),
            client.map(|(certificate, _)| certificate),
            client.map(|(_, key)| key),
        ];
        for part in parts.into_iter().flatten() {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        Seen::Contents(hash.finalize().into())
    }
}

fn read(peer: Peer, key: &'static str, path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |fault| FileError {
        peer,
        key,
        path: Some(path.to_owned()),
        fault,
    };
    let unreadable = |error: io::Error| {
        failed(match error.kind() {
            io::ErrorKind::NotFound => FileFault::Missing,
            io::ErrorKind::PermissionDenied => FileFault::Forbidden,
            _ => FileFault::Unreadable(error),
        })
    };
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(unreadable)?
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(failed(FileFault::TooLarge(MAX_BYTES)));
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(failed(FileFault::Empty));
    }
    Ok(bytes)
}
