//! The demo's pieces, and the order in which they are set up and taken down.

mod play;
mod relay;
mod report;
mod screen;
mod settings;
mod stage;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use self::{relay::Relay, screen::Screen, settings::Settings, stage::Stage};

/// How many lines of the daemon's log are shown after a failure.
const LOG_LINES: usize = 30;

/// Runs the demo from the environment's settings.
pub(crate) async fn run() -> ExitCode {
    let screen = Screen::new();
    let settings = match Settings::from_environment() {
        Ok(settings) => settings,
        Err(problem) => {
            screen.failure(&problem);
            return ExitCode::from(2);
        }
    };
    let mut interruption = match Interruption::listen() {
        Ok(interruption) => interruption,
        Err(error) => {
            screen.failure(&explain(&error));
            return ExitCode::FAILURE;
        }
    };
    screen.introduction(&settings);
    let stage = tokio::select! {
        stage = Stage::open(&settings.servers) => match stage {
            Ok(stage) => stage,
            Err(error) => {
                screen.failure(&explain(&error));
                return ExitCode::FAILURE;
            }
        },
        code = interruption.comes() => {
            screen.note("interrupted: stopping the servers");
            return ExitCode::from(code);
        }
    };
    let mut relay = Relay::new(stage.daemon_options(&settings.binary));
    let end = tokio::select! {
        report = play::play(&settings, &stage, &mut relay, &screen) => Ok(report),
        code = interruption.comes() => Err(code),
    };
    if end.is_err() {
        screen.note("interrupted: cleaning up");
    }
    let log = relay.into_log().await;
    let code = match end {
        Err(code) => code,
        Ok(Ok(report)) => {
            screen.report(&report);
            if report.is_good() {
                0
            } else {
                show_log(&screen, &log);
                1
            }
        }
        Ok(Err(error)) => {
            screen.failure(&explain(&error));
            show_log(&screen, &log);
            1
        }
    };
    let cleaned = tokio::select! {
        cleaned = stage.close() => cleaned,
        code = interruption.comes() => return ExitCode::from(code),
    };
    match cleaned {
        Ok(done) => screen.note(done),
        Err(error) => {
            screen.failure(&explain(&error));
            return ExitCode::from(code.max(1));
        }
    }
    ExitCode::from(code)
}

/// An error with its causes, without those that the text before them has already said.
fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn show_log(screen: &Screen, log: &[String]) {
    if log.is_empty() {
        return;
    }
    screen.note("the daemon's log ends with:");
    for line in log.iter().skip(log.len().saturating_sub(LOG_LINES)) {
        screen.quote(line);
    }
    match keep_log(log) {
        Ok(path) => screen.note(&format!("all of it is in {}", path.display())),
        Err(error) => screen.failure(&explain(&error)),
    }
}

fn keep_log(log: &[String]) -> Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("postrider-demo-{}.log", std::process::id()));
    // Not over what is there: another user may have laid a link of that name.
    let mut file = fs::File::create_new(&path)
        .with_context(|| format!("could not keep the log in {}", path.display()))?;
    for line in log {
        std::io::Write::write_all(&mut file, format!("{line}\n").as_bytes())?;
    }
    Ok(path)
}

/// The signals that end the demo early.
struct Interruption {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Interruption {
    fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one; the exit code that tells of it.
    async fn comes(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
            _ = self.hangup.recv() => 129,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::explain;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("refused")
            .context("IO error: refused")
            .context("no broker");
        assert_eq!(explain(&error), "no broker: IO error: refused");
    }
}
