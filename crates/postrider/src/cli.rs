//! The command line: what can be typed, and what the help says.
//!
//! No flag takes a secret: arguments are seen by every user of the machine.

mod publish;
mod waiting;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use postrider_postgres::RoleName;

pub(crate) use publish::Publish;
pub(crate) use waiting::{
    Change, DeadLetterSelection, DeadLettersCommand, DeferredCommand, DeferredSelection,
    DiscardDeadLetters, KeysCommand, ListKeys, Listing, ShowDeadLetter, ShowKey,
};

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It did what it was asked to.
    Success,
    /// It did not.
    Failure,
    /// Wrong usage; the command-line parser ends with it by itself.
    Usage,
    /// It did, and found something past the limit that was given.
    Limit,
    /// The configuration is wrong or incomplete (`EX_CONFIG`): starting again does not help.
    InvalidConfiguration,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Success => 0,
            Exit::Failure => 1,
            Exit::Usage => 2,
            Exit::Limit => 3,
            Exit::InvalidConfiguration => 78,
        })
    }
}

/// The program's version and the commit it was built from.
pub(crate) const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("POSTRIDER_BUILD_REVISION"),
    ")"
);

/// Relays committed outbox rows from PostgreSQL to RabbitMQ.
#[derive(Debug, Parser)]
#[command(
    name = "postrider",
    version = VERSION,
    long_about = "Relays committed outbox rows from PostgreSQL to RabbitMQ.\n\n\
        An application writes its change and a row in the outbox in one transaction. Postrider publishes \
        each committed row, waits for the broker's confirm, and deletes the row.",
    after_help = "\
Examples:
  postrider config default > postrider.toml    a commented file to begin with
  postrider -c postrider.toml check-config     everything that is wrong with it, at once
  postrider -c postrider.toml migrate          create or update the outbox
  postrider -c postrider.toml run              relay until told to stop

Every setting can also be a variable: [relay] workers is POSTRIDER_RELAY_WORKERS.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a warning or past a given limit, 78 invalid configuration.",
    arg_required_else_help = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    /// The configuration file [default: /etc/postrider/postrider.toml if it exists]
    // Not clap's `env`: the variable is only one of several sources that the configuration itself weighs.
    #[arg(
        short,
        long,
        global = true,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        long_help = "The configuration file. Without it, the file that POSTRIDER_CONFIG names; without that, \
            /etc/postrider/postrider.toml if it exists. No file is needed when the environment says everything."
    )]
    pub(crate) config: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Relay messages until told to stop
    #[command(
        long_about = "Relay messages until told to stop.\n\n\
            Connects again by itself whenever database or broker were away, and may be started before them. Any \
            number of relays may run on one outbox.\n\n\
            SIGTERM or SIGINT: stop claiming, finish what is in flight within [relay] shutdown_grace, end with 0. \
            A second signal ends at once; that loses nothing either, but messages may be delivered twice.\n\n\
            SIGHUP: read the configuration again, take over what can change without a restart, and name the rest in the log.",
        after_help = "\
Examples:
  postrider -c postrider.toml run
  postrider run --migrate                      bring the schema up to date first
  POSTRIDER_DATABASE_URL=postgres://app@localhost/shop \\
      POSTRIDER_BROKER_URL=amqp://localhost postrider run"
    )]
    Run(Run),

    /// Create the outbox in the database, or bring it up to date
    #[command(
        long_about = "Create the outbox in the database, or bring it up to date.\n\n\
            Applies what is missing, each file in a transaction of its own. Safe to run again, and from several \
            machines at once. Refuses a schema that was edited, or that is newer than this program.",
        after_help = "\
Examples:
  postrider migrate
  postrider migrate --dry-run                  list what would be applied
  postrider migrate --print > outbox.sql       for a migration tool of your own"
    )]
    Migrate(Migrate),

    /// Look for what keeps messages from flowing, or will
    #[command(
        long_about = "Look for what keeps messages from flowing, or will: configuration, connections, TLS, versions, \
            schema, privileges, old transactions and forgotten ones that keep vacuum back, durability, clocks, alarms \
            of the broker, exchanges that are missing or forbidden.\n\n\
            Prints a line for each check: ok, warning, failure, or skipped where another failure keeps it from being \
            looked at, with what it means and what to do. Run it with the configuration of the relay, before the first \
            start and whenever something is odd. It changes nothing, sends no message to any queue, and takes at most \
            half a minute.\n\n\
            Ends with 0 when all is well, 3 with warnings alone, 1 with a failure, 78 when the configuration is invalid.",
        after_help = "\
Examples:
  postrider -c postrider.toml check
  postrider check --json | jq '.[] | select(.status == \"failure\")'
  postrider check --max-transaction-age 1h       where reports may take that long"
    )]
    Check(Check),

    /// Check the configuration without connecting to anything
    #[command(
        long_about = "Check the configuration without connecting to anything.\n\n\
            Reads the file, the variables and the files with secrets that `run` would read, and reports everything \
            that is wrong at once, with file and line. Ends with 78 if anything is.",
        after_help = "\
Examples:
  postrider check-config postrider.toml
  POSTRIDER_DATABASE_URL=... postrider check-config"
    )]
    CheckConfig(CheckConfig),

    /// Show the effective configuration, or print a commented one
    #[command(subcommand, arg_required_else_help = true)]
    Config(ConfigCommand),

    /// Show lag, backlog, dead letters and the relays that are connected
    #[command(
        long_about = "Show lag, backlog, the oldest message, how many messages are deferred and how many were given \
            up, which ordering keys are blocked, and the relays that are connected now.\n\n\
            Asks the database alone: it answers while no relay runs, and while the broker is away. The lag is the \
            age of the oldest message that could be published now, by the database's clock.",
        after_help = "\
Examples:
  postrider status
  postrider status --watch
  postrider status --json | jq .lag_seconds
  postrider status --max-lag 60s || alert      ends with 3 when the lag is longer"
    )]
    Status(Status),

    /// Look after the messages that were given up
    #[command(
        subcommand,
        visible_alias = "dlq",
        arg_required_else_help = true,
        long_about = "Look after the messages that were given up: after the last attempt, or at once when they can never \
            be sent. They are kept, with all it takes to send them again, until somebody retries or \
            discards them, or [dead_letters] retention is over."
    )]
    DeadLetters(DeadLettersCommand),

    /// Look after the messages that wait for a time
    #[command(
        subcommand,
        arg_required_else_help = true,
        long_about = "Look after the messages that wait for a time: to be tried again after a failure, or because \
            they were published for later. They go by themselves when they are due."
    )]
    Deferred(DeferredCommand),

    /// Look at the ordering keys whose messages wait for an earlier one
    #[command(
        subcommand,
        arg_required_else_help = true,
        long_about = "Look at the ordering keys whose messages wait for an earlier one of them.\n\n\
            A message with a key that cannot be delivered holds back the later ones of its key, and no other. They are parked, and \
            go out in order when it has left: delivered, retried from the dead letters, or discarded."
    )]
    Keys(KeysCommand),

    /// Put one message into the outbox
    #[command(
        long_about = "Put one message into the outbox, and print its id.\n\n\
            The message is written in a transaction of its own and goes the way of every other: a relay publishes \
            it. Nothing is sent to the broker from here.",
        after_help = "\
Examples:
  postrider publish --exchange orders --routing-key order.created '{\"order\": 17}'
  jq -c . order.json | postrider publish --exchange orders --routing-key order.created -
  postrider publish --exchange '' --routing-key my-queue --content-type text/plain 'hello'
  postrider publish --exchange orders --routing-key order.created \\
      --header source=cli --header attempt:=2 --type OrderCreated '{}'
  postrider publish --exchange orders --routing-key order.paid --ordering-key order-17 '{\"order\": 17}'"
    )]
    Publish(Box<Publish>),

    /// Print the SQL that gives a role what it needs, and no more
    #[command(
        long_about = "Print the SQL that gives a role what it needs, and no more.\n\n\
            The role is a group without a login, made if it is not there; whoever logs in is made a member of it. Needs \
            no database: the owner of the outbox runs the SQL. It may be run again, and takes nothing away.\n\n\
            producer: applications and `postrider publish`; may call outbox.publish, with --insert also INSERT.\n\
            relay: `postrider run` and `postrider check`; may read, delete and move messages, but not write into outbox.messages.\n\
            operator: `postrider status`, `dead-letters`, `deferred` and `keys`; sees the payloads of dead letters alone.",
        after_help = "\
Examples:
  postrider grants relay --role outbox_relay | psql --single-transaction shop
  postrider grants producer --role outbox_producer --insert > grants.sql
  postrider grants operator --role outbox_operator --revoke"
    )]
    Grants(Grants),

    /// Ask the relay on this machine whether it is ready
    #[command(
        long_about = "Ask the relay on this machine whether it is ready.\n\n\
            Fetches /readyz from [http] listen, for container health checks: ends with 0 when the relay is ready, \
            with 1, and the reasons, when it is not or does not answer.",
        after_help = "\
Examples:
  postrider health
  HEALTHCHECK CMD [\"postrider\", \"health\"]        in a Dockerfile"
    )]
    Health(Health),

    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  postrider completions bash > /etc/bash_completion.d/postrider
  postrider completions zsh > \"${fpath[1]}/_postrider\"
  postrider completions fish > ~/.config/fish/completions/postrider.fish")]
    Completions(Completions),

    /// Print the manual page, or write those of all commands
    // For whoever makes packages.
    #[command(
        hide = true,
        after_help = "\
Examples:
  postrider man | man -l -
  postrider man --dir target/package/man"
    )]
    Man(Man),
}

/// `run`
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Bring the schema up to date before relaying
    #[arg(long)]
    pub(crate) migrate: bool,
}

/// `migrate`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("instead").multiple(false))]
pub(crate) struct Migrate {
    /// List what would be applied, and change nothing
    #[arg(long, group = "instead")]
    pub(crate) dry_run: bool,

    /// Print the SQL of all migrations; needs no database
    #[arg(long, group = "instead")]
    pub(crate) print: bool,
}

/// `check`
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Print JSON: an array of objects with check, status, message and action
    #[arg(long)]
    pub(crate) json: bool,

    /// From which age on an open transaction is worth a warning
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "5min")]
    pub(crate) max_transaction_age: Duration,
}

/// `check-config`
#[derive(Debug, Args)]
pub(crate) struct CheckConfig {
    /// The file to check; the same as --config
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
}

/// `config`
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every effective value and where it comes from, without secrets
    #[command(after_help = "\
Examples:
  postrider config show
  postrider -c postrider.toml config show | grep timeout")]
    Show,
    /// Print a commented file with every key and its default
    #[command(after_help = "\
Examples:
  postrider config default > postrider.toml")]
    Default,
}

/// `status`
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Print JSON, with --watch one object a line
    #[arg(long)]
    pub(crate) json: bool,

    /// Go on printing until interrupted
    #[arg(long)]
    pub(crate) watch: bool,

    /// End with 3 when the lag is longer than this, such as 60s
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "watch")]
    pub(crate) max_lag: Option<Duration>,
}

/// `grants`
#[derive(Debug, Args)]
pub(crate) struct Grants {
    /// Who the role is for
    #[arg(value_enum)]
    pub(crate) group: GroupName,

    /// The role's name, as it is: capitals and spaces count
    #[arg(long, value_name = "NAME", value_parser = role_name)]
    pub(crate) role: RoleName,

    /// Let producers INSERT into outbox.messages too, as ORMs do
    #[arg(long, conflicts_with = "revoke")]
    pub(crate) insert: bool,

    /// Take every right on the outbox from the role instead, and leave the role
    #[arg(long)]
    pub(crate) revoke: bool,
}

/// Whose rights are granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GroupName {
    /// Applications, and `postrider publish`
    Producer,
    /// `postrider run` and `postrider check`
    Relay,
    /// `postrider status`, `dead-letters`, `deferred` and `keys`
    Operator,
}

/// `health`
#[derive(Debug, Args)]
pub(crate) struct Health {
    /// Give up after this long
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "3s")]
    pub(crate) timeout: Duration,
}

/// `completions`
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: Shell,
}

/// `man`
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Write the pages of all commands, and of the configuration file, into this directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
}

fn role_name(text: &str) -> Result<RoleName, postrider_postgres::Error> {
    RoleName::new(text)
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "write a number with its unit, such as 250ms, 60s or 5min".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Arguments are visible in the process list of the whole machine.
    #[test]
    fn no_flag_takes_a_secret() {
        fn walk(command: &clap::Command) {
            for argument in command.get_arguments() {
                let name = argument.get_id().as_str();
                for word in ["password", "secret", "token", "url", "user"] {
                    assert!(!name.contains(word), "{} --{name}", command.get_name());
                }
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }

    #[test]
    fn every_command_has_a_description_and_the_long_ones_have_examples() {
        fn walk(parent: &clap::Command) {
            for command in parent.get_subcommands() {
                assert!(command.get_about().is_some(), "{}", command.get_name());
                let has_examples = command.get_after_help().is_some() || command.has_subcommands();
                assert!(has_examples, "{}", command.get_name());
                walk(command);
            }
        }
        walk(&Cli::command());
    }
}
