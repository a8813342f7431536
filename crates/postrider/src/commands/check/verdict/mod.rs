//! What the facts mean. Nothing here asks a server, a clock or the configuration.

pub(crate) mod broker;
pub(crate) mod database;
pub(crate) mod keys;
pub(crate) mod vacuum;

use postrider_tls::Mode;

use super::finding::Finding;

/// Whether others can read or change what goes to a server. `version`: of TLS, where it is known.
pub(crate) fn encryption(
    check: &'static str,
    section: &str,
    mode: Option<Mode>,
    version: Option<&str>,
    elsewhere: bool,
) -> Finding {
    let by = version.unwrap_or("TLS");
    match (mode, elsewhere) {
        (None, false) => Finding::ok(check, "plain text, to this machine"),
        (None, true) => Finding::warning(
            check,
            "plain text to another machine: whoever is on the way may read and change messages and password",
            format!("set [{section}] mode = \"verify-full\""),
        ),
        (Some(Mode::Require), _) => Finding::warning(
            check,
            format!("encrypted by {by}, but whoever answers is taken for the server"),
            format!(
                "set [{section}] mode = \"verify-full\", and ca_file where the authority is your own"
            ),
        ),
        (Some(Mode::VerifyCa), _) => Finding::ok(
            check,
            format!(
                "encrypted by {by}; the certificate is verified, but not the name of the server"
            ),
        ),
        (Some(Mode::VerifyFull), _) => Finding::ok(
            check,
            format!("encrypted by {by}; certificate and name of the server are verified"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn plain_text_is_a_warning_only_where_others_can_read_it() {
        let status = |mode, elsewhere| encryption("c", "s", mode, None, elsewhere).status;
        assert_eq!(status(None, false), Status::Ok);
        assert_eq!(status(None, true), Status::Warning);
        assert_eq!(status(Some(Mode::Require), true), Status::Warning);
        assert_eq!(status(Some(Mode::VerifyCa), true), Status::Ok);
        assert_eq!(status(Some(Mode::VerifyFull), true), Status::Ok);
    }
}
