//! An address to listen on.

use std::net::SocketAddr;

use super::{Given, Kind, echo, expected, quoted};

/// An address to listen on, or `off`.
pub(crate) struct Listen;

impl Kind for Listen {
    type Value = Option<SocketAddr>;

    fn parse(&self, given: &Given) -> Result<Option<SocketAddr>, String> {
        let text = given
            .text()
            .ok_or_else(|| expected("an address such as \"127.0.0.1:7617\", or \"off\"", given))?;
        if text == "off" {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| {
            format!(
                "{} is not an IP address with a port, such as \"127.0.0.1:7617\", \"0.0.0.0:7617\" or \
                 \"[::]:7617\", nor \"off\"",
                echo(text)
            )
        })
    }

    fn show(&self, value: &Option<SocketAddr>) -> String {
        quoted(&value.map_or_else(|| "off".to_owned(), |address| address.to_string()))
    }
}
