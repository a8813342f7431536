//! The auditor's arithmetic.

use std::{collections::HashSet, time::Duration};

use postrider_testbed::Audit;
use uuid::Uuid;

#[tokio::test]
async fn lost_phantom_and_repeated_messages_are_told_apart() {
    let audit = Audit::new();
    let ids: Vec<Uuid> = (0..8).map(|_| Uuid::now_v7()).collect();
    let [good, twice, lost, undone, stray, there, gone, redelivered] = ids[..] else {
        unreachable!()
    };
    audit.committed([good, twice, lost, redelivered]);
    audit.rolled_back([undone]);
    audit.maybe_committed([there, gone]);
    for id in [good, twice, twice, undone, stray, there, redelivered] {
        audit.delivered(id, "orders", false);
    }
    audit.delivered(redelivered, "orders", true);
    // A second queue's copy is no repeat.
    audit.delivered(good, "copies", false);

    let report = audit.report();
    assert_eq!(report.committed, 4);
    assert_eq!(report.unknown, 2);
    assert_eq!(report.delivered, 6);
    assert_eq!(report.duplicates, 1);
    assert_eq!(report.lost, [lost]);
    assert_eq!(report.phantom, [undone, stray]);
    assert!(!report.is_clean());

    audit.resolve(&HashSet::from([there]));
    let report = audit.report();
    assert_eq!((report.committed, report.unknown), (5, 0));
    assert_eq!(report.lost, [lost]);
    audit.delivered(gone, "orders", false);
    assert_eq!(audit.report().phantom, [undone, stray, gone]);

    let error = audit
        .wait_until_all_delivered(Duration::from_millis(1))
        .await
        .unwrap_err();
    assert!(error.to_string().contains(&lost.to_string()), "{error}");
    let late = audit.clone();
    tokio::spawn(async move { late.delivered(lost, "orders", false) });
    audit
        .wait_until_all_delivered(Duration::from_secs(60))
        .await
        .unwrap();
}

#[test]
fn only_what_was_committed_and_arrived_has_a_journey_and_it_ends_with_the_first_copy() {
    let audit = Audit::new();
    let [whole, lost, phantom] = [Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()];
    audit.committed([whole, lost]);
    audit.delivered(phantom, "orders", false);
    audit.delivered(whole, "orders", false);
    let [first] = audit.journeys()[..] else {
        panic!("one journey is wanted: {:?}", audit.journeys());
    };
    assert_eq!(first.0, whole);
    assert!(first.1 <= first.2);
    audit.delivered(whole, "orders", false);
    assert_eq!(audit.journeys(), [first]);
}
