//! How messages with an ordering key are sent.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use lapin::types::ShortString;

/// How messages with an ordering key are sent. The defaults: one of a key at a time, with both headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderingSettings {
    /// How many messages of one key may be unconfirmed at a time. More than one is faster for a hot key, and keeps order only while
    /// nothing is refused and no channel is lost: those behind the refused one may be on their way already.
    pub in_flight_per_key: NonZeroU32,
    /// The header that carries the key, as a string; `None` for none. It takes the place of one of that name in the row.
    pub key_header: Option<HeaderName>,
    /// The header that carries the `seq` of the row, as a signed integer of 64 bits; `None` for none. It takes the place of one of that
    /// name in the row.
    pub seq_header: Option<HeaderName>,
    /// How long after the beginning of a batch messages with a key are begun to be sent; the rest is
    /// [`HeldBack`](postrider_core::Outcome::HeldBack). The first of them are sent however late it is.
    pub budget: Duration,
}

/// The messages of a key wait for each other: 500 of them at 60 ms for a confirm are 30 s, and a session of the database that is ended
/// before that takes all of them back, every time. After this long what is confirmed can be settled, and the price of
/// settling has been spread over enough messages.
const BUDGET: Duration = Duration::from_secs(1);

impl Default for OrderingSettings {
    fn default() -> Self {
        Self {
            in_flight_per_key: NonZeroU32::MIN,
            key_header: Some(HeaderName("x-ordering-key".into())),
            seq_header: Some(HeaderName("x-ordering-seq".into())),
            budget: BUDGET,
        }
    }
}

/// The name of a header that RabbitMQ carries and takes for no instruction to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderName(ShortString);

/// Why a text is not the name of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderNameError {
    /// Nothing in it.
    #[error("a header needs a name")]
    Empty,
    /// More than 255 bytes.
    #[error("{bytes} bytes are too many for the name of a header: AMQP carries 255")]
    TooLong {
        /// How many it has.
        bytes: usize,
    },
    /// `CC` or `BCC`.
    #[error("RabbitMQ takes the headers CC and BCC for further routing keys: choose another name")]
    Reserved,
}

impl HeaderName {
    /// The name, if it can be one.
    ///
    /// # Errors
    /// When it is empty, longer than 255 bytes, or one of those by which a publisher tells RabbitMQ where to route to
    /// (Sender-selected Distribution in RabbitMQ's manual): the broker would refuse every message.
    pub fn new(name: &str) -> Result<Self, HeaderNameError> {
        match name {
            "" => Err(HeaderNameError::Empty),
            "CC" | "BCC" => Err(HeaderNameError::Reserved),
            _ => ShortString::try_new(name)
                .map(Self)
                .map_err(|_| HeaderNameError::TooLong { bytes: name.len() }),
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    pub(crate) fn to_short_string(&self) -> ShortString {
        self.0.clone()
    }
}

impl fmt::Display for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_amqp_cannot_carry_or_the_broker_takes_for_its_own_is_refused() {
        let longest = "n".repeat(255);
        assert_eq!(HeaderName::new(&longest).unwrap().as_str(), longest);
        let too_long = "n".repeat(256);
        for (name, error) in [
            ("", HeaderNameError::Empty),
            (&too_long, HeaderNameError::TooLong { bytes: 256 }),
            ("CC", HeaderNameError::Reserved),
            ("BCC", HeaderNameError::Reserved),
        ] {
            assert_eq!(HeaderName::new(name), Err(error), "{name}");
        }
    }
}
