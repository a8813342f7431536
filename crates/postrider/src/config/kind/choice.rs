//! One of a few possibilities.

use super::{Given, Kind, echo, expected, quoted};

/// On or off.
pub(crate) struct Switch;

impl Kind for Switch {
    type Value = bool;

    fn parse(&self, given: &Given) -> Result<bool, String> {
        match given {
            Given::Boolean(on) => Ok(*on),
            Given::Variable(text) => match text.as_str() {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(format!("{} is neither `true` nor `false`", echo(text))),
            },
            Given::Text(_)
            | Given::Integer(_)
            | Given::Float(_)
            | Given::List(_)
            | Given::Other(_) => Err(expected("true or false (without quotes)", given)),
        }
    }

    fn show(&self, value: &bool) -> String {
        value.to_string()
    }
}

/// One of a few words.
pub(crate) struct OneOf<T: 'static>(pub(crate) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Kind for OneOf<T> {
    type Value = T;

    fn parse(&self, given: &Given) -> Result<T, String> {
        let text = given.text().ok_or_else(|| expected("a string", given))?;
        self.0
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let names: Vec<_> = self.0.iter().map(|(name, _)| quoted(name)).collect();
                format!("{} is not one of {}", echo(text), names.join(", "))
            })
    }

    fn show(&self, value: &T) -> String {
        self.0
            .iter()
            .find(|(_, candidate)| candidate == value)
            .map_or_else(String::new, |(name, _)| quoted(name))
    }
}
