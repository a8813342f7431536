//! Asks the database, in an order in which each answer says whether the next question makes sense.

use std::time::{Duration, SystemTime};

use postrider_postgres::{
    Database, Error, ErrorKind, NamedExchanges, SampleFrom, ServerFacts, Unroutable,
};
use secrecy::ExposeSecret;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::config::Host;

use super::finding::Finding;
use super::verdict::{self, database as judge, keys, vacuum};
use super::{EXCHANGES, FIRST_HALF};
use crate::config::{Config, is_loopback};
use crate::wiring;

const CONNECTION: &str = "database_connection";
const POOLER: &str = "database_pooler";
const ENCRYPTION: &str = "database_encryption";
const SCHEMA: &str = "schema";
const PRIVILEGES: &str = "privileges";
const CONNECTIONS: &str = "database_connections";
const DURABILITY: &str = "durability";
const CLOCK: &str = "clock";
const NOTIFY_QUEUE: &str = "notify_queue";
const OPEN: &str = "open_transactions";
const PREPARED: &str = "prepared_transactions";
const SLOTS: &str = "replication_slots";
const AUTOVACUUM: &str = "autovacuum";
const RELAYS: &str = "relays";
const KEYS: &str = "blocked_keys";

/// How many blocked keys are looked at.
const MOST_KEYS: u32 = 1_000;

/// What the database said.
pub(super) struct Outbox {
    pub(super) findings: Vec<Finding>,
    /// `None` where it could not be asked for.
    pub(super) named: Option<NamedExchanges>,
    pub(super) unroutable: Option<Vec<Unroutable>>,
}

/// Asks for everything, until the deadline.
pub(super) async fn examine(
    database: &Database,
    config: &Config,
    oldest: Duration,
    deadline: Instant,
) -> Outbox {
    let mut asking = Asking {
        deadline,
        findings: Vec::new(),
    };
    let (named, unroutable) = match asking.within(database.check_server()).await {
        Err(error) => {
            asking.findings.push(judge::failed(CONNECTION, &error));
            asking.skip(
                &[
                    ENCRYPTION,
                    POOLER,
                    SCHEMA,
                    PRIVILEGES,
                    CONNECTIONS,
                    DURABILITY,
                    CLOCK,
                    NOTIFY_QUEUE,
                    OPEN,
                    PREPARED,
                    SLOTS,
                    AUTOVACUUM,
                    RELAYS,
                    KEYS,
                ],
                "the database cannot be used",
            );
            (None, None)
        }
        Ok(server) => {
            asking.findings.push(Finding::ok(
                CONNECTION,
                format!(
                    "PostgreSQL {}, database {}, as role {}",
                    server.version, server.database, server.role
                ),
            ));
            let facts = asking.within(database.server_facts()).await;
            asking.encryption(config, &facts);
            let pooled = asking.within(database.is_behind_transaction_pooler()).await;
            asking.settle(POOLER, pooled, |found| judge::pooler(POOLER, found));
            let has_outbox = asking.outbox(database).await;
            let relays = asking.within(database.relays()).await;
            asking.server(config, &facts, relays.as_ref().map_or(0, Vec::len));
            asking.vacuum(database, facts.as_ref().ok(), oldest).await;
            if has_outbox {
                let lag = asking.within(database.lag(SampleFrom::default())).await;
                let now = lag
                    .as_ref()
                    .map_or_else(|_| SystemTime::now(), |lag| lag.database_now);
                let both = relays.and_then(|relays| Ok((relays, lag?.lag)));
                asking.settle(RELAYS, both, |(relays, lag)| {
                    judge::relays(RELAYS, &relays, lag)
                });
                let blocked = asking.within(database.blocked_keys(None, MOST_KEYS)).await;
                asking.settle(KEYS, blocked, |blocked| {
                    let more = u32::try_from(blocked.len()).is_ok_and(|found| found >= MOST_KEYS);
                    keys::blocked(KEYS, &blocked, more, now)
                });
                (
                    asking
                        .within(database.named_exchanges(EXCHANGES))
                        .await
                        .ok(),
                    asking.within(database.unroutable()).await.ok(),
                )
            } else {
                asking.skip(&[RELAYS, KEYS], NO_OUTBOX);
                (None, None)
            }
        }
    };
    Outbox {
        findings: asking.findings,
        named,
        unroutable,
    }
}

const NO_OUTBOX: &str = "there is no outbox that this program can use";

struct Asking {
    deadline: Instant,
    findings: Vec<Finding>,
}

impl Asking {
    async fn within<T>(&self, asked: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        timeout_at(self.deadline, asked)
            .await
            .unwrap_or(Err(Error::NoAnswer {
                doing: "look at the database",
                waited: FIRST_HALF,
            }))
    }

    fn skip(&mut self, checks: &[&'static str], why: &str) {
        let skipped = checks.iter().map(|check| Finding::skipped(check, why));
        self.findings.extend(skipped);
    }

    /// What was answered is judged. That there is no outbox, or no right to look, is said elsewhere.
    fn settle<T>(
        &mut self,
        check: &'static str,
        answered: Result<T, Error>,
        judge: impl FnOnce(T) -> Finding,
    ) {
        self.findings.push(match answered {
            Ok(facts) => judge(facts),
            Err(error) => match error.kind() {
                ErrorKind::Schema | ErrorKind::Privilege => {
                    Finding::skipped(check, error.to_string())
                }
                ErrorKind::Unavailable
                | ErrorKind::ReadOnly
                | ErrorKind::Configuration
                | ErrorKind::Query => judge::failed(check, &error),
            },
        });
    }

    fn encryption(&mut self, config: &Config, facts: &Result<ServerFacts, Error>) {
        let mode = config.database.tls.as_ref().map(|tls| tls.settings().mode);
        let version = facts.as_ref().ok().and_then(|facts| facts.tls.as_deref());
        let elsewhere = is_elsewhere(config.database.url.expose_secret());
        self.findings.push(verdict::encryption(
            ENCRYPTION,
            "database.tls",
            mode,
            version,
            elsewhere,
        ));
    }

    /// Whether there is an outbox to look into, and the right to.
    async fn outbox(&mut self, database: &Database) -> bool {
        let schema = self.within(database.check_schema()).await;
        let rights = self.within(database.check_rights()).await;
        let missing = matches!(schema, Err(Error::SchemaMissing { .. }));
        let usable = schema.is_ok() && rights.is_ok();
        match &schema {
            Ok(()) => self.findings.push(Finding::ok(
                SCHEMA,
                format!("{} is as this program needs it", database.schema()),
            )),
            // Without rights it cannot be looked at.
            Err(error) if error.kind() == ErrorKind::Privilege && rights.is_err() => {
                self.findings
                    .push(Finding::skipped(SCHEMA, error.to_string()));
            }
            Err(error) => self.findings.push(judge::failed(SCHEMA, error)),
        }
        match &rights {
            _ if missing => self.skip(&[PRIVILEGES], NO_OUTBOX),
            Ok(()) => self.findings.push(Finding::ok(
                PRIVILEGES,
                "the role may do all that the relay does",
            )),
            Err(error) => self.findings.push(judge::failed(PRIVILEGES, error)),
        }
        usable
    }

    fn server(&mut self, config: &Config, facts: &Result<ServerFacts, Error>, relays: usize) {
        let facts = match facts {
            Ok(facts) => facts,
            Err(error) => {
                for check in [CONNECTIONS, DURABILITY, CLOCK, NOTIFY_QUEUE] {
                    self.findings.push(judge::failed(check, error));
                }
                return;
            }
        };
        let needed = i64::try_from(wiring::database_connections(config)).unwrap_or(i64::MAX);
        self.findings.extend([
            judge::connections(CONNECTIONS, facts, needed, relays),
            judge::durability(DURABILITY, facts),
            judge::clock(CLOCK, facts),
            judge::notify_queue(NOTIFY_QUEUE, facts),
        ]);
    }

    async fn vacuum(&mut self, database: &Database, facts: Option<&ServerFacts>, oldest: Duration) {
        let sees_others = facts.is_some_and(|facts| facts.sees_others);
        match self.within(database.open_transactions()).await {
            Ok(holders) => self.findings.extend([
                vacuum::open_transactions(OPEN, &holders, oldest, sees_others),
                vacuum::prepared_transactions(PREPARED, &holders, oldest),
            ]),
            Err(error) => self
                .findings
                .extend([OPEN, PREPARED].map(|check| judge::failed(check, &error))),
        }
        let slots = self.within(database.replication_slots()).await;
        self.settle(SLOTS, slots, |slots| {
            vacuum::replication_slots(SLOTS, &slots)
        });
        let tables = self.within(database.vacuum_of_tables()).await;
        let running = facts.is_none_or(|facts| facts.autovacuum);
        self.settle(AUTOVACUUM, tables, |tables| {
            vacuum::autovacuum(AUTOVACUUM, running, &tables)
        });
    }
}

/// Whether some host of it is another machine. What cannot be read has been refused before.
fn is_elsewhere(url: &str) -> bool {
    let Ok(config) = url.parse::<tokio_postgres::Config>() else {
        return false;
    };
    let hosts = config.get_hosts().iter().any(|host| match host {
        Host::Tcp(name) => !is_loopback(name),
        Host::Unix(_) => false,
    });
    hosts
        || config
            .get_hostaddrs()
            .iter()
            .any(|address| !address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_elsewhere;

    #[test]
    fn another_machine_is_told_from_this_one() {
        for (url, elsewhere) in [
            ("postgres://a@localhost/db", false),
            ("postgres://a@127.0.0.1,db.example/db", true),
            ("host=/run/postgresql user=a", false),
            ("hostaddr=10.0.0.1 user=a", true),
        ] {
            assert_eq!(is_elsewhere(url), elsewhere, "{url}");
        }
    }
}
