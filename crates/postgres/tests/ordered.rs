//! Claims of messages with a key: by lane, under the lane's lock, in order.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::collections::HashSet;

use std::time::Duration;

use fresh::keyed::{all_lanes, done, park, shown, waiting};
use fresh::settling::{HOUR, retry, settle_whole, text};
use fresh::{LIMITS, client, outbox, until};
use postrider_core::{Floor, Lane, LaneStart, LaneStarts, OrderedPlan, OrderedRow, Origin, Seq};
use postrider_postgres::{
    ClaimFrom, ClaimLimits, Database, Error, LookFor, Settings, Settlement, Share,
};

#[tokio::test]
async fn messages_of_a_key_are_claimed_in_the_order_of_their_places_with_everything_that_was_written()
 {
    let outbox = outbox().await;
    outbox
        .client
        .batch_execute(
            "SELECT outbox.publish('orders', 'order.placed', '{\"n\":1}', ordering_key => 'order-7', id => '00000000-0000-0000-0000-000000000001', type => 't'); \
             SELECT outbox.publish('orders', 'order.paid', '\\x00ff'::bytea, ordering_key => 'order-7', supersede => true); \
             SELECT outbox.publish('orders', 'order.placed', '1')",
        )
        .await
        .unwrap();
    let claim = outbox.claim_lanes().await;
    let plan = OrderedPlan::new(claim.rows.clone(), &HashSet::new());
    let shown: Vec<_> = plan
        .send
        .iter()
        .map(|message| {
            let ordered = message.ordered.clone().unwrap();
            assert_eq!((message.origin, message.attempts), (Origin::Messages, 0));
            assert_eq!(ordered.key, "order-7");
            (
                message.seq.0,
                message.routing_key.clone(),
                fresh::fetched(message).to_vec(),
                ordered.supersede,
            )
        })
        .collect();
    let expected = [
        (1, "order.placed".to_owned(), b"{\"n\":1}".to_vec(), false),
        (2, "order.paid".to_owned(), vec![0, 255], true),
    ];
    assert_eq!(shown, expected);
    assert_eq!(plan.send[0].id.as_u128(), 1);
    assert_eq!(plan.send[0].properties.kind.as_deref(), Some("t"));
    assert_eq!(claim.lanes.len(), 1);
    assert_eq!(claim.lanes[0].seqs, [Seq(1), Seq(2)]);
    assert!(claim.locked == 1 && claim.lanes[0].until.is_none());
    settle_whole(claim.claim, &done(&[1, 2])).await;
    assert_eq!(outbox.where_all_are().await, "3|||");
}

#[tokio::test]
async fn a_claim_of_messages_without_a_key_never_returns_one_with_a_key_and_tells_that_some_wait() {
    let outbox = outbox().await;
    let from = |ordered| ClaimFrom {
        fresh: None,
        ordered,
    };
    let claim = async |limits, resting: &[Seq], ordered| {
        let claim = outbox.database.claim_fresh(limits, resting, from(ordered));
        let claim = claim.await.unwrap();
        let seqs: Vec<i64> = claim.messages().iter().map(|m| m.seq.0).collect();
        let waits = claim.ordered_waits();
        claim.release().await.unwrap();
        (seqs, waits)
    };
    assert_eq!(claim(LIMITS, &[], None).await, (vec![], false));
    outbox.insert_keys(&["a", "b"]).await;
    assert_eq!(claim(LIMITS, &[], None).await, (vec![], true));
    outbox.insert(3).await;
    outbox.insert_keys(&["a"]).await;
    for share in [
        postrider_postgres::Share::InOrder,
        postrider_postgres::Share::Equal,
    ] {
        let limits = ClaimLimits { share, ..LIMITS };
        assert_eq!(claim(limits, &[], None).await, (vec![3, 4, 5], true));
        assert_eq!(claim(limits, &[Seq(4)], None).await, (vec![3, 5], true));
        assert!(claim(limits, &[], Some(Seq(6))).await.1);
        assert!(!claim(limits, &[], Some(Seq(7))).await.1);
        let two = ClaimLimits { rows: 2, ..limits };
        assert_eq!(claim(two, &[], None).await, (vec![3, 4], true));
    }
    // An empty one holds no transaction, whatever it tells.
    outbox
        .client
        .batch_execute("DELETE FROM outbox.messages WHERE ordering_key IS NULL")
        .await
        .unwrap();
    assert_eq!(claim(LIMITS, &[], None).await, (vec![], true));
}

#[tokio::test]
async fn a_lane_is_one_of_256_and_the_one_that_the_index_has() {
    let outbox = outbox().await;
    outbox
        .client
        .batch_execute("INSERT INTO outbox.messages (exchange, routing_key, payload_json, ordering_key) SELECT 'e', 'k', '1', 'key-' || n FROM generate_series(1, 3000) AS n")
        .await
        .unwrap();
    let lanes: HashSet<Lane> = waiting(&outbox.database)
        .await
        .lanes
        .iter()
        .map(|start| start.lane)
        .collect();
    assert_eq!(lanes.len(), 256);
    let index = text(
        &outbox,
        "SELECT pg_get_indexdef('outbox.messages_lane_seq'::regclass)",
    )
    .await;
    assert!(index.contains("(((hashtextextended((ordering_key COLLATE \"C\"), (0)::bigint) & (255)::bigint))::integer), seq)"), "{index}");
    // Each row is found by its own lane, and by no other.
    let all = postrider_core::Lanes::default().starts(None);
    let limits = ClaimLimits {
        rows: 100_000,
        ..LIMITS
    };
    let claim = outbox
        .database
        .claim_lanes(limits, &all, &[], None)
        .await
        .unwrap();
    assert_eq!(claim.rows.len(), 3000);
    assert_eq!(claim.locked, all.lanes.len());
    claim.claim.release().await.unwrap();
}

/// Two lanes at least.
const KEYS: [&str; 6] = ["a", "b", "c", "a", "b", "a"];

#[tokio::test]
async fn no_two_claims_have_a_lane_until_the_first_is_settled_or_released_or_its_session_ends() {
    let outbox = outbox().await;
    outbox.insert_keys(&KEYS).await;
    let other = Database::new(Settings::new(&outbox.url)).unwrap();
    for end in ["settle", "release", "kill", "drop"] {
        let claim = outbox.claim_lanes().await;
        let first = claim.rows.len();
        assert!(first >= 3 && claim.locked >= 2);
        let beside = all_lanes(&other, LIMITS).await;
        assert!(beside.rows.is_empty() && beside.claim.is_empty());
        assert_eq!(beside.locked, 0);
        match end {
            "settle" => {
                let OrderedRow::Free(message) = &claim.rows[0] else {
                    panic!("{:?}", claim.rows)
                };
                let seq = message.seq.0;
                settle_whole(claim.claim, &done(&[seq])).await;
            }
            "release" => claim.claim.release().await.unwrap(),
            "kill" => {
                outbox
                    .client
                    .batch_execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1818324581 AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())")
                    .await
                    .unwrap();
                let settled = claim.claim.settle(&done(&[2])).await;
                assert!(settled.unwrap_err().is_connection());
            }
            _ => drop(claim),
        }
        until("the lanes are free", || async {
            let again = all_lanes(&other, LIMITS).await;
            let free = again.locked >= 2 && !again.rows.is_empty();
            again.claim.release().await.unwrap();
            free
        })
        .await;
    }
    assert_eq!(outbox.where_all_are().await, "2,3,4,5,6|||");
}

#[tokio::test]
async fn a_claim_by_lanes_stays_within_its_rows_and_its_bytes() {
    let outbox = outbox().await;
    outbox
        .client
        .batch_execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload_json, ordering_key) \
             SELECT 'e', 'k', to_json(repeat('x', 998)), 'key-' || n % 40 FROM generate_series(1, 400) AS n",
        )
        .await
        .unwrap();
    for rows in [1, 7, 40, 90] {
        let limits = ClaimLimits { rows, ..LIMITS };
        let mut lanes = waiting(&outbox.database).await;
        lanes.lanes.truncate(usize::try_from(rows).unwrap());
        let claim = outbox
            .database
            .claim_lanes(limits, &lanes, &[], None)
            .await
            .unwrap();
        assert!(
            !claim.rows.is_empty() && claim.rows.len() <= usize::try_from(rows).unwrap(),
            "{rows}: {}",
            claim.rows.len()
        );
        assert_eq!(claim.rows.len(), claim.claim.len());
        let mut of_lanes: Vec<Seq> = claim
            .lanes
            .iter()
            .flat_map(|lane| lane.seqs.clone())
            .collect();
        of_lanes.sort_unstable();
        let seqs: Vec<Seq> = claim
            .rows
            .iter()
            .map(|row| match row {
                OrderedRow::Free(m) => m.seq,
                _ => panic!(),
            })
            .collect();
        assert_eq!(seqs, of_lanes);
        claim.claim.release().await.unwrap();
    }
    // The first always; the last may go beyond. What there is no room for is held.
    for (bytes, taken) in [(1, 1), (900, 1), (1100, 2), (2500, 3)] {
        let limits = ClaimLimits {
            rows: 400,
            bytes,
            ..LIMITS
        };
        let claim = all_lanes(&outbox.database, limits).await;
        let free = claim
            .rows
            .iter()
            .filter(|row| matches!(row, OrderedRow::Free(_)))
            .count();
        assert_eq!(free, taken, "bytes {bytes}");
        assert!(claim.rows.len() > taken);
        assert_eq!(claim.claim.len(), taken);
        claim.claim.release().await.unwrap();
    }
}

/// What is said of a lane is what the next claims of it begin with: a row below that was not returned would be overtaken.
#[tokio::test]
async fn of_each_lane_every_row_is_returned_up_to_where_it_is_said_to_have_been_read() {
    let outbox = outbox().await;
    outbox
        .client
        .batch_execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload_json, ordering_key) \
             SELECT 'e', 'k', '1', CASE WHEN n % 3 = 0 THEN 'hot' ELSE 'key-' || n % 40 END FROM generate_series(1, 600) AS n",
        )
        .await
        .unwrap();
    let (database, all) = (&outbox.database, waiting(&outbox.database).await);
    for until in [None, Some(Seq(301))] {
        for rows in [1, 7, 40, 90, 1000] {
            for share in [Share::InOrder, Share::Equal] {
                let limits = ClaimLimits {
                    rows,
                    share,
                    ..LIMITS
                };
                let most = usize::try_from(rows).unwrap();
                let mut lanes = all.clone();
                lanes.lanes.truncate(most);
                for start in &mut lanes.lanes {
                    start.until = until;
                }
                let claim = database.claim_lanes(limits, &lanes, &[], None);
                let claim = claim.await.unwrap();
                assert!(!claim.rows.is_empty() && claim.rows.len() <= most);
                assert_eq!(claim.locked, lanes.lanes.len());
                for read in &claim.lanes {
                    let below = read.until.map_or(i64::MAX, |until| until.0);
                    let sql = format!(
                        "SELECT coalesce(string_agg(m.seq::text, ',' ORDER BY m.seq), '') FROM outbox.messages AS m \
                         WHERE (hashtextextended(m.ordering_key COLLATE \"C\", 0) & 255)::integer = {} AND m.seq < {below}",
                        read.lane.0
                    );
                    let there = text(&outbox, &sql).await;
                    let read: Vec<String> = read.seqs.iter().map(|s| s.0.to_string()).collect();
                    assert_eq!(read.join(","), there, "{until:?} {rows} {share:?}");
                }
                claim.claim.release().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn with_equal_shares_of_the_bytes_a_row_that_needs_more_is_held_and_is_taken_in_order() {
    let outbox = outbox().await;
    outbox
        .client
        .batch_execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload, ordering_key) \
             VALUES ('e', 'k', decode(repeat('ab', 600), 'hex'), 'a'), ('e', 'k', 'x', 'a'), ('e', 'k', 'x', 'b')",
        )
        .await
        .unwrap();
    for (share, seen, cut) in [
        (Share::Equal, "held a, free 2, free 3", true),
        (Share::InOrder, "free 1, free 2, free 3", false),
    ] {
        let limits = ClaimLimits {
            rows: 10,
            bytes: 5_000,
            share,
            ..LIMITS
        };
        let claim = all_lanes(&outbox.database, limits).await;
        assert_eq!((shown(&claim).as_str(), claim.cut_by_bytes), (seen, cut));
        claim.claim.release().await.unwrap();
    }
}

#[tokio::test]
async fn where_many_wait_all_over_the_lanes_all_are_named_and_else_those_that_have_work() {
    let outbox = outbox().await;
    let every = postrider_core::Lanes::default().starts(None);
    let look = async |how| {
        let looked = outbox.database.waiting_lanes(None, how, &every);
        looked.await.unwrap()
    };
    let insert = |key: &str, rows: u32| {
        format!(
            "INSERT INTO outbox.messages (exchange, routing_key, payload_json, ordering_key) \
             SELECT 'e', 'k', '1', {key} FROM generate_series(1, {rows}) AS n"
        )
    };
    let few = insert("'key-' || n % 20", 2000);
    outbox.client.batch_execute(&few).await.unwrap();
    let found = look(LookFor::First).await;
    assert!(found.many && found.reach.is_none());
    assert!(found.lanes.len() <= 20, "{}", found.lanes.len());
    let many = insert("'key-' || n % 300", 2000);
    let sql = format!("TRUNCATE outbox.messages; {many}");
    outbox.client.batch_execute(&sql).await.unwrap();
    let found = look(LookFor::First).await;
    assert_eq!((found.many, found.lanes.len()), (true, 256));
    let reach = found.reach.unwrap();
    let lowest = found.lowest.unwrap();
    // One row at each place, and so 256 from one of a lane to the next.
    let mut lanes = [postrider_core::LaneStart {
        lane: Lane(9),
        from: None,
        until: None,
    }];
    reach.bound(&mut lanes, 8);
    assert_eq!(lanes[0].until, Some(Seq(lowest.0 + 8 * 256)));
    let mut found = look(LookFor::FirstThenEach).await;
    assert!(found.many && found.reach.is_none());
    assert!(found.lanes.len() < 256, "{}", found.lanes.len());
    let each = look(LookFor::Each).await;
    assert!(found.took > Duration::ZERO && each.took == Duration::ZERO);
    found.took = Duration::ZERO;
    assert_eq!(each, found);
}

/// Hazard: with `SKIP LOCKED` alone, an operator's open UPDATE of the first message let the second and third go.
#[tokio::test]
async fn behind_a_row_that_somebody_has_locked_or_that_is_left_out_nothing_of_its_key_goes() {
    let outbox = outbox().await;
    outbox.insert_keys(&KEYS).await;
    let operator = client(&outbox.url).await;
    operator
        .batch_execute("BEGIN; UPDATE outbox.messages SET routing_key = 'x' WHERE seq = 1")
        .await
        .unwrap();
    let sent = |claim: &postrider_postgres::OrderedClaim| {
        let plan = OrderedPlan::new(claim.rows.clone(), &HashSet::new());
        assert!(plan.held);
        plan.send.iter().map(|m| m.seq.0).collect::<Vec<_>>()
    };
    let claim = outbox.claim_lanes().await;
    assert_eq!(
        shown(&claim),
        "held a, free 2, free 3, free 4, free 5, free 6"
    );
    assert_eq!(sent(&claim), [2, 3, 5]);
    claim.claim.release().await.unwrap();
    operator.batch_execute("ROLLBACK").await.unwrap();

    let lanes = waiting(&outbox.database).await;
    let claim = outbox
        .database
        .claim_lanes(LIMITS, &lanes, &[Seq(2), Seq(4)], None)
        .await
        .unwrap();
    assert_eq!(
        shown(&claim),
        "free 1, held b, free 3, held a, free 5, free 6"
    );
    assert_eq!(sent(&claim), [1, 3]);
    // A row that was not locked is not the claim's to settle.
    let settled = claim.claim.settle(&done(&[2])).await;
    assert!(
        matches!(settled, Err(Error::NotClaimed(Seq(2)))),
        "{settled:?}"
    );
}

/// Hazard: a snapshot that is taken before the lock shows a key as free that the last one to have the lane blocked.
#[tokio::test]
async fn a_key_that_is_blocked_between_the_choice_of_its_lane_and_the_lock_is_seen_as_blocked() {
    let outbox = outbox().await;
    outbox.insert_keys(&KEYS).await;
    let other = Database::new(Settings::new(&outbox.url)).unwrap();
    let chosen = waiting(&other).await;
    let claim = outbox.claim_lanes().await;
    let settlement = Settlement {
        retry: vec![retry(1, HOUR)],
        ..Settlement::default()
    };
    settle_whole(claim.claim, &settlement).await;
    let claim = other.claim_lanes(LIMITS, &chosen, &[], None).await.unwrap();
    assert_eq!(
        shown(&claim),
        "free 2, free 3, blocked 4, free 5, blocked 6"
    );
    settle_whole(claim.claim, &park(&[4, 6])).await;
    assert_eq!(outbox.where_all_are().await, "2,3,5|4,6|1|");
    assert_eq!(outbox.blocked().await, "a:1:2");
}

#[tokio::test]
async fn lanes_are_read_from_their_beginnings_and_those_without_messages_are_not_named() {
    let outbox = outbox().await;
    outbox.insert_keys(&KEYS).await;
    // Few wait: no lane is looked at by itself.
    let every = LaneStarts::default();
    let all = outbox
        .database
        .waiting_lanes(None, LookFor::First, &every)
        .await
        .unwrap();
    assert_eq!(all.lowest, Some(Seq(1)));
    let late = outbox
        .database
        .waiting_lanes(Some(Seq(6)), LookFor::First, &every)
        .await
        .unwrap();
    assert_eq!((late.lanes.len(), late.lowest), (1, Some(Seq(6))));
    let none = outbox
        .database
        .waiting_lanes(Some(Seq(7)), LookFor::First, &every)
        .await
        .unwrap();
    assert_eq!(none, postrider_postgres::WaitingLanes::default());
    let start = LaneStarts {
        lanes: vec![LaneStart {
            lane: late.lanes[0],
            from: Some(Seq(5)),
            until: None,
        }],
        passed: Vec::new(),
    };
    let claim = outbox
        .database
        .claim_lanes(LIMITS, &start, &[], None)
        .await
        .unwrap();
    assert_eq!(shown(&claim), "free 6");
    claim.claim.release().await.unwrap();

    // Where very many wait of one key, the others are not hidden behind them.
    outbox
        .client
        .batch_execute("INSERT INTO outbox.messages (exchange, routing_key, payload_json, ordering_key) SELECT 'e', 'k', '1', 'hot' FROM generate_series(1, 5000); DELETE FROM outbox.messages WHERE seq <= 6")
        .await
        .unwrap();
    outbox.insert_keys(&["cold"]).await;
    assert_eq!(waiting(&outbox.database).await.lanes.len(), 2);
}

/// Of two transactions of one key the lower place commits last.
#[tokio::test]
async fn with_the_horizon_no_message_goes_before_one_with_a_lower_place_that_commits_later() {
    let outbox = outbox().await;
    outbox.insert_keys(&["before"]).await;
    let late = client(&outbox.url).await;
    late.batch_execute("BEGIN").await.unwrap();
    fresh::keyed::insert_keys(&late, &["a"]).await;
    outbox.insert_keys(&["a"]).await;
    let mut watch = outbox.database.watch_outbox().await.unwrap();
    let mut floor = Floor::<Seq>::new();
    let mut look = async |floor: &mut Floor<Seq>| {
        let look = watch.look().await.unwrap();
        floor.looked(look.next, look.writers, true);
    };
    look(&mut floor).await;
    let claim = async |floor: Option<&Floor<Seq>>| {
        let lanes = waiting(&outbox.database).await;
        let claim = outbox
            .database
            .claim_lanes(LIMITS, &lanes, &[], floor.cloned());
        claim.await.unwrap()
    };
    // Without it: as they are committed.
    let without = claim(None).await;
    assert_eq!(shown(&without), "free 1, free 3");
    without.claim.release().await.unwrap();

    // One that has seen nothing before: the writer may have begun at any time.
    let nothing = claim(Some(&Floor::new())).await;
    assert!(nothing.rows.is_empty(), "{}", shown(&nothing));
    let with = claim(Some(&floor)).await;
    let seen = shown(&with);
    assert!(!seen.contains('3'), "{seen}");
    assert!(with.lanes.iter().all(|lane| lane.until.is_some()));
    with.claim.release().await.unwrap();
    late.batch_execute("COMMIT").await.unwrap();
    until("nothing can come before", || async {
        let with = claim(Some(&floor)).await;
        let seen = shown(&with);
        with.claim.release().await.unwrap();
        assert!(
            seen.is_empty() || seen == "free 1" || seen == "free 1, free 2, free 3",
            "{seen}"
        );
        seen.contains('3')
    })
    .await;
}
