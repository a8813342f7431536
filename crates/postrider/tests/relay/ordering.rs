//! Order by key, between real servers.

use postrider_testbed::daemon::Daemon;
use uuid::Uuid;

use crate::lifecycle::wait_until_readyz;
use crate::line::{
    ASTRAY, Line, assert_all_in_order, bind_astray, has_arrived, impatient, insert_one, patient,
    unkeyed, wait_for_arrivals,
};
use crate::stage::{DEADLINE, EXCHANGE, KEY, Stage, rows_of, wait_for_rows};

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_one_key_arrive_in_order_and_say_so_in_their_headers() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let _daemon = stage.daemon().await;
    let mut line = Line::new(&stage).await;
    line.one("first", KEY).await;
    assert_all_in_order(&stage).await;
    for _ in 0..3 {
        line.many("key-", 50, 1_000).await;
        line.many("hot", 1, 200).await;
        unkeyed(&stage, &line.client).await;
    }
    assert_all_in_order(&stage).await;
    let order = stage.audit.order();
    assert_eq!((order.keys, order.delivered), (52, 3_601), "{order}");
    assert_eq!(stage.audit.report().duplicates, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_delivered_holds_back_its_own_key_and_no_other() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let _daemon = Daemon::start(patient(&stage)).await.unwrap();
    let mut line = Line::new(&stage).await;
    line.many("held", 1, 3).await;
    let head = line.one("held0", ASTRAY).await;
    let followers = line.many("held", 1, 20).await;
    let mut others = line.many("free-", 20, 500).await;
    others.push(unkeyed(&stage, &line.client).await);
    wait_for_arrivals(&stage, &others).await;
    wait_for_rows(&line.client, "parked", 20).await;
    // Behind what is parked, with its head still there.
    let late = line.many("held", 1, 5).await;
    wait_for_rows(&line.client, "parked", 25).await;
    for id in [head].iter().chain(&followers).chain(&late) {
        assert!(!has_arrived(&stage, *id));
    }
    bind_astray(&stage).await;
    assert_all_in_order(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_blocks_its_key_until_it_is_retried_and_then_all_come_in_order() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let daemon = Daemon::start(impatient(&stage)).await.unwrap();
    let mut line = Line::new(&stage).await;
    line.one("held0", ASTRAY).await;
    line.many("held", 1, 20).await;
    let others = line.many("free-", 5, 50).await;
    wait_for_arrivals(&stage, &others).await;
    wait_for_rows(&line.client, "dead_letters", 1).await;
    wait_for_rows(&line.client, "parked", 20).await;
    bind_astray(&stage).await;
    let told = daemon.wait_for_log("dead_lettered", DEADLINE).await;
    let told = told.unwrap();
    assert!(
        told.contains("ordering_key") && told.contains("held0"),
        "{told}"
    );
    // Nobody but a person decides.
    let others = line.many("free-", 5, 50).await;
    wait_for_arrivals(&stage, &others).await;
    assert_eq!(rows_of(&line.client, "parked").await, 20);
    let retried = stage.run(&["dead-letters", "retry", "--all"]);
    assert!(retried.status.success(), "{retried:?}");
    assert_all_in_order(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_blocks_its_key_until_it_is_discarded_and_then_the_others_come_in_order() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let _daemon = Daemon::start(impatient(&stage)).await.unwrap();
    let mut line = Line::new(&stage).await;
    let row = insert_one(&line.client, "held0", ASTRAY).await;
    let discarded: Uuid = row.get(0);
    line.many("held", 1, 20).await;
    wait_for_rows(&line.client, "dead_letters", 1).await;
    wait_for_rows(&line.client, "parked", 20).await;
    bind_astray(&stage).await;
    let answer = stage.run(&["dead-letters", "discard", "--all", "--yes"]);
    assert!(answer.status.success(), "{answer:?}");
    assert_all_in_order(&stage).await;
    assert!(!has_arrived(&stage, discarded));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_operator_wants_it_a_key_goes_on_after_a_dead_letter() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let options = stage
        .options()
        .env("POSTRIDER_RETRY_MAX_ATTEMPTS", "2")
        .env("POSTRIDER_RETRY_INITIAL_DELAY", "50ms")
        .env("POSTRIDER_ORDERING_AFTER_DEAD_LETTER", "continue");
    let _daemon = Daemon::start(options).await.unwrap();
    let mut line = Line::new(&stage).await;
    let dead: Uuid = insert_one(&line.client, "held0", ASTRAY).await.get(0);
    line.many("held", 1, 20).await;
    stage
        .audit
        .wait_until_all_delivered(DEADLINE)
        .await
        .unwrap();
    for (table, rows) in [
        ("messages", 0),
        ("dead_letters", 1),
        ("parked", 0),
        ("blocked_keys", 0),
    ] {
        wait_for_rows(&line.client, table, rows).await;
    }
    assert!(stage.audit.order().is_clean(), "{}", stage.audit.order());
    assert!(!has_arrived(&stage, dead));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_messages_behind_a_blocked_key_are_put_aside_and_hold_up_no_other() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let mut line = Line::new(&stage).await;
    line.one("hot0", ASTRAY).await;
    line.many("hot", 1, 10_000).await;
    let others = line.many("free-", 100, 1_000).await;
    let _daemon = Daemon::start(patient(&stage)).await.unwrap();
    wait_for_arrivals(&stage, &others).await;
    wait_for_rows(&line.client, "parked", 10_000).await;
    assert_eq!(rows_of(&line.client, "messages").await, 0);
    bind_astray(&stage).await;
    assert_all_in_order(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_messages_that_may_be_superseded_and_wait_next_to_each_other_only_the_newest_is_sent() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let daemon = stage.daemon().await;
    let mut line = Line::new(&stage).await;
    // A first confirm: until then the relay takes one message at a time.
    unkeyed(&stage, &line.client).await;
    stage.assert_clean().await;
    line.client.batch_execute("BEGIN").await.unwrap();
    let before = line.superseding("hot", 10).await;
    let between = line.one("hot", KEY).await;
    let after = line.superseding("hot", 10).await;
    line.client.batch_execute("COMMIT").await.unwrap();
    assert_all_in_order(&stage).await;
    let arrived: Vec<Uuid> = stage
        .audit
        .deliveries()
        .iter()
        .skip(1)
        .map(|delivery| delivery.id)
        .collect();
    assert_eq!(arrived, [before[9], between, after[9]]);
    assert_eq!(stage.audit.report().superseded, 18);
    daemon
        .wait_for_metric(
            "postrider_superseded_total",
            &[],
            |count| count == 18.0,
            DEADLINE,
        )
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_newest_fails_those_it_stood_for_are_sent_one_by_one() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let daemon = stage.daemon().await;
    let mut line = Line::new(&stage).await;
    unkeyed(&stage, &line.client).await;
    stage.assert_clean().await;
    line.client.batch_execute("BEGIN").await.unwrap();
    let older = line.superseding("hot", 5).await;
    // Three times as long on the wire as in the table, which takes it.
    line.client
        .execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload, headers, ordering_key, supersede) \
             SELECT $1, $2, 'x', jsonb_build_object('a', jsonb_agg(1)), 'hot', true FROM generate_series(1, 21800)",
            &[&EXCHANGE, &KEY],
        )
        .await
        .unwrap();
    line.client.batch_execute("COMMIT").await.unwrap();
    wait_for_arrivals(&stage, &older).await;
    wait_for_rows(&line.client, "dead_letters", 1).await;
    assert_eq!(
        daemon.metric("postrider_superseded_total", &[]).await,
        Some(0.0)
    );
    let answer = stage.run(&["dead-letters", "discard", "--all", "--yes"]);
    assert!(answer.status.success(), "{answer:?}");
    assert_all_in_order(&stage).await;
}

/// A message of a key whose transaction is open, then one of the same key whose transaction commits; ids in that order.
async fn lower_seq_commits_last(stage: &Stage, line: &mut Line<'_>, horizon: bool) -> [Uuid; 2] {
    let late = stage.sql().await;
    late.batch_execute("BEGIN").await.unwrap();
    let lower = insert_one(&late, "aggregate", KEY).await;
    let higher = insert_one(&line.client, "aggregate", KEY).await;
    let ids = [lower.get(0), higher.get(0)];
    if horizon {
        // The relay goes on meanwhile.
        for _ in 0..20 {
            let id = unkeyed(stage, &line.client).await;
            wait_for_arrivals(stage, &[id]).await;
        }
        assert!(!has_arrived(stage, ids[1]));
    } else {
        wait_for_arrivals(stage, &ids[1..]).await;
    }
    late.batch_execute("COMMIT").await.unwrap();
    // In the order of their places in the outbox.
    line.committed(&[lower, higher]);
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_horizon_a_late_commit_comes_in_the_order_of_seq() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let options = stage.options().env("POSTRIDER_ORDERING_HORIZON", "true");
    let _daemon = Daemon::start(options).await.unwrap();
    let mut line = Line::new(&stage).await;
    for _ in 0..3 {
        lower_seq_commits_last(&stage, &mut line, true).await;
        assert_all_in_order(&stage).await;
    }
    // And nothing is slow or held back where no transaction is open.
    line.many("free-", 20, 1_000).await;
    assert_all_in_order(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_horizon_a_late_commit_comes_in_the_order_of_commits() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let _daemon = stage.daemon().await;
    let mut line = Line::new(&stage).await;
    let [lower, higher] = lower_seq_commits_last(&stage, &mut line, false).await;
    stage.assert_clean().await;
    let arrived: Vec<Uuid> = stage.audit.deliveries().iter().map(|d| d.id).collect();
    assert_eq!(arrived, [higher, lower]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_many_in_flight_of_a_key_the_order_holds_while_nothing_is_refused() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let options = stage
        .options()
        .env("POSTRIDER_ORDERING_IN_FLIGHT_PER_KEY", "1000");
    let _daemon = Daemon::start(options).await.unwrap();
    let mut line = Line::new(&stage).await;
    line.many("hot", 1, 5_000).await;
    assert_all_in_order(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_someone_has_locked_holds_back_its_own_key_and_goes_on_when_it_is_let_go() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let mut line = Line::new(&stage).await;
    let held = line.many("held", 1, 5).await;
    let mut others = line.many("free-", 20, 100).await;
    let operator = stage.sql().await;
    operator
        .batch_execute(&format!(
            "BEGIN; UPDATE outbox.messages SET headers = '{{\"mended\": true}}' WHERE id = '{}'",
            held[2]
        ))
        .await
        .unwrap();
    let _daemon = stage.daemon().await;
    others.extend(&held[..2]);
    wait_for_arrivals(&stage, &others).await;
    let others = line.many("free-", 20, 100).await;
    wait_for_arrivals(&stage, &others).await;
    for id in &held[2..] {
        assert!(!has_arrived(&stage, *id));
    }
    operator.batch_execute("COMMIT").await.unwrap();
    assert_all_in_order(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_goes_neither_with_a_time_nor_with_a_priority() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    for (given, refusal) in [
        (
            "deliver_at => now() + interval '1 hour'",
            "deliver_at and ordering_key are both given",
        ),
        ("priority => 3", "priority_or_ordering_key_not_both"),
    ] {
        let publish = format!(
            "SELECT outbox.publish('shop', 'a', '{{}}'::json, ordering_key => 'k', {given})"
        );
        let error = client.batch_execute(&publish).await.unwrap_err();
        let said = error.as_db_error().unwrap().message();
        assert!(said.contains(refusal), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_share_the_keys_and_repeat_nothing_in_a_run_without_faults() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let daemons = [
        stage.daemon().await,
        stage.daemon().await,
        stage.daemon().await,
    ];
    for daemon in &daemons {
        wait_until_readyz(daemon, None).await;
        // By this each takes its share of the lanes.
        let counts =
            daemon.wait_for_metric("postrider_relays", &[], |relays| relays == 3.0, DEADLINE);
        counts.await.unwrap();
    }
    let mut line = Line::new(&stage).await;
    for _ in 0..10 {
        line.many("key-", 500, 1_000).await;
    }
    assert_all_in_order(&stage).await;
    let report = stage.audit.report();
    assert_eq!(report.duplicates, 0, "{report}");
    let mut sharing = 0;
    for daemon in &daemons {
        let published = daemon
            .metric("postrider_published_total", &[("exchange", EXCHANGE)])
            .await;
        sharing += u32::from(published.is_some_and(|messages| messages > 0.0));
    }
    assert!(sharing >= 2, "only {sharing} of the relays worked");
}
