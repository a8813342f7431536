//! What is known of ordering keys: whether somebody has to decide.

use std::time::{Duration, SystemTime};

use postrider_postgres::{BlockedKey, Head};

use super::super::finding::Finding;
use crate::table::{coarse, name};

/// A message that fails a few times and is mended is out by then.
const LONG: Duration = Duration::from_secs(900);

/// What the blocked keys that were looked at mean; `more` where there are others.
pub(crate) fn blocked(
    check: &'static str,
    keys: &[BlockedKey],
    more: bool,
    now: SystemTime,
) -> Finding {
    let and_more = if more { " or more" } else { "" };
    let number = match keys.len() {
        0 => return Finding::ok(check, "none is blocked"),
        1 => "1 is blocked".to_owned(),
        several => format!("{several}{and_more} are blocked"),
    };
    let age = |key: &BlockedKey| now.duration_since(key.blocked_at).unwrap_or_default();
    let first = |which: &dyn Fn(&BlockedKey) -> bool| {
        let found = keys.iter().filter(|key| which(key));
        found.max_by_key(|key| age(key))
    };
    let named = |key: &BlockedKey| format!("{} for {}", name(&key.key), coarse(age(key)));
    if let Some(lost) = first(&|key| matches!(key.head, Head::Missing { .. })) {
        return Finding::warning(
            check,
            format!(
                "{number}, {} by a message that is in no table: it was taken away while triggers were off, and what is parked waits for ever",
                named(lost)
            ),
            format!(
                "`postrider keys show {}` says how to free it",
                name(&lost.key)
            ),
        );
    }
    if let Some(dead) = first(&|key| matches!(key.head, Head::DeadLetter { .. })) {
        return Finding::warning(
            check,
            format!(
                "{number}, {} by a message that was given up: what is parked behind it waits until a person decides",
                named(dead)
            ),
            "see `postrider keys list --blocked`, then retry or discard each dead letter it names",
        );
    }
    match first(&|key| key.head != Head::Resuming && age(key) >= LONG) {
        Some(long) => Finding::warning(
            check,
            format!(
                "{number}, {} by a message that fails again and again",
                named(long)
            ),
            "see `postrider keys list --blocked`, and mend what the reasons say",
        ),
        None => Finding::ok(check, number),
    }
}

#[cfg(test)]
mod tests {
    use postrider_core::Seq;
    use postrider_postgres::HeadMessage;
    use uuid::Uuid;

    use super::super::super::finding::Status;
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn key(head: Head, minutes: u64) -> BlockedKey {
        BlockedKey {
            key: format!("k{minutes}"),
            head,
            parked: 3,
            blocked_at: NOW - Duration::from_secs(60 * minutes),
        }
    }

    fn message() -> HeadMessage {
        HeadMessage {
            seq: Seq(1),
            id: Uuid::nil(),
            exchange: "shop".to_owned(),
            routing_key: "a".to_owned(),
            attempts: 1,
            reason: Some("nacked".to_owned()),
            error: None,
        }
    }

    fn retried(minutes: u64) -> BlockedKey {
        let (message, due_at) = (message(), NOW);
        key(Head::Deferred { message, due_at }, minutes)
    }

    #[test]
    fn a_key_that_waits_for_a_person_or_for_long_is_a_warning_and_one_that_moves_is_not() {
        let found = |keys: &[BlockedKey]| blocked("c", keys, false, NOW);
        let dead = key(Head::DeadLetter { message: message() }, 1);
        let lost = key(Head::Missing { seq: Seq(1) }, 1);
        assert_eq!(found(&[]).status, Status::Ok);
        assert_eq!(
            found(&[retried(14), key(Head::Resuming, 90)]).status,
            Status::Ok
        );
        assert_eq!(found(&[retried(1), retried(16)]).status, Status::Warning);
        for one in [dead.clone(), lost.clone()] {
            assert_eq!(found(&[retried(1), one]).status, Status::Warning);
        }
        let worst = found(&[dead, lost]);
        assert!(worst.message.contains("no table"), "{}", worst.message);
    }

    #[test]
    fn the_one_that_is_blocked_the_longest_is_named() {
        let found = blocked("c", &[retried(20), retried(90), retried(30)], true, NOW);
        assert!(
            found
                .message
                .starts_with("3 or more are blocked, k90 for 1h 30m"),
            "{}",
            found.message
        );
    }
}
