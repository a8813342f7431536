//! The process of a server, which comes and goes while the server's directory stays.

use std::{process::Command, sync::Mutex};

use anyhow::{Context, Result};

use crate::{process::Process, test_dir::TestDir};

/// A server's process, while there is one. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct ServerProcess {
    name: &'static str,
    process: Mutex<Option<Process>>,
}

impl ServerProcess {
    /// There is none yet. The name is for errors.
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            process: Mutex::new(None),
        }
    }

    /// Starts it. The directory's guardian kills it should nobody else.
    pub(crate) fn start(&self, command: Command, dir: &TestDir) -> Result<()> {
        let process =
            Process::start(command).with_context(|| format!("could not start {}", self.name))?;
        dir.record_process(process.pid())?;
        *self.process.lock().unwrap() = Some(process);
        Ok(())
    }

    /// Whether it is there; a paused one is.
    pub(crate) fn is_alive(&self) -> bool {
        self.process
            .lock()
            .unwrap()
            .as_ref()
            .is_some_and(Process::is_alive)
    }

    /// Takes it out, for whoever ends it.
    pub(crate) fn take(&self) -> Result<Process> {
        let process = self.process.lock().unwrap().take();
        process
            .filter(Process::is_alive)
            .with_context(|| format!("{} does not run", self.name))
    }

    /// Forgets one that has ended.
    pub(crate) fn clear(&self) {
        self.process.lock().unwrap().take();
    }

    /// Does something to it.
    pub(crate) fn with(&self, action: impl FnOnce(&Process) -> Result<()>) -> Result<()> {
        let process = self.process.lock().unwrap();
        let running = process.as_ref();
        action(running.with_context(|| format!("{} does not run", self.name))?)
    }
}
