//! What a check found, and how it is shown.

use std::io::{self, Write};

use serde::Serialize;

use crate::cli::Exit;
use crate::table::{Table, printable};

/// How it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// As it should be.
    Ok,
    /// Messages flow, but something is to be mended, or could not be looked at.
    Warning,
    /// Messages do not flow, or may be lost.
    Failure,
    /// It could not be looked at because of another failure.
    Skipped,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
            Self::Skipped => "skipped",
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// Which check: a name that stays, for scripts.
    pub(crate) check: &'static str,
    pub(crate) status: Status,
    /// What was found, and what it means.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) action: Option<String>,
}

impl Finding {
    pub(crate) fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Status::Ok, message, None)
    }

    pub(crate) fn warning(
        check: &'static str,
        message: impl Into<String>,
        action: impl Into<String>,
    ) -> Self {
        Self::new(check, Status::Warning, message, Some(action.into()))
    }

    pub(crate) fn failure(
        check: &'static str,
        message: impl Into<String>,
        action: impl Into<String>,
    ) -> Self {
        Self::new(check, Status::Failure, message, Some(action.into()))
    }

    pub(crate) fn skipped(check: &'static str, why: impl Into<String>) -> Self {
        Self::new(check, Status::Skipped, why, None)
    }

    fn new(
        check: &'static str,
        status: Status,
        message: impl Into<String>,
        action: Option<String>,
    ) -> Self {
        Self {
            check,
            status,
            message: message.into(),
            action,
        }
    }
}

/// Prints a line for each finding.
///
/// # Errors
/// When writing failed.
pub(crate) fn print(findings: &[Finding], out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::new(&["STATUS", "CHECK", "FOUND"]);
    for finding in findings {
        let found = match &finding.action {
            None => printable(&finding.message),
            Some(action) => format!("{}: {}", printable(&finding.message), printable(action)),
        };
        table.row(vec![
            finding.status.as_str().to_owned(),
            finding.check.to_owned(),
            found,
        ]);
    }
    table.print(out)
}

/// How the program ends with these.
pub(crate) fn exit(findings: &[Finding]) -> Exit {
    let any = |status| findings.iter().any(|finding| finding.status == status);
    if any(Status::Failure) {
        Exit::Failure
    } else if any(Status::Warning) {
        Exit::Limit
    } else {
        Exit::Success
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_outweighs_warnings_and_what_was_skipped_weighs_nothing() {
        let ok = Finding::ok("a", "");
        let skipped = Finding::skipped("b", "");
        let warning = Finding::warning("c", "", "");
        let failure = Finding::failure("d", "", "");
        assert_eq!(exit(&[ok.clone(), skipped]), Exit::Success);
        assert_eq!(exit(&[warning.clone(), ok]), Exit::Limit);
        assert_eq!(exit(&[warning, failure]), Exit::Failure);
    }

    #[test]
    fn a_finding_is_one_line_whatever_servers_say() {
        let finding = Finding::failure("schema", "odd\nname\u{1b}[31m", "mend it");
        let mut out = Vec::new();
        print(&[finding], &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "STATUS   CHECK   FOUND\nfailure  schema  odd\\nname\\u{1b}[31m: mend it\n"
        );
    }
}
