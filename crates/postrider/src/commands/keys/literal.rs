//! A text as a literal of SQL, for a person to copy from a terminal.

/// A literal that is exactly this text, whatever `standard_conforming_strings` is. It stands on one line, without anything
/// that a terminal would obey.
pub(super) fn literal(text: &str) -> String {
    let mut body = String::with_capacity(text.len());
    let mut escapes = false;
    for c in text.chars() {
        match c {
            '\'' => body.push_str("''"),
            '"' => body.push(c),
            // PostgreSQL's escapes for these are Rust's.
            '\\' | '\n' | '\r' | '\t' => {
                escapes = true;
                body.extend(c.escape_debug());
            }
            // What `printable` would show as it is.
            c if c.escape_debug().len() == 1 => body.push(c),
            c => {
                escapes = true;
                let code = u32::from(c);
                body.push_str(&match u16::try_from(code) {
                    Ok(code) => format!("\\u{code:04X}"),
                    Err(_) => format!("\\U{code:08X}"),
                });
            }
        }
    }
    let prefix = if escapes { "E" } else { "" };
    format!("{prefix}'{body}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_is_the_text_to_the_last_character() {
        for (text, expected) in [
            ("order-17", "'order-17'"),
            ("it's \"ä\" ", "'it''s \"ä\" '"),
            ("a\\b", "E'a\\\\b'"),
            ("\\'", "E'\\\\'''"),
            ("a\tb\r\nc", "E'a\\tb\\r\\nc'"),
            ("\u{1b}[31m", "E'\\u001B[31m'"),
            ("\u{202e}evil\u{a0}", "E'\\u202Eevil\\u00A0'"),
            ("\u{e0001}", "E'\\U000E0001'"),
        ] {
            assert_eq!(literal(text), expected);
        }
    }
}
