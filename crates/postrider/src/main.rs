//! The Postrider daemon and its command line.

mod certificates;
mod cli;
mod commands;
mod config;
mod http;
mod log;
mod reload;
mod runtime;
mod signals;
mod systemd;
mod table;
mod traces;
mod wiring;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use postrider_postgres::Schema;

use crate::cli::{Cli, Command, ConfigCommand, Exit, GroupName};
use crate::config::{ConfigError, DEFAULT_FILE, Inputs, Loaded};

/// A message is some forty allocations on its way from a row to the socket, made by one thread and freed by another: a
/// quarter of the daemon's CPU time with the allocator of the C library (`perf record`, docs/benchmarks.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let exit = match dispatch(cli) {
        Ok(exit) => exit,
        Err(error) => report(&error),
    };
    exit.into()
}

fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    let mut out = io::stdout().lock();
    match cli.command {
        Command::Run(arguments) => {
            let mut loaded = load(cli.config.clone())?;
            let warnings = std::mem::take(&mut loaded.warnings);
            let effective = loaded.effective()?;
            drop(out);
            let file = cli.config;
            let workers = effective.config.relay.workers;
            let running = commands::run::run(effective, file, &warnings, arguments.migrate);
            runtime::block_on_for(workers, running)?;
            Ok(Exit::Success)
        }
        Command::Migrate(arguments) => {
            let loaded = load(cli.config)?;
            if arguments.print {
                commands::migrate::print(&Schema::new(&loaded.schema)?, &mut out)?;
                return Ok(Exit::Success);
            }
            let database = loaded.database()?;
            runtime::block_on(commands::migrate::migrate(database, &arguments, &mut out))?;
            Ok(Exit::Success)
        }
        Command::Status(arguments) => {
            let loaded = load(cli.config)?;
            let (database, metrics) = (loaded.database()?, &loaded.metrics);
            runtime::block_on(commands::status::status(
                database, metrics, &arguments, &mut out,
            ))
        }
        Command::DeadLetters(command) => {
            let loaded = load(cli.config)?;
            runtime::block_on(commands::dead_letters::dead_letters(
                loaded.database()?,
                command,
                &mut out,
                &mut io::stderr(),
            ))
        }
        Command::Deferred(command) => {
            let loaded = load(cli.config)?;
            runtime::block_on(commands::deferred::deferred(
                loaded.database()?,
                command,
                &mut out,
                &mut io::stderr(),
            ))
        }
        Command::Keys(command) => {
            let loaded = load(cli.config)?;
            runtime::block_on(commands::keys::keys(
                loaded.database()?,
                command,
                &mut out,
                &mut io::stderr(),
            ))
        }
        Command::Publish(arguments) => {
            let loaded = load(cli.config)?;
            let database = loaded.database()?;
            runtime::block_on(commands::publish::publish(database, *arguments, &mut out))?;
            Ok(Exit::Success)
        }
        Command::Grants(arguments) => {
            if arguments.insert && arguments.group != GroupName::Producer {
                Cli::command()
                    .error(
                        ErrorKind::ArgumentConflict,
                        "--insert is for producers: the other groups never insert into outbox.messages",
                    )
                    .exit();
            }
            let loaded = load(cli.config)?;
            commands::grants::grants(&arguments, &Schema::new(&loaded.schema)?, &mut out)?;
            Ok(Exit::Success)
        }
        Command::Health(arguments) => {
            let loaded = load(cli.config)?;
            commands::health::health(&loaded.http, arguments.timeout, &mut out)
        }
        Command::Check(arguments) => {
            let loaded = load(cli.config);
            runtime::block_on(commands::check::check(loaded, &arguments, &mut out))
        }
        Command::CheckConfig(arguments) => {
            if arguments.file.is_some() && cli.config.is_some() {
                Cli::command()
                    .error(
                        ErrorKind::ArgumentConflict,
                        "check-config takes FILE or --config, not both",
                    )
                    .exit();
            }
            let loaded = Loaded::from(&Inputs::of_this_process(arguments.file.or(cli.config)));
            commands::check_config::check_config(loaded, &mut out, &mut io::stderr())??;
            Ok(Exit::Success)
        }
        Command::Config(ConfigCommand::Show) => {
            let loaded = Loaded::from(&Inputs::of_this_process(cli.config))?;
            commands::config_show::config_show(&loaded, &mut out)?;
            Ok(Exit::Success)
        }
        Command::Config(ConfigCommand::Default) => {
            out.write_all(DEFAULT_FILE.as_bytes())?;
            Ok(Exit::Success)
        }
        Command::Man(arguments) => {
            commands::man::man(arguments.dir.as_deref(), &mut out)?;
            Ok(Exit::Success)
        }
        Command::Completions(arguments) => {
            commands::completions::completions(arguments.shell, &mut out)?;
            Ok(Exit::Success)
        }
    }
}

fn load(file: Option<PathBuf>) -> Result<Loaded, ConfigError> {
    Loaded::from(&Inputs::of_this_process(file))
}

/// Says what went wrong, with its causes, and how the program ends for it.
fn report(error: &anyhow::Error) -> Exit {
    let broken_pipe = |error: &(dyn std::error::Error + 'static)| {
        error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(broken_pipe) {
        // Whoever closed the pipe has read enough.
        return Exit::Success;
    }
    let mut text = String::new();
    for cause in error.chain() {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause.to_string());
        // Its text has all that its causes would say.
        if cause.is::<postrider_postgres::Error>() {
            break;
        }
    }
    let _ = writeln!(io::stderr(), "error: {text}");
    let invalid_configuration = error.is::<ConfigError>()
        || error
            .downcast_ref::<postrider_postgres::Error>()
            .is_some_and(|error| {
                matches!(
                    error,
                    postrider_postgres::Error::Settings(_)
                        | postrider_postgres::Error::SchemaName(_)
                )
            });
    if invalid_configuration {
        Exit::InvalidConfiguration
    } else {
        Exit::Failure
    }
}
