//! A transaction that holds a write lock on a table, named by its virtual transaction id.

use std::str::FromStr;

/// The virtual transaction id of an open transaction, as `pg_locks.virtualtransaction` shows it:
/// `3/1234`.
///
/// It names one transaction, not its connection, and is never given twice within one run of the
/// server; after a restart it is (`pg_locks`, in the manual's chapter on system views). So nothing
/// that was noted may outlive the session it was noted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writer {
    backend: i32,
    transaction: u32,
}

/// The id that a transaction gets with its first row: an `xid8`, and so never given twice. By this, and not by its name, a snapshot tells
/// whether it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(pub i64);

/// A text that is no virtual transaction id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no virtual transaction id; it should read like 3/1234: is this server PostgreSQL?"
)]
pub struct WriterError {
    text: String,
}

impl Writer {
    /// The transaction with this number of this backend.
    #[must_use]
    pub const fn new(backend: i32, transaction: u32) -> Self {
        Self {
            backend,
            transaction,
        }
    }
}

impl FromStr for Writer {
    type Err = WriterError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (backend, transaction) = text.split_once('/')?;
            Some(Self::new(backend.parse().ok()?, transaction.parse().ok()?))
        };
        parse().ok_or_else(|| WriterError {
            text: text.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_transaction_id_is_read_as_postgresql_writes_it() {
        assert_eq!("3/1234".parse(), Ok(Writer::new(3, 1234)));
        // A prepared transaction after a restart.
        assert_eq!("-1/739".parse(), Ok(Writer::new(-1, 739)));
        assert_eq!("7/4294967295".parse(), Ok(Writer::new(7, u32::MAX)));
        for text in ["", "3", "3/", "/4", "3/-4", "3/4/5"] {
            assert!(text.parse::<Writer>().is_err(), "{text}");
        }
    }
}
