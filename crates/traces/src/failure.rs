//! Why the collector did not take spans, and whether it may take them later.

use std::error::Error as _;

use tonic::{Code, Status};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Nothing came back in time.
    #[error("no answer within {0:?} ([tracing] timeout)")]
    Silence(std::time::Duration),
    /// There is no connection, or the collector said that another attempt may succeed.
    #[error("{0}")]
    Transient(String),
    /// The collector will not take these spans, however often they are sent.
    #[error("{0}")]
    Refused(String),
}

impl Failure {
    pub(crate) fn of(status: &Status) -> Self {
        let text = said(status);
        if is_transient(status.code(), status.source().is_some()) {
            Self::Transient(text)
        } else {
            Self::Refused(text)
        }
    }
}

/// OTLP's own list of codes that a sender shall try again on. What has a cause in this process was said by nobody at
/// the other end: the connection failed.
fn is_transient(code: Code, here: bool) -> bool {
    match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss
        | Code::ResourceExhausted => true,
        Code::Unknown | Code::Internal => here,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Unauthenticated => false,
    }
}

/// With all causes: that of the library alone is "transport error".
fn said(status: &Status) -> String {
    let mut text = match (status.message(), status.source()) {
        ("", None) => status.code().description().to_owned(),
        (message, None) => format!("{message} ({:?})", status.code()),
        (message, Some(_)) => message.to_owned(),
    };
    let mut cause = status.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_collector_refuses_is_not_sent_again_and_a_broken_connection_is() {
        let refused = Failure::of(&Status::invalid_argument("no"));
        assert!(matches!(refused, Failure::Refused(_)), "{refused}");
        let overloaded = Failure::of(&Status::resource_exhausted("later"));
        assert!(matches!(overloaded, Failure::Transient(_)), "{overloaded}");
        let mut broken = Status::unknown("transport error");
        assert!(matches!(Failure::of(&broken), Failure::Refused(_)));
        broken.set_source(std::sync::Arc::new(std::io::Error::other("reset")));
        let broken = Failure::of(&broken);
        assert!(matches!(broken, Failure::Transient(_)));
        assert_eq!(broken.to_string(), "transport error: reset");
    }
}
