//! Numbers, whole or not.

use super::{Given, Kind, echo, expected};

/// A whole number within bounds.
pub(crate) struct Integer {
    pub(crate) min: u32,
    pub(crate) max: u32,
}

impl Kind for Integer {
    type Value = u32;

    fn parse(&self, given: &Given) -> Result<u32, String> {
        let Self { min, max } = *self;
        let number = match given {
            Given::Integer(number) => *number,
            Given::Variable(text) => text.parse().map_err(|_| {
                format!(
                    "{} is not a whole number: {min} to {max} is possible",
                    echo(text)
                )
            })?,
            Given::Text(_)
            | Given::Float(_)
            | Given::Boolean(_)
            | Given::List(_)
            | Given::Other(_) => {
                return Err(expected("an integer (without quotes)", given));
            }
        };
        u32::try_from(number)
            .ok()
            .filter(|n| (min..=max).contains(n))
            .ok_or_else(|| format!("{number} is out of range: {min} to {max} is possible"))
    }

    fn show(&self, value: &u32) -> String {
        value.to_string()
    }
}

/// A number within bounds, whole or not.
pub(crate) struct Number {
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Kind for Number {
    type Value = f64;

    fn parse(&self, given: &Given) -> Result<f64, String> {
        let Self { min, max } = *self;
        let (number, said) = match given {
            // Further from zero than any bound, where an f64 could not hold it exactly.
            Given::Integer(number) => (
                i32::try_from(*number).map_or(f64::INFINITY, f64::from),
                number.to_string(),
            ),
            Given::Float(number) => (*number, number.to_string()),
            Given::Variable(text) => {
                let number = text.trim().parse().map_err(|_| {
                    format!("{} is not a number: {min} to {max} is possible", echo(text))
                })?;
                (number, text.clone())
            }
            Given::Text(_) | Given::Boolean(_) | Given::List(_) | Given::Other(_) => {
                return Err(expected("a number (without quotes)", given));
            }
        };
        if (min..=max).contains(&number) {
            Ok(number)
        } else {
            Err(format!(
                "{} is out of range: {min} to {max} is possible",
                echo(&said)
            ))
        }
    }

    fn show(&self, value: &f64) -> String {
        // With its decimal point: without it TOML would take it for an integer.
        format!("{value:?}")
    }
}
