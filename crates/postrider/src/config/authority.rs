//! What the URLs of both servers have in common: where the password can hide.

use std::net::IpAddr;

/// Checks that user name and password are percent-encoded, so that no part of a password can be
/// taken for a host, a path or a parameter, which are shown and logged. `rest` is what follows `://`.
pub(crate) fn check(rest: &str) -> Result<(), String> {
    let encoded = match rest.split_once('@') {
        None => true,
        Some((credentials, after)) => {
            !credentials.contains(['/', '?', '#']) && !after.contains('@')
        }
    };
    if encoded && !rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
        Ok(())
    } else {
        Err(
            "special characters in user name, password and the rest must be percent-encoded: `@` as %40, `/` \
             as %2F, `?` as %3F, `#` as %23, `%` as %25, a space as %20"
                .to_owned(),
        )
    }
}

/// Whether there is a password in a URL, behind the user or, as libpq has it too, among the parameters. Also of a URL that nobody
/// has checked.
pub(crate) fn has_password(url: &str) -> bool {
    let credentials = url
        .split_once("://")
        .and_then(|(_, rest)| rest.rsplit_once('@'))
        .and_then(|(credentials, _)| credentials.split_once(':'));
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    let mut parameters = parameters
        .split('&')
        .filter_map(|parameter| parameter.split_once('='));
    credentials.is_some_and(|(_, password)| !password.is_empty())
        || parameters.any(|(name, value)| {
            percent_decode(name).as_deref() == Some("password") && !value.is_empty()
        })
}

/// Whether a host is this machine by its name or address alone, whatever a resolver says.
pub(crate) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Decodes `%XX`; `None` when that is malformed or not UTF-8.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            decoded.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

/// Encodes everything but letters, digits, `-`, `.` and `_`.
pub(crate) fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}
