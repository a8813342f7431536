//! What is known of the database: whether messages flow through it, and survive.

use std::time::Duration;

use postrider_postgres::{Error, ErrorKind, RelayPresence, ServerFacts};

use super::super::finding::Finding;
use crate::table::{coarse, printable};

/// From here on two clocks are so far apart that people who compare logs are misled.
const SKEW: Duration = Duration::from_secs(5);
/// Messages that wait so long while nobody relays are not just about to be.
const UNATTENDED: Duration = Duration::from_secs(60);
/// PostgreSQL itself warns from here on.
const NOTIFY_QUEUE_FILLS: f64 = 0.5;
const NOTIFY_QUEUE_IS_FULL: f64 = 0.9;

/// What a statement or a connect that failed means. Its text says already what is wrong.
pub(crate) fn failed(check: &'static str, error: &Error) -> Finding {
    let action = match error.kind() {
        ErrorKind::Unavailable => {
            "see that the server runs and can be reached from here, and what its log says"
        }
        ErrorKind::ReadOnly => "name the primary in [database] url, or all of its hosts",
        ErrorKind::Schema => "run `postrider migrate`",
        ErrorKind::Privilege => {
            "look at user and password in [database] url, at pg_hba.conf, and at what `postrider grants relay` prints"
        }
        ErrorKind::Configuration => "correct [database] url, or use another database",
        ErrorKind::Query => "see what the server's log says",
    };
    Finding::failure(check, error.to_string(), action)
}

pub(crate) fn pooler(check: &'static str, found: bool) -> Finding {
    if found {
        Finding::failure(
            check,
            "a pooler between gives a session of the server to each transaction: wake-ups, locks and settings of the \
             relay's sessions are lost or another's",
            "name the server itself in [database] url, or a pool in session mode",
        )
    } else {
        Finding::ok(check, "none that pools transactions was found")
    }
}

/// Whether the relay finds the connections it needs. Those of a relay that is connected count already.
pub(crate) fn connections(
    check: &'static str,
    facts: &ServerFacts,
    needed: i64,
    relays: usize,
) -> Finding {
    let limits = [
        (
            "role",
            facts.role_limit,
            facts.role_connections,
            "ALTER ROLE ... CONNECTION LIMIT",
        ),
        (
            "database",
            facts.database_limit,
            facts.database_connections,
            "ALTER DATABASE ... CONNECTION LIMIT",
        ),
        (
            "server",
            Some(facts.max_connections),
            facts.connections,
            "max_connections",
        ),
    ];
    for (of, limit, used, raise) in limits {
        let Some(limit) = limit else { continue };
        let text = format!(
            "a relay opens up to {needed} connections, the {of} may have {limit} and has {used}"
        );
        let action = format!("raise {raise}, or lower [relay] workers");
        if limit < needed {
            return Finding::failure(check, text, action);
        }
        if relays == 0 && limit.saturating_sub(used) < needed {
            return Finding::warning(check, text, action);
        }
    }
    Finding::ok(
        check,
        format!(
            "a relay opens up to {needed}; the server has {} of {} in use",
            facts.connections, facts.max_connections
        ),
    )
}

/// Whether what is committed stays.
pub(crate) fn durability(check: &'static str, facts: &ServerFacts) -> Finding {
    if !facts.fsync {
        return Finding::failure(
            check,
            "fsync is off: a crash may take committed messages with it, or the whole database",
            "set fsync = on in postgresql.conf",
        );
    }
    if !facts.full_page_writes {
        return Finding::warning(
            check,
            "full_page_writes is off: a crash may leave torn pages, unless the file system writes pages whole",
            "set full_page_writes = on in postgresql.conf",
        );
    }
    match facts.synchronous_commit.as_str() {
        "off" => Finding::ok(
            check,
            "synchronous_commit is off for this role or database; an insert into the outbox turns it on for its transaction",
        ),
        "local" if facts.has_synchronous_standbys => Finding::warning(
            check,
            "synchronous_commit is local, and there are synchronous standbys: after a failover a message may have been \
             sent whose change is lost",
            "set synchronous_commit = on for the roles of producers",
        ),
        setting => Finding::ok(
            check,
            format!("fsync is on, synchronous_commit is {setting}"),
        ),
    }
}

pub(crate) fn clock(check: &'static str, facts: &ServerFacts) -> Finding {
    let (theirs, ours) = facts.clock;
    let (apart, which) = match theirs.duration_since(ours) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    // Half of the round trip may be the way of the answer.
    if apart.saturating_sub(facts.clock_known_to) > SKEW {
        Finding::warning(
            check,
            format!(
                "the database's clock is {} {which} this machine's; deliver_at, lag and ages go by the database's, logs by this one's",
                coarse(apart)
            ),
            "synchronise both, by NTP for instance",
        )
    } else {
        Finding::ok(check, format!("within {} of the database's", coarse(SKEW)))
    }
}

pub(crate) fn notify_queue(check: &'static str, facts: &ServerFacts) -> Finding {
    let text = format!(
        "the queue of notifications is {:.0} % full; once it is full, commits that notify fail, those of producers too",
        facts.notify_queue * 100.0
    );
    let action =
        "end the session that listens and stays in a transaction: the server's log names it";
    if facts.notify_queue >= NOTIFY_QUEUE_IS_FULL {
        Finding::failure(check, text, action)
    } else if facts.notify_queue >= NOTIFY_QUEUE_FILLS {
        Finding::warning(check, text, action)
    } else {
        Finding::ok(check, format!("{:.0} % full", facts.notify_queue * 100.0))
    }
}

pub(crate) fn relays(check: &'static str, relays: &[RelayPresence], lag: Duration) -> Finding {
    let names: Vec<String> = relays.iter().map(|relay| printable(&relay.name)).collect();
    match names.len() {
        0 if lag > UNATTENDED => Finding::warning(
            check,
            format!(
                "none is connected, and a message waits since {}",
                coarse(lag)
            ),
            "start one with `postrider run`",
        ),
        0 => Finding::ok(check, "none is connected"),
        count => Finding::ok(check, format!("{count} connected: {}", names.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::super::finding::Status;
    use super::*;

    fn facts() -> ServerFacts {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        ServerFacts {
            clock: (now, now),
            clock_known_to: Duration::from_millis(1),
            fsync: true,
            full_page_writes: true,
            synchronous_commit: "on".to_owned(),
            has_synchronous_standbys: false,
            autovacuum: true,
            max_connections: 97,
            connections: 10,
            role_limit: None,
            role_connections: 1,
            database_limit: None,
            database_connections: 2,
            notify_queue: 0.0,
            tls: None,
            sees_others: true,
        }
    }

    #[test]
    fn a_pooler_of_transactions_is_a_failure() {
        assert_eq!(pooler("c", true).status, Status::Failure);
        assert_eq!(pooler("c", false).status, Status::Ok);
    }

    #[test]
    fn a_limit_below_what_a_relay_needs_is_a_failure_and_too_few_that_are_free_a_warning() {
        let status = |facts: ServerFacts, relays| connections("c", &facts, 8, relays).status;
        assert_eq!(status(facts(), 0), Status::Ok);
        let mut role = facts();
        role.role_limit = Some(7);
        assert_eq!(status(role.clone(), 0), Status::Failure);
        assert_eq!(status(role, 1), Status::Failure);
        let mut busy = facts();
        busy.connections = 90;
        assert_eq!(status(busy.clone(), 0), Status::Warning);
        // Its own are among those in use.
        assert_eq!(status(busy, 1), Status::Ok);
        let mut database = facts();
        (database.database_limit, database.database_connections) = (Some(9), 2);
        let found = connections("c", &database, 8, 0);
        assert_eq!(found.status, Status::Warning);
        assert!(found.message.contains("database may have 9"), "{found:?}");
    }

    #[test]
    fn without_fsync_messages_may_be_lost_and_asynchronous_commit_does_no_harm() {
        let status = |facts: &ServerFacts| durability("c", facts).status;
        let mut set = facts();
        for harmless in ["on", "off", "local", "remote_write", "remote_apply"] {
            set.synchronous_commit = harmless.to_owned();
            assert_eq!(status(&set), Status::Ok, "{harmless}");
        }
        set.synchronous_commit = "local".to_owned();
        set.has_synchronous_standbys = true;
        assert_eq!(status(&set), Status::Warning);
        set.full_page_writes = false;
        assert_eq!(status(&set), Status::Warning);
        set.fsync = false;
        assert_eq!(status(&set), Status::Failure);
    }

    #[test]
    fn clocks_that_are_apart_in_either_direction_are_a_warning_unless_the_answer_was_as_slow() {
        let mut skewed = facts();
        let now = skewed.clock.1;
        for (theirs, status) in [
            (now + Duration::from_secs(4), Status::Ok),
            (now + Duration::from_secs(6), Status::Warning),
            (now - Duration::from_secs(6), Status::Warning),
        ] {
            skewed.clock.0 = theirs;
            assert_eq!(clock("c", &skewed).status, status);
        }
        skewed.clock_known_to = Duration::from_secs(2);
        assert_eq!(clock("c", &skewed).status, Status::Ok);
    }

    #[test]
    fn a_queue_of_notifications_that_fills_is_a_warning_and_a_full_one_a_failure() {
        let mut filled = facts();
        for (part, status) in [
            (0.0, Status::Ok),
            (0.5, Status::Warning),
            (0.95, Status::Failure),
        ] {
            filled.notify_queue = part;
            assert_eq!(notify_queue("c", &filled).status, status);
        }
    }

    #[test]
    fn messages_that_wait_while_nobody_relays_are_a_warning() {
        let relay = RelayPresence {
            name: "one".to_owned(),
            pid: 1,
            since: None,
        };
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(61));
        assert_eq!(relays("c", &[], short).status, Status::Ok);
        assert_eq!(relays("c", &[], long).status, Status::Warning);
        assert_eq!(relays("c", &[relay], long).status, Status::Ok);
    }
}
