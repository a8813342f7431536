//! Tables and values for people: aligned, and safe to show in a terminal.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

/// Rows of text under a heading, aligned when printed. The last column is not padded.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns and no rows yet.
    pub(crate) fn new(columns: &[&str]) -> Self {
        let heading = columns.iter().map(|name| (*name).to_owned()).collect();
        Self {
            rows: vec![heading],
        }
    }

    /// Adds a row of as many cells as there are columns.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Takes the column out if no row has anything in it.
    pub(crate) fn leave_out_if_empty(&mut self, column: &str) {
        let mut rows = self.rows.iter();
        let Some(position) = rows
            .next()
            .and_then(|heading| heading.iter().position(|name| name == column))
        else {
            return;
        };
        if rows.all(|row| row.get(position).is_none_or(String::is_empty)) {
            for row in self.rows.iter_mut().filter(|row| position < row.len()) {
                row.remove(position);
            }
        }
    }

    /// Prints the heading and the rows.
    ///
    /// # Errors
    /// When writing failed.
    pub(crate) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for row in &self.rows {
            let padded: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            writeln!(out, "{}", padded.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// The text on one line, without anything that a terminal would obey: what is not printable is
/// written as an escape. Names and errors come from applications and brokers.
pub(crate) fn printable(text: &str) -> String {
    text.escape_debug()
        .to_string()
        .replace("\\'", "'")
        .replace("\\\"", "\"")
}

/// A name as it would be typed: the empty one is `''`.
pub(crate) fn name(text: &str) -> String {
    if text.is_empty() {
        "''".to_owned()
    } else {
        printable(text)
    }
}

/// As [`printable`], and cut to so many characters.
pub(crate) fn shortened(text: &str, characters: usize) -> String {
    let text = printable(text);
    if text.chars().count() <= characters {
        return text;
    }
    let kept: String = text.chars().take(characters.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// A length of time in its two largest units.
pub(crate) fn coarse(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days}d {}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h {}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m {}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

/// A point in time in UTC, to the millisecond.
pub(crate) fn timestamp(time: SystemTime) -> String {
    /// The end of the year 9999: RFC 3339 has no later one.
    const END: Duration = Duration::from_secs(253_402_300_800);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) if since < END => humantime::format_rfc3339_millis(time).to_string(),
        Ok(_) => "after 9999".to_owned(),
        Err(_) => "before 1970".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        let mut table = Table::new(&["ID", "EXCHANGE", "ERROR"]);
        table.row(vec!["1".to_owned(), "wäsche".to_owned(), String::new()]);
        table.row(vec!["22".to_owned(), "a".to_owned(), "no route".to_owned()]);
        let mut out = Vec::new();
        table.print(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "ID  EXCHANGE  ERROR\n1   wäsche\n22  a         no route\n"
        );
    }

    #[test]
    fn a_column_is_left_out_only_if_no_row_has_anything_in_it() {
        let printed = |key: &str| {
            let mut table = Table::new(&["ID", "KEY", "ERROR"]);
            table.row(vec!["1".to_owned(), String::new(), "a".to_owned()]);
            table.row(vec!["2".to_owned(), key.to_owned(), "b".to_owned()]);
            table.leave_out_if_empty("KEY");
            let mut out = Vec::new();
            table.print(&mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(printed(""), "ID  ERROR\n1   a\n2   b\n");
        assert_eq!(printed("k"), "ID  KEY  ERROR\n1        a\n2   k    b\n");
    }

    #[test]
    fn nothing_that_a_terminal_would_obey_is_printed() {
        assert_eq!(printable("a\u{1b}[31mb\r\n\t"), "a\\u{1b}[31mb\\r\\n\\t");
        assert_eq!(printable("\u{202e}evil\u{9b}"), "\\u{202e}evil\\u{9b}");
        assert_eq!(printable("it's \"ä\""), "it's \"ä\"");
        assert_eq!(name(""), "''");
        assert_eq!(shortened("no route to it", 9), "no route…");
        assert_eq!(shortened("no route", 8), "no route");
    }

    #[test]
    fn times_are_told_in_two_units_and_odd_ones_do_no_harm() {
        let shown = |seconds| coarse(Duration::from_secs(seconds));
        assert_eq!(shown(0), "0s");
        assert_eq!(shown(61), "1m 1s");
        assert_eq!(shown(3 * 3600 + 59), "3h 0m");
        assert_eq!(shown(90_000), "1d 1h");
        let epoch = SystemTime::UNIX_EPOCH;
        assert_eq!(timestamp(epoch), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(epoch - Duration::from_secs(1)), "before 1970");
        assert_eq!(
            timestamp(epoch + Duration::from_secs(253_402_300_800)),
            "after 9999"
        );
    }
}
