//! What the script has a publish end with.

use postrider_core::{Failure, Outcome, Reason, Scope};

/// What becomes of one publish of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Taken and confirmed, after so many milliseconds.
    Confirmed { after_ms: u64 },
    /// Taken; the connection ends before the confirm.
    TakenThenLost,
    /// The connection ends before the message is there.
    Lost,
    /// No confirm in time. With [`Scope::Route`] its queue is found to be at fault, with [`Scope::Broker`]
    /// nobody knows.
    Late { scope: Scope, word: Word },
    /// Not taken, and said so.
    Refused(Reason, Scope),
    /// The broker raises an alarm while the message is on its way, for so many milliseconds, and takes it
    /// then.
    Alarm { for_ms: u64 },
}

/// What the broker says in the end of a message that was not confirmed in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// It is taken and confirmed, so many milliseconds later.
    After(u64),
    /// It is not taken, and the broker says so, so many milliseconds later.
    NotTakenAfter(u64),
    /// Whatever the test says; nothing until then, and nothing ever when the connection ends first.
    OnCommand,
}

impl Fate {
    pub(crate) const CONFIRMED: Self = Self::Confirmed { after_ms: 0 };
    pub(crate) const UNROUTABLE: Self = Self::Refused(Reason::Unroutable, Scope::Message);
    pub(crate) const NACKED: Self = Self::Refused(Reason::Nacked, Scope::Route);

    /// Whether the relay hears, soon or late, that the message was taken.
    pub(crate) fn is_confirmed(self) -> bool {
        match self {
            Self::Confirmed { .. } | Self::Alarm { .. } => true,
            Self::Late { word, .. } => matches!(word, Word::After(_)),
            Self::TakenThenLost | Self::Lost | Self::Refused(..) => false,
        }
    }

    /// Whether it is held against the message itself.
    pub(crate) fn is_charged(self) -> bool {
        matches!(self, Self::Refused(..))
    }
}

pub(crate) fn failed(reason: Reason, scope: Scope) -> Outcome {
    Failure::new(reason, format!("{reason}, said the script"))
        .with_scope(scope)
        .into()
}

/// The broker ended the connection: over one of these messages, or ([`Scope::Broker`]) by itself.
pub(crate) fn lost(scope: Scope) -> Outcome {
    failed(Reason::ConnectionLost, scope)
}
