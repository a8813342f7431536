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

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<String, String> {
        let given = Given::Text(text.to_owned());
        Header.parse(&given).map(|value| Header.show(&value))
    }

    #[test]
    fn a_name_is_taken_as_it_is_and_off_leaves_the_header_out() {
        assert_eq!(parsed("x-key"), Ok("\"x-key\"".to_owned()));
        assert_eq!(parsed("Größe"), Ok("\"Größe\"".to_owned()));
        assert_eq!(parsed("off"), Ok("\"off\"".to_owned()));
        let off = Header.parse(&Given::Variable("off".to_owned()));
        assert_eq!(off, Ok(None));
    }

    #[test]
    fn what_is_no_name_is_refused_and_the_way_to_leave_it_out_is_told() {
        let long = "a".repeat(256);
        for text in ["", "CC", "BCC", long.as_str()] {
            let refused = parsed(text).unwrap_err();
            assert!(refused.contains("\"off\""), "{refused}");
        }
        assert!(parsed(&"a".repeat(255)).is_ok());
        let refused = parsed("a\nb").unwrap_err();
        assert!(refused.contains("a\\nb"), "{refused}");
        let refused = Header.parse(&Given::Boolean(false)).unwrap_err();
        assert!(
            refused.contains("\"off\"") && refused.contains("boolean"),
            "{refused}"
        );
    }
}
