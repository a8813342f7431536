//! The name of a header that the relay adds.

use super::{Given, Kind, echo, expected, quoted};

/// AMQP carries names of headers as short strings.
const MOST_BYTES: usize = 255;

/// The name of a header, or `off`.
pub(crate) struct HeaderName;

impl Kind for HeaderName {
    type Value = Option<String>;

    fn parse(&self, given: &Given) -> Result<Option<String>, String> {
        let text = given
            .text()
            .ok_or_else(|| expected("a name such as \"x-ordering-key\", or \"off\"", given))?;
        if text == "off" {
            return Ok(None);
        }
        if text.is_empty() || text.len() > MOST_BYTES {
            return Err(format!(
                "has {} bytes: a header's name has 1 to {MOST_BYTES}; \"off\" leaves the header out",
                text.len()
            ));
        }
        // RabbitMQ takes these for its own.
        if ["CC", "BCC"].contains(&text) || text.chars().any(char::is_control) {
            return Err(format!("{} is not a name for this header", echo(text)));
        }
        Ok(Some(text.to_owned()))
    }

    fn show(&self, value: &Option<String>) -> String {
        quoted(value.as_deref().unwrap_or("off"))
    }
}
