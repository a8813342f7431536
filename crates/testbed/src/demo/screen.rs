//! What is shown: plain lines on standard output, the same on a terminal and in a file but for colour.

use std::{
    fmt::Write as _,
    io::{IsTerminal, Write},
    time::Duration,
};

use super::{
    play::Progress,
    report::Report,
    settings::{Servers, Settings},
    stage::Stage,
};

#[derive(Clone, Copy)]
enum Style {
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
    Event,
}

/// Standard output. That nobody reads it any more (`make demo | head`) stops nothing: the clean-up must run.
pub(crate) struct Screen {
    colours: bool,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let unwanted = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        Self {
            colours: std::io::stdout().is_terminal()
                && !unwanted("NO_COLOR")
                && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
        }
    }

    /// What is about to happen.
    pub(crate) fn introduction(&self, settings: &Settings) {
        self.print(Style::Plain, "");
        self.print(Style::Bold, "  Postrider: what is committed, arrives");
        self.print(Style::Plain, "");
        for line in [
            "A shop writes each order and its message in one PostgreSQL transaction; some roll back.",
            "Postrider publishes every committed message to RabbitMQ. A consumer drops repeats by",
            "message_id. In the middle the daemon is killed with SIGKILL, messages in flight, and",
            "started again. Then the books are compared: committed against delivered, id by id.",
        ] {
            self.print(Style::Plain, &format!("  {line}"));
        }
        self.print(Style::Plain, "");
        let servers = match settings.servers {
            Servers::Private => {
                "starting a private PostgreSQL and RabbitMQ in a temporary directory ..."
            }
            Servers::Given { .. } => "connecting to your PostgreSQL and RabbitMQ ...",
        };
        self.print(Style::Dim, &format!("  {servers}"));
    }

    /// What runs, and the head of the table.
    pub(crate) fn stage(&self, stage: &Stage, pid: i32, shop: &str) {
        for (what, words) in [
            ("database", stage.database.as_str()),
            (
                "broker",
                &format!("{}; a durable quorum queue", stage.broker),
            ),
            (
                "daemon",
                &format!("migrated the outbox, runs as process {pid}"),
            ),
            ("shop", shop),
        ] {
            self.print(Style::Plain, &format!("  {what:<10}{words}"));
        }
        self.print(Style::Plain, "");
        self.print(
            Style::Bold,
            &format!(
                "  {:>6}  {:>10}  {:>10}  {:>8}  {:>8}  {:>10}",
                "time", "committed", "delivered", "repeats", "waiting", "per second"
            ),
        );
    }

    /// A line of the table; `rate` is messages delivered in the last second.
    pub(crate) fn row(&self, since: Duration, progress: Progress, rate: u64) {
        self.print(
            Style::Plain,
            &format!(
                "  {:>6}  {:>10}  {:>10}  {:>8}  {:>8}  {:>10}",
                seconds(since),
                thousands(progress.committed),
                thousands(progress.delivered),
                thousands(progress.repeats),
                thousands(progress.waiting()),
                thousands(rate),
            ),
        );
    }

    /// Something that happened at a time.
    pub(crate) fn event(&self, since: Duration, words: &str) {
        self.print(Style::Event, &format!("  {:>6}  {words}", seconds(since)));
    }

    /// The end.
    pub(crate) fn report(&self, report: &Report) {
        let books = &report.books;
        let (lost, phantom) = (books.lost.len() as u64, books.phantom.len() as u64);
        let count = |style, what: &str, number: u64, words: &str| {
            let text = format!("  {what:<12}{:>10}   {words}", thousands(number));
            self.print(style, text.trim_end());
        };
        let verdict = |number| if number == 0 { Style::Good } else { Style::Bad };
        self.print(Style::Plain, "");
        self.print(Style::Bold, "  Report");
        count(
            Style::Plain,
            "committed",
            books.committed,
            "messages of transactions that the database confirmed",
        );
        count(
            Style::Plain,
            "rolled back",
            books.rolled_back,
            "must never be seen",
        );
        count(
            Style::Plain,
            "delivered",
            books.delivered,
            "distinct messages at the consumer",
        );
        count(
            Style::Plain,
            "duplicates",
            books.duplicates,
            "published again after the kill; the consumer dropped them",
        );
        count(verdict(lost), "lost", lost, "committed, never delivered");
        count(
            verdict(phantom),
            "phantom",
            phantom,
            "delivered, never committed",
        );
        self.print(
            Style::Plain,
            &format!(
                "  {:<12}p50 {}, p99 {} from commit to consumer; around the kill up to {}",
                "latency",
                short(report.steady.p50),
                short(report.steady.p99),
                short(report.worst),
            ),
        );
        let rate = |count: f64, duration: Duration| {
            // Truncation: nobody reads fractions of messages.
            thousands((count / duration.as_secs_f64().max(0.001)) as u64)
        };
        self.print(
            Style::Plain,
            &format!(
                "  {:<12}{}/s, all that the shop wrote; after the kill {} waiting at {}/s",
                "throughput",
                thousands(report.throughput as u64),
                thousands(report.catch_up.waiting),
                rate(report.catch_up.waiting as f64, report.catch_up.duration),
            ),
        );
        self.print(Style::Plain, "");
        let problems = report.problems();
        if problems.is_empty() {
            self.print(
                Style::Good,
                "  OK: every committed message arrived, and nothing else did.",
            );
        }
        for problem in problems {
            self.print(Style::Bad, &format!("  FAILED: {problem}"));
        }
    }

    /// An aside.
    pub(crate) fn note(&self, words: &str) {
        self.print(Style::Dim, &format!("  {words}"));
    }

    /// A line of somebody else's.
    pub(crate) fn quote(&self, line: &str) {
        self.print(Style::Dim, &format!("    {line}"));
    }

    /// Why it does not go on.
    pub(crate) fn failure(&self, words: &str) {
        self.print(Style::Bad, &format!("  error: {words}"));
    }

    fn print(&self, style: Style, text: &str) {
        let code = match style {
            Style::Plain => None,
            Style::Bold => Some("1"),
            Style::Dim => Some("2"),
            Style::Good => Some("1;32"),
            Style::Bad => Some("1;31"),
            Style::Event => Some("33"),
        };
        let line = match code {
            Some(code) if self.colours => format!("\x1b[{code}m{text}\x1b[0m\n"),
            _ => format!("{text}\n"),
        };
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(line.as_bytes());
        let _ = out.flush();
    }
}

fn seconds(since: Duration) -> String {
    format!("{} s", since.as_secs())
}

fn short(duration: Duration) -> String {
    if duration < Duration::from_millis(100) {
        format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

/// 1234567 as 1,234,567.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        let _ = write!(text, "{digit}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_numbers_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(thousands(number), text);
        }
    }
}
