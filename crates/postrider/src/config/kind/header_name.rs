//! The name of a header that the relay adds.

use postrider_rabbitmq::HeaderName;

use super::{Given, Kind, echo, expected, quoted};

/// The name of a header, or `off`.
pub(crate) struct Header;

impl Kind for Header {
    type Value = Option<HeaderName>;

    fn parse(&self, given: &Given) -> Result<Option<HeaderName>, String> {
        let text = given
            .text()
            .ok_or_else(|| expected("a name such as \"x-ordering-key\", or \"off\"", given))?;
        if text == "off" {
            return Ok(None);
        }
        if text.chars().any(char::is_control) {
            return Err(format!("{} has control characters", echo(text)));
        }
        HeaderName::new(text)
            .map(Some)
            .map_err(|error| format!("{error}; \"off\" leaves the header out"))
    }

    fn show(&self, value: &Option<HeaderName>) -> String {
        quoted(value.as_ref().map_or("off", HeaderName::as_str))
    }
}
