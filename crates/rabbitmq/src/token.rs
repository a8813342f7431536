//! A file with a token of OAuth 2, which is given in place of a password and expires.
//!
//! Whoever renews it writes a new one over the old one; so the file is looked at again and again, and read by its
//! content: a mounted secret may keep its modification time.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tracing::{info, warn};

/// No token is longer; whoever names `/dev/zero` shall hear of it.
const MAX_BYTES: u64 = 64 * 1024;
/// With less than this to go, in seconds, somebody should have renewed it.
const LATE_SECONDS: i64 = 60;
/// How long a connect waits for a file system that does not answer, before it goes by what was read before.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// A file with one JSON Web Token. Clones share what was read. Nothing of the token is in the `Debug` output.
#[derive(Clone)]
pub struct TokenFile(Arc<Inner>);

struct Inner {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    token: Token,
    /// Why the file is of no use since the last look; the token is the one before.
    trouble: Option<String>,
    warned_of_expiry: bool,
}

/// A token as it was in the file. Secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    secret: Arc<str>,
    expires: Option<i64>,
}

/// Why a file gives no token. Nothing of its content is in the text, and neither is its name.
#[derive(Debug, thiserror::Error)]
pub enum TokenFault {
    /// There is no such file.
    #[error("the file it names does not exist")]
    Missing,
    /// This user may not read it.
    #[error("the file it names cannot be read by the user this runs as (permission denied)")]
    Forbidden,
    /// The operating system said something else.
    #[error("the file it names cannot be read: {0}")]
    Unreadable(std::io::Error),
    /// No token is that long.
    #[error("the file is larger than {0} bytes: it holds no token")]
    TooLarge(u64),
    /// Nothing is in it.
    #[error("the file is empty")]
    Empty,
    /// Something else is in it.
    #[error(
        "the file holds no JSON Web Token: three parts in base64url with dots between them are expected, and nothing else"
    )]
    NotAToken,
}

impl TokenFile {
    /// Reads the file. A token that has expired is taken: the file may hold another one soon.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn new(path: PathBuf) -> Result<Self, TokenFault> {
        let token = read(&path)?;
        Ok(Self(Arc::new(Inner {
            path,
            state: Mutex::new(State {
                token,
                trouble: None,
                warned_of_expiry: false,
            }),
        })))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// When the token that was read last expires, in seconds since the epoch, as it says itself: nobody has verified
    /// it here. `None` where it does not say.
    #[must_use]
    pub fn expires(&self) -> Option<i64> {
        self.token().expires
    }

    /// Whether the token that was read last has expired, by the clock of this machine.
    #[must_use]
    pub fn has_expired(&self) -> bool {
        self.token().has_expired()
    }

    /// Reads the file. The log says what came of it: `token_read` for another token, once for each trouble
    /// `token_unusable`, with which the token before stays, and once for each token `token_expires`. Blocks on the
    /// file system.
    pub fn look(&self) {
        let found = read(&self.0.path);
        let file = self.0.path.display();
        let mut state = self.state();
        match found {
            Ok(token) => {
                state.trouble = None;
                if token != state.token {
                    info!(
                        event = "token_read",
                        peer = "broker",
                        %file,
                        "the token file holds another token"
                    );
                    state.token = token;
                    state.warned_of_expiry = false;
                }
            }
            Err(fault) => {
                let fault = fault.to_string();
                if state.trouble.as_ref() != Some(&fault) {
                    warn!(
                        event = "token_unusable",
                        peer = "broker",
                        %file,
                        error = fault,
                        "the token file cannot be used; the token that was read before stays in use"
                    );
                    state.trouble = Some(fault);
                }
            }
        }
        let left = state.token.expires.map(|expires| expires - unix_now());
        if let Some(left) = left.filter(|left| *left < LATE_SECONDS)
            && !state.warned_of_expiry
        {
            state.warned_of_expiry = true;
            warn!(
                event = "token_expires",
                peer = "broker",
                %file,
                left_s = left,
                "the token for the broker expires, or has expired, and nobody has put another one into its file"
            );
        }
    }

    /// The token to use now, after a look at the file.
    pub(crate) async fn current(&self) -> Token {
        let this = self.clone();
        let look = tokio::task::spawn_blocking(move || this.look());
        // Too late, or while the runtime shuts down: what was read before is good enough.
        let _ = tokio::time::timeout(LOOK_TIMEOUT, look).await;
        self.token()
    }

    fn token(&self) -> Token {
        self.state().token.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TokenFile").field(&self.0.path).finish()
    }
}

impl Token {
    fn parse(text: &str) -> Result<Self, TokenFault> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TokenFault::Empty);
        }
        let mut parts = text.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenFault::NotAToken);
        };
        decoded(header)?;
        decoded(signature)?;
        let claims: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&decoded(claims)?).map_err(|_| TokenFault::NotAToken)?;
        // RFC 7519, section 4.1.4: a number of seconds, which may have a fraction.
        let expires = claims.get("exp").and_then(serde_json::Value::as_f64);
        Ok(Self {
            secret: text.into(),
            expires: expires.map(|seconds| seconds as i64),
        })
    }

    /// To log in with, or to hand over.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    pub(crate) fn expires(&self) -> Option<i64> {
        self.expires
    }

    pub(crate) fn has_expired(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= unix_now())
    }
}

fn decoded(part: &str) -> Result<Vec<u8>, TokenFault> {
    URL_SAFE_NO_PAD
        .decode(part.trim_end_matches('='))
        .map_err(|_| TokenFault::NotAToken)
}

fn read(path: &Path) -> Result<Token, TokenFault> {
    let unreadable = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => TokenFault::Missing,
        ErrorKind::PermissionDenied => TokenFault::Forbidden,
        _ => TokenFault::Unreadable(error),
    };
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(unreadable)?
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(TokenFault::TooLarge(MAX_BYTES));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| TokenFault::NotAToken)?;
    Token::parse(text)
}

pub(crate) fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", part("{}"), part(claims), part("signature"))
    }

    fn expiry(claims: &str) -> Option<i64> {
        Token::parse(&token(claims)).unwrap().expires
    }

    #[test]
    fn the_expiry_is_what_the_token_says() {
        assert_eq!(expiry(r#"{"exp": 1700000000}"#), Some(1_700_000_000));
        assert_eq!(expiry(r#"{"exp": 1700000000.75}"#), Some(1_700_000_000));
        assert_eq!(expiry("{}"), None);
        assert_eq!(expiry(r#"{"exp": "soon"}"#), None);
        let expired = Token::parse(&token(r#"{"exp": 1}"#)).unwrap();
        assert!(expired.has_expired());
        assert!(!Token::parse(&token("{}")).unwrap().has_expired());
    }

    #[test]
    fn what_surrounds_a_token_is_not_part_of_it() {
        let text = token("{}");
        let parsed = Token::parse(&format!("{text}\n")).unwrap();
        assert_eq!(parsed.secret(), text);
    }

    #[test]
    fn what_is_no_token_is_refused_without_a_word_of_it() {
        let two_lines = format!("{}\n{}", token("{}"), token("{}"));
        let no_object = token("[]");
        for text in ["hunter2", "a.b", "a.b.c.d", "h.!.s", &two_lines, &no_object] {
            let Err(fault) = Token::parse(text) else {
                panic!("taken: {text}");
            };
            assert!(matches!(fault, TokenFault::NotAToken), "{fault:?}");
            assert!(!fault.to_string().contains("hunter2"));
        }
        assert!(matches!(Token::parse(" \n"), Err(TokenFault::Empty)));
    }

    #[test]
    fn a_file_that_becomes_useless_leaves_the_token_that_was_read_before() {
        let path = std::env::temp_dir().join(format!("token-{}", uuid::Uuid::new_v4()));
        assert!(matches!(
            TokenFile::new(path.clone()),
            Err(TokenFault::Missing)
        ));
        std::fs::write(&path, token(r#"{"exp": 1}"#)).unwrap();
        let file = TokenFile::new(path.clone()).unwrap();
        for useless in ["", "garbage"] {
            std::fs::write(&path, useless).unwrap();
            file.look();
            assert_eq!(file.expires(), Some(1));
        }
        std::fs::remove_file(&path).unwrap();
        file.look();
        assert_eq!(file.expires(), Some(1));
        std::fs::write(&path, token(r#"{"exp": 2}"#)).unwrap();
        file.look();
        assert_eq!(file.expires(), Some(2));
        std::fs::remove_file(&path).unwrap();
        assert!(!format!("{file:?}").contains(&token(r#"{"exp": 2}"#)));
    }
}
