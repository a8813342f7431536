//! Numbers of bytes.

use super::{Given, Kind, echo, expected, quoted};

/// A number of bytes.
pub(crate) struct Size {
    pub(crate) min: u64,
    pub(crate) max: u64,
}

impl Kind for Size {
    type Value = u64;

    fn parse(&self, given: &Given) -> Result<u64, String> {
        let (bytes, said) = match given {
            Given::Integer(number) => (
                u64::try_from(*number).map_err(|_| self.out_of_range(&number.to_string()))?,
                number.to_string(),
            ),
            Given::Text(text) | Given::Variable(text) => (
                text.trim()
                    .parse::<bytesize::ByteSize>()
                    .map_err(|_| {
                        format!(
                            "{} is not a size: write a number of bytes, \"8MiB\" or \"8MB\"",
                            echo(text)
                        )
                    })?
                    .as_u64(),
                text.clone(),
            ),
            Given::Float(_) | Given::Boolean(_) | Given::List(_) | Given::Other(_) => {
                return Err(expected(
                    "a size: a number of bytes, \"8MiB\" or \"8MB\"",
                    given,
                ));
            }
        };
        if (self.min..=self.max).contains(&bytes) {
            Ok(bytes)
        } else {
            Err(self.out_of_range(&said))
        }
    }

    fn show(&self, value: &u64) -> String {
        let shown = show_size(*value);
        if shown.bytes().all(|b| b.is_ascii_digit()) {
            shown
        } else {
            quoted(&shown)
        }
    }
}

impl Size {
    fn out_of_range(&self, said: &str) -> String {
        format!(
            "{} is out of range: {} to {} is possible",
            echo(said),
            in_bytes(self.min),
            in_bytes(self.max)
        )
    }
}

/// The size in the largest unit that divides it, so that nothing is rounded.
fn show_size(bytes: u64) -> String {
    for (unit, name) in [
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
        (1_000_000_000, "GB"),
        (1_000_000, "MB"),
        (1_000, "kB"),
    ] {
        if bytes != 0 && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    bytes.to_string()
}

fn in_bytes(bytes: u64) -> String {
    match bytes {
        1 => "1 byte".to_owned(),
        _ => show_size(bytes),
    }
}
