//! The certificates in use, and the look whether there are others by now.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tracing::{info, warn};

use crate::error::FileError;
use crate::files::{Contents, Seen};
use crate::load::{Loaded, load};
use crate::settings::Settings;

/// TLS to one peer: what new connections are made with. Clones share it.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    settings: Settings,
    state: Mutex<State>,
}

struct State {
    loaded: Loaded,
    seen: Seen,
}

/// What a look at the files found.
#[derive(Debug)]
pub enum Look {
    /// They are as they were at the last look.
    Unchanged,
    /// They are others, and new connections use them.
    Changed,
    /// They are others and cannot be used: new connections use what was read before.
    Unusable(FileError),
}

impl Tls {
    /// Reads the files. They can be read again with [`Tls::reload`], and are by [`Tls::current`].
    ///
    /// # Errors
    /// The first of the files that cannot be used; it names the key, the file and what would be right.
    pub fn new(settings: Settings) -> Result<Self, FileError> {
        let contents = Contents::read(&settings)?;
        let state = State {
            loaded: load(&settings, &contents)?,
            seen: contents.seen(),
        };
        Ok(Self(Arc::new(Inner {
            settings,
            state: Mutex::new(state),
        })))
    }

    /// What was decided.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// What to connect with now, after a look at the files. A file system that does not answer makes it wait: bound
    /// it with the rest of the connect.
    pub async fn current(&self) -> Arc<ClientConfig> {
        let this = self.clone();
        // It fails only while the runtime shuts down; then what was read before is good enough.
        let _ = tokio::task::spawn_blocking(move || this.look()).await;
        Arc::clone(&self.state().loaded.config)
    }

    /// Looks at the files and reads those that changed. The log says so: `certificates_read`, or once for each
    /// change `certificate_unusable`. Blocks on the file system.
    pub fn look(&self) -> Look {
        self.read_again(false)
    }

    /// Reads the files whether they changed or not, and with them what the operating system trusts. The log says
    /// what came of it. Blocks on the file system.
    ///
    /// # Errors
    /// When what is there cannot be used: then what was read before stays in use.
    pub fn reload(&self) -> Result<(), FileError> {
        match self.read_again(true) {
            Look::Unchanged | Look::Changed => Ok(()),
            Look::Unusable(error) => Err(error),
        }
    }

    fn read_again(&self, anyway: bool) -> Look {
        let settings = &self.0.settings;
        let contents = Contents::read(settings);
        let seen = match &contents {
            Ok(contents) => contents.seen(),
            Err(error) => Seen::Trouble(error.to_string()),
        };
        let mut state = self.state();
        if seen == state.seen && !anyway {
            return Look::Unchanged;
        }
        state.seen = seen;
        match contents.and_then(|contents| load(settings, &contents)) {
            Ok(loaded) => {
                state.loaded = loaded;
                info!(
                    event = "certificates_read",
                    peer = settings.peer.as_str(),
                    "certificates were read again; new connections use them, open ones keep theirs"
                );
                Look::Changed
            }
            Err(error) => {
                warn!(
                    event = "certificate_unusable",
                    peer = settings.peer.as_str(),
                    %error,
                    "a certificate cannot be used; those that were read before stay in use"
                );
                Look::Unusable(error)
            }
        }
    }

    /// When the client certificate expires, or one of those behind it in `cert_file` if that is earlier, in seconds
    /// since the epoch. `None` where none is configured.
    #[must_use]
    pub fn client_certificate_expires(&self) -> Option<i64> {
        self.state().loaded.expires
    }

    /// The name to verify and to ask for, when connecting to this host.
    ///
    /// # Errors
    /// When it is neither a DNS name nor an IP address.
    pub fn server_name(
        &self,
        host: &str,
    ) -> Result<ServerName<'static>, rustls::pki_types::InvalidDnsNameError> {
        ServerName::try_from(self.name(host).to_owned())
    }

    /// [`Tls::server_name`] as it was written.
    #[must_use]
    pub fn name<'a>(&'a self, host: &'a str) -> &'a str {
        self.0.settings.server_name.as_deref().unwrap_or(host)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.0.settings).finish()
    }
}

/// Whether this can be a server's name: a DNS name or an IP address.
#[must_use]
pub fn is_server_name(name: &str) -> bool {
    ServerName::try_from(name).is_ok()
}
