//! The command line, and what it makes of the short and the full form.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};

use crate::{
    contender::Loop,
    duel::DuelPlan,
    flat::FlatPlan,
    latency::LatencyPlan,
    memory::MemoryPlan,
    ordered::{self, OrderedPlan},
    producers::ProducersPlan,
    relays::RelaysPlan,
    stage::Setting,
    sweep::{Subject, SweepPlan},
    throughput::{Size, ThroughputPlan},
    unroutable::{Fault, Share},
};

/// The payloads of the throughput, in bytes.
const PAYLOADS: [u32; 3] = [256, 4 * 1024, 64 * 1024];

/// The rates of the latency, in messages a second.
const RATES: [u32; 3] = [100, 1_000, 5_000];

/// Measures Postrider against the broker's own limit, on a private PostgreSQL and a private RabbitMQ.
#[derive(Debug, Parser)]
#[command(name = "postrider-bench", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to measure [default: all]
    #[command(subcommand)]
    what: Option<What>,

    /// The postrider program, from a release build [default: the one beside this program]
    ///
    /// POSTRIDER_BIN names it as well.
    #[arg(long, global = true, value_name = "FILE")]
    daemon: Option<PathBuf>,

    /// A setting of the daemon for all runs, recorded in the results; may be repeated
    #[arg(long = "set", global = true, value_name = "POSTRIDER_NAME=VALUE")]
    pub(crate) settings: Vec<Setting>,

    /// The whole, with medians of at least five rounds: what to quote
    #[arg(long, global = true)]
    full: bool,

    /// How often everything is measured [default: fewer in the short form than in the full one; compare, unroutable,
    /// sweep: 5]
    #[arg(long, global = true, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,

    /// Throughput, ordered, compare, unroutable, sweep: messages of one measurement [default: throughput: by payload;
    /// ordered: 40000, full: 200000; the others: 100000, sweep of larger messages: 50000 or 5000]
    #[arg(long, global = true, value_parser = clap::value_parser!(u32).range(1000..))]
    messages: Option<u32>,

    /// Throughput: bytes of a payload; may be repeated [default: 256, 4096 and 65536; sweep: one, 256]
    #[arg(long = "payload", global = true, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    payloads: Vec<u32>,

    /// Latency: messages a second; may be repeated [default: 100, 1000 and 5000; sweep: the last two]
    #[arg(long = "rate", global = true, value_name = "RATE", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rates: Vec<u32>,

    /// Latency: how long one measurement takes; sweep: producers as well [default: 6; full: 20]
    #[arg(long, global = true, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,

    /// Ordered: only so many keys, beside messages without a key and 1000 keys; may be repeated
    #[arg(long = "keys", global = true, value_name = "KEYS", value_parser = clap::value_parser!(u32).range(1..))]
    keys: Vec<u32>,

    /// Write all results there, each measurement included
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Draw the results there, as SVG files
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) plots: Option<PathBuf>,
}

/// What to measure.
#[derive(Clone, Debug, PartialEq, Subcommand)]
pub(crate) enum What {
    /// Draining a full outbox, against a bare publisher with pipelined confirms and a loop written by hand
    Throughput,
    /// From commit to consumer on an idle system, by rate, with polling alone, and against a loop that always listens
    Latency,
    /// What the relay costs those who insert
    Producers,
    /// What rows already deleted, old transactions and a backlog cost the relay
    Flat,
    /// Several relays on one outbox
    Relays,
    /// Peak memory against backlog and payload
    Memory,
    /// Messages of one key in their order: by the number of keys, behind a blocked one, by several relays, behind deleted rows
    Ordered,
    /// All of the above
    All,
    /// Draining a full outbox with an older daemon and with the current one, in turns
    ///
    /// Rate, and the CPU time that a message costs the daemon, PostgreSQL and the broker. Each daemon gets a database of
    /// its own, made anew and migrated by itself for every measurement; broker, queue kind and settings are the same, so
    /// --set takes only what both know.
    Compare {
        /// The postrider program to compare with, from a release build
        #[arg(long, value_name = "FILE")]
        before: PathBuf,
    },
    /// Draining a full outbox of good messages, without and with some among them that cannot be delivered, in turns
    ///
    /// The rate is that of the good messages, as many in both: until the last of them is confirmed, deleted and
    /// committed. The faulty ones lie evenly among them and are tried again meanwhile, by the daemon's settings.
    Unroutable {
        /// How many of all messages are faulty, as a part of 1
        #[arg(long, value_name = "PART", default_value = "0.01")]
        share: Share,
        /// What is wrong with them
        #[arg(long, value_enum, default_value = "unroutable")]
        fault: Fault,
    },
    /// The same with several values of a setting, in turns
    Sweep {
        /// The setting
        #[arg(long, value_name = "POSTRIDER_NAME")]
        key: String,
        /// Its values
        #[arg(
            long,
            value_name = "VALUE,VALUE...",
            value_delimiter = ',',
            required = true
        )]
        values: Vec<String>,
        /// What to measure
        #[arg(long, value_enum, default_value = "throughput")]
        measure: Subject,
        /// The value that the others are compared with [default: the first]
        #[arg(long, value_name = "VALUE")]
        against: Option<String>,
    },
    /// One of the loops that the daemon is compared with, as a process of its own
    #[command(hide = true)]
    Loop {
        /// Which
        #[arg(value_enum)]
        which: Loop,
    },
}

impl What {
    /// Whether `part`, one of those that make up all, is asked for.
    pub(crate) fn includes(&self, part: &Self) -> bool {
        self == part || *self == Self::All
    }
}

impl Cli {
    pub(crate) fn what(&self) -> What {
        self.what.clone().unwrap_or(What::All)
    }

    pub(crate) fn throughput(&self) -> ThroughputPlan {
        let payloads = if self.payloads.is_empty() {
            PAYLOADS.to_vec()
        } else {
            self.payloads.clone()
        };
        ThroughputPlan {
            sizes: payloads.into_iter().map(|bytes| self.size(bytes)).collect(),
        }
    }

    /// Fewer of the larger ones, so that each takes about as long.
    fn size(&self, payload_bytes: u32) -> Size {
        let full = whole_messages(payload_bytes);
        let (short, short_rounds) = match payload_bytes {
            0..=1_024 => (40_000, 2),
            1_025..=16_384 => (20_000, 1),
            16_385.. => (3_000, 1),
        };
        Size {
            payload_bytes,
            messages: self
                .messages
                .unwrap_or(if self.full { full } else { short }),
            rounds: self.rounds(short_rounds),
        }
    }

    pub(crate) fn latency(&self) -> LatencyPlan {
        LatencyPlan {
            rates: if self.rates.is_empty() {
                RATES.to_vec()
            } else {
                self.rates.clone()
            },
            seconds: self.seconds(),
            rounds: self.rounds(1),
        }
    }

    pub(crate) fn producers(&self) -> ProducersPlan {
        ProducersPlan {
            rounds: self.rounds(1),
            short: !self.full,
        }
    }

    pub(crate) fn flat(&self) -> FlatPlan {
        FlatPlan {
            rounds: self.rounds(1),
            short: !self.full,
        }
    }

    pub(crate) fn relays(&self) -> RelaysPlan {
        RelaysPlan {
            rounds: self.rounds(1),
            short: !self.full,
        }
    }

    pub(crate) fn memory(&self) -> MemoryPlan {
        MemoryPlan {
            rounds: self.rounds(1),
            short: !self.full,
        }
    }

    pub(crate) fn ordered(&self) -> OrderedPlan {
        let messages = if self.full { 200_000 } else { 40_000 };
        OrderedPlan {
            rounds: self.rounds(1),
            cases: ordered::cases(!self.full, &self.keys),
            messages: self.messages.unwrap_or(messages),
        }
    }

    /// `None` when another part is to be measured.
    ///
    /// # Errors
    /// The key is no setting, or the others are to be compared with what is none of the values.
    pub(crate) fn sweep(&self) -> Result<Option<SweepPlan>> {
        let What::Sweep {
            key,
            values,
            measure,
            against,
        } = self.what()
        else {
            return Ok(None);
        };
        let against = against.or_else(|| values.first().cloned());
        let against = against.context("no value was given")?;
        ensure!(
            values.contains(&against),
            "{against} is none of the values: --against names one of them"
        );
        Setting::from_str(&format!("{key}={against}"))?;
        let payload_bytes = match self.payloads.as_slice() {
            [] => PAYLOADS[0],
            [payload] => *payload,
            [..] => bail!("a sweep measures one size: --payload can be given once"),
        };
        let DuelPlan { rounds, messages } = self.duel();
        Ok(Some(SweepPlan {
            key,
            values,
            against,
            subject: measure,
            rounds,
            payload_bytes,
            messages: self
                .messages
                .unwrap_or(messages.min(whole_messages(payload_bytes))),
            rates: if self.rates.is_empty() {
                RATES.into_iter().filter(|rate| *rate >= 1_000).collect()
            } else {
                self.rates.clone()
            },
            seconds: self.seconds(),
        }))
    }

    fn seconds(&self) -> u32 {
        self.seconds.unwrap_or(if self.full { 20 } else { 6 })
    }

    pub(crate) fn duel(&self) -> DuelPlan {
        DuelPlan {
            rounds: self.rounds.unwrap_or(5),
            messages: self.messages.unwrap_or(100_000),
        }
    }

    fn rounds(&self, short: u32) -> u32 {
        self.rounds.unwrap_or(if self.full { 5 } else { short })
    }

    /// The daemon's program.
    ///
    /// # Errors
    /// It is not there.
    pub(crate) fn daemon(&self) -> Result<PathBuf> {
        let named = self
            .daemon
            .clone()
            .or_else(|| std::env::var_os("POSTRIDER_BIN").map(PathBuf::from));
        let binary = match named {
            Some(binary) => binary,
            None => std::env::current_exe()
                .context("could not find out where this program is")?
                .with_file_name("postrider"),
        };
        ensure!(
            binary.is_file(),
            "there is no daemon at {}: build it with `cargo build --release --bins`, or name it with --daemon or \
             POSTRIDER_BIN",
            binary.display()
        );
        absolute(&binary)
    }
}

/// How many messages of a size are a measurement of the full form.
fn whole_messages(payload_bytes: u32) -> u32 {
    match payload_bytes {
        0..=1_024 => 200_000,
        1_025..=16_384 => 50_000,
        16_385.. => 5_000,
    }
}

/// The file's path in any directory: the daemon is run in others.
///
/// # Errors
/// There is no such file.
pub(crate) fn absolute(binary: &Path) -> Result<PathBuf> {
    fs::canonicalize(binary).with_context(|| format!("could not look at {}", binary.display()))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::Cli;

    fn sizes(arguments: &[&str]) -> Vec<(u32, u32, u32)> {
        let arguments = ["postrider-bench"].iter().chain(arguments);
        let plan = Cli::try_parse_from(arguments).unwrap().throughput();
        let size = |size: &super::Size| (size.payload_bytes, size.messages, size.rounds);
        plan.sizes.iter().map(size).collect()
    }

    fn sweep(key: &str, arguments: &[&str]) -> anyhow::Result<super::SweepPlan> {
        let named = [
            "postrider-bench",
            "sweep",
            "--values",
            "1,2,3",
            "--key",
            key,
        ];
        let arguments = named.iter().chain(arguments);
        let plan = Cli::try_parse_from(arguments)?.sweep()?;
        anyhow::Context::context(plan, "no sweep")
    }

    #[test]
    fn a_sweep_compares_with_the_first_value_unless_another_is_named_and_measures_one_size() {
        let key = "POSTRIDER_RELAY_WORKERS";
        let plan = sweep(key, &[]).unwrap();
        assert_eq!((plan.values.len(), plan.against.as_str()), (3, "1"));
        let plan = sweep(key, &["--against", "3", "--measure", "latency"]).unwrap();
        assert_eq!(plan.against, "3");
        assert_eq!(plan.rates, [1_000, 5_000]);
        assert!(sweep(key, &["--against", "4"]).is_err());
        assert_eq!((plan.payload_bytes, plan.messages), (256, 100_000));
        let plan = sweep(key, &["--payload", "65536"]).unwrap();
        assert_eq!((plan.payload_bytes, plan.messages), (65_536, 5_000));
        assert!(sweep(key, &["--payload", "1", "--payload", "2"]).is_err());
        assert!(sweep("RELAY_WORKERS", &[]).is_err());
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_full_form_has_at_least_five_rounds_of_each_size_and_fewer_of_the_larger_messages() {
        assert_eq!(
            sizes(&["--full"]),
            [(256, 200_000, 5), (4_096, 50_000, 5), (65_536, 5_000, 5)]
        );
    }

    #[test]
    fn what_is_said_holds_in_both_forms() {
        let said = ["--payload", "512", "--rounds", "2", "--messages", "1000"];
        assert_eq!(sizes(&said), [(512, 1_000, 2)]);
        assert_eq!(sizes(&[&said[..], &["--full"]].concat()), [(512, 1_000, 2)]);
    }
}
