//! What keeps deleted rows in the tables. Claims do not walk over them, but tables and indexes grow.

use std::time::Duration;

use postrider_postgres::{HeldBy, Holder, SlotFacts, TableVacuum};

use super::super::finding::Finding;
use crate::table::{coarse, printable};

/// Where nobody may see how long a transaction is open: so many others since make it an old one.
const MANY_TRANSACTIONS: i64 = 1_000_000;
/// More than autovacuum leaves in a table that it looks after: it comes at 2,000.
const MANY_DEAD_ROWS: i64 = 100_000;
/// And it comes every minute, unless somebody has told it otherwise.
const LONG_AGO: Duration = Duration::from_secs(10 * 60);

/// The transactions of sessions, of which none should be older than `oldest`.
pub(crate) fn open_transactions(
    check: &'static str,
    holders: &[Holder],
    oldest: Duration,
    sees_others: bool,
) -> Finding {
    let sessions: Vec<(&Holder, String)> = holders
        .iter()
        .filter_map(|holder| match &holder.by {
            HeldBy::Prepared { .. } => None,
            HeldBy::Session {
                pid,
                role,
                application,
            } => Some((
                holder,
                format!(
                    "session {pid} ({}, {})",
                    printable(role),
                    printable(application)
                ),
            )),
        })
        .collect();
    let old = sessions.iter().filter(|(holder, _)| is_old(holder, oldest));
    if let Some((holder, name)) = old.clone().max_by_key(|(holder, _)| holder.transactions) {
        return Finding::warning(
            check,
            format!(
                "{} old; {name} has had a transaction open for {}: nothing that was deleted since can be vacuumed",
                count(old.count(), "transaction is", "transactions are"),
                age(holder)
            ),
            "end it: SELECT pg_terminate_backend(pid), and give its role an idle_in_transaction_session_timeout",
        );
    }
    let unseen = sessions
        .iter()
        .any(|(holder, _)| holder.age.is_none() && !sees_others);
    Finding::ok(
        check,
        if unseen {
            format!(
                "none older than {MANY_TRANSACTIONS} transactions (since when others are open is seen only by members of pg_read_all_stats)"
            )
        } else {
            format!("none older than {}", coarse(oldest))
        },
    )
}

/// Those that were prepared for a two-phase commit.
pub(crate) fn prepared_transactions(
    check: &'static str,
    holders: &[Holder],
    oldest: Duration,
) -> Finding {
    let prepared = holders.iter().filter_map(|holder| match &holder.by {
        HeldBy::Prepared { name, owner } if is_old(holder, oldest) => Some((holder, name, owner)),
        HeldBy::Prepared { .. } | HeldBy::Session { .. } => None,
    });
    let Some((holder, name, owner)) = prepared.clone().max_by_key(|(holder, ..)| holder.age) else {
        return Finding::ok(check, format!("none older than {}", coarse(oldest)));
    };
    Finding::warning(
        check,
        format!(
            "{} forgotten; '{}' of {} was prepared {} ago: it holds its locks and keeps vacuum back, restarts included",
            count(prepared.count(), "transaction seems", "transactions seem"),
            printable(name),
            printable(owner),
            age(holder)
        ),
        "COMMIT PREPARED or ROLLBACK PREPARED it, as its coordinator says",
    )
}

pub(crate) fn replication_slots(check: &'static str, slots: &[SlotFacts]) -> Finding {
    let abandoned = slots.iter().find(|slot| !slot.active);
    if let Some(slot) = abandoned {
        return Finding::warning(
            check,
            format!(
                "nobody reads from slot '{}': it keeps vacuum back, and the log on disk",
                printable(&slot.name)
            ),
            "start what reads from it, or SELECT pg_drop_replication_slot(...)",
        );
    }
    let behind = slots
        .iter()
        .find(|slot| slot.transactions.unwrap_or(0) > MANY_TRANSACTIONS);
    match behind {
        Some(slot) => Finding::warning(
            check,
            format!(
                "slot '{}' keeps what was deleted in the last {} transactions",
                printable(&slot.name),
                slot.transactions.unwrap_or(0)
            ),
            "end the long query on that standby, or switch hot_standby_feedback off there",
        ),
        None => Finding::ok(check, "none keeps vacuum back"),
    }
}

pub(crate) fn autovacuum(check: &'static str, running: bool, tables: &[TableVacuum]) -> Finding {
    if !running {
        return Finding::warning(
            check,
            "autovacuum or track_counts is off for the whole server: what was sent stays in the tables, which grow",
            "set both on in postgresql.conf",
        );
    }
    if let Some(off) = tables.iter().find(|table| table.switched_off) {
        return Finding::warning(
            check,
            format!(
                "autovacuum is switched off for {}: what was sent stays in it, and it grows",
                off.table
            ),
            format!(
                "ALTER TABLE {} RESET (autovacuum_enabled, toast.autovacuum_enabled), in the schema of the outbox",
                off.table
            ),
        );
    }
    let neglected = tables.iter().find(|table| {
        table.dead_rows >= MANY_DEAD_ROWS && table.vacuumed.is_none_or(|ago| ago > LONG_AGO)
    });
    match neglected {
        Some(table) => Finding::warning(
            check,
            format!(
                "{} has some {} deleted rows, and was {}",
                table.table,
                table.dead_rows,
                match table.vacuumed {
                    Some(ago) => format!("vacuumed {} ago", coarse(ago)),
                    None => "never vacuumed".to_owned(),
                }
            ),
            "see that autovacuum_max_workers are not all busy elsewhere, and autovacuum_naptime",
        ),
        None => Finding::ok(check, "it looks after the tables of the outbox"),
    }
}

fn is_old(holder: &Holder, oldest: Duration) -> bool {
    match holder.age {
        Some(age) => age > oldest,
        None => holder.transactions > MANY_TRANSACTIONS,
    }
}

fn age(holder: &Holder) -> String {
    match holder.age {
        Some(age) => coarse(age),
        None => format!("{} transactions", holder.transactions),
    }
}

fn count(count: usize, one: &str, several: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        count => format!("{count} {several}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::finding::Status;
    use super::*;

    const FIVE_MINUTES: Duration = Duration::from_secs(300);

    fn session(age: Option<u64>, transactions: i64) -> Holder {
        Holder {
            by: HeldBy::Session {
                pid: 4711,
                role: "report".to_owned(),
                application: "psql".to_owned(),
            },
            age: age.map(Duration::from_secs),
            transactions,
        }
    }

    fn prepared(age: u64) -> Holder {
        Holder {
            by: HeldBy::Prepared {
                name: "order-1".to_owned(),
                owner: "shop".to_owned(),
            },
            age: Some(Duration::from_secs(age)),
            transactions: 1,
        }
    }

    #[test]
    fn an_old_transaction_of_a_session_is_a_warning_that_names_it() {
        let status =
            |holders: &[Holder]| open_transactions("c", holders, FIVE_MINUTES, true).status;
        assert_eq!(status(&[]), Status::Ok);
        assert_eq!(status(&[session(Some(299), 5_000_000)]), Status::Ok);
        assert_eq!(status(&[prepared(1_000)]), Status::Ok);
        let old = [session(Some(10), 2), session(Some(400), 3)];
        let found = open_transactions("c", &old, FIVE_MINUTES, true);
        assert_eq!(found.status, Status::Warning);
        assert!(
            found.message.contains("session 4711 (report, psql)"),
            "{found:?}"
        );
        assert!(found.message.contains("6m 40s"), "{found:?}");
    }

    #[test]
    fn what_a_role_may_not_see_is_judged_by_the_transactions_since() {
        let found = |transactions| {
            open_transactions("c", &[session(None, transactions)], FIVE_MINUTES, false)
        };
        assert_eq!(found(2_000_000).status, Status::Warning);
        let unseen = found(10);
        assert_eq!(unseen.status, Status::Ok);
        assert!(unseen.message.contains("pg_read_all_stats"), "{unseen:?}");
    }

    #[test]
    fn a_forgotten_prepared_transaction_is_a_warning_with_its_name() {
        let found = |holders: &[Holder]| prepared_transactions("c", holders, FIVE_MINUTES);
        assert_eq!(
            found(&[prepared(10), session(Some(999), 1)]).status,
            Status::Ok
        );
        let old = found(&[prepared(301)]);
        assert_eq!(old.status, Status::Warning);
        assert!(old.message.contains("'order-1' of shop"), "{old:?}");
    }

    #[test]
    fn a_slot_that_nobody_reads_from_or_that_is_far_behind_is_a_warning() {
        let slot = |active, transactions| SlotFacts {
            name: "standby".to_owned(),
            active,
            transactions,
        };
        let status = |slot| replication_slots("c", &[slot]).status;
        assert_eq!(status(slot(true, Some(1_000))), Status::Ok);
        assert_eq!(status(slot(true, None)), Status::Ok);
        assert_eq!(status(slot(false, None)), Status::Warning);
        assert_eq!(status(slot(true, Some(2_000_000))), Status::Warning);
    }

    #[test]
    fn tables_that_autovacuum_does_not_look_after_are_a_warning() {
        let table = |switched_off, dead_rows, minutes: Option<u64>| TableVacuum {
            table: "messages".to_owned(),
            switched_off,
            dead_rows,
            vacuumed: minutes.map(|minutes| Duration::from_secs(60 * minutes)),
        };
        let status = |running, table| autovacuum("c", running, &[table]).status;
        assert_eq!(status(true, table(false, 99_999, None)), Status::Ok);
        assert_eq!(status(true, table(false, 200_000, Some(1))), Status::Ok);
        assert_eq!(
            status(true, table(false, 200_000, Some(11))),
            Status::Warning
        );
        assert_eq!(status(true, table(false, 200_000, None)), Status::Warning);
        assert_eq!(status(true, table(true, 0, Some(1))), Status::Warning);
        assert_eq!(status(false, table(false, 0, Some(1))), Status::Warning);
    }
}
