use super::*;
use crate::{Headers, Payload, Properties, Seq, UnroutablePolicy};
use proptest::prelude::*;

fn message(exchange: &str, routing_key: &str) -> Message {
    Message {
        seq: Seq(1),
        id: uuid::Uuid::nil(),
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
        payload: Payload::Fetched(Vec::new()),
        headers: Headers::default(),
        properties: Properties::default(),
        created_at_unix: 0,
        age_at_claim: Duration::ZERO,
        attempts: 0,
        origin: Origin::Messages,
        ordered: None,
    }
}

/// A message that was deferred and is due.
fn due(exchange: &str, routing_key: &str, attempts: u32) -> Message {
    Message {
        attempts,
        origin: Origin::Deferred,
        ..message(exchange, routing_key)
    }
}

fn failure(reason: Reason) -> Failure {
    Failure::new(reason, "said the broker")
}

fn stuck() -> Outcome {
    failure(Reason::ConfirmTimeout)
        .with_scope(Scope::Route)
        .into()
}

fn routes() -> Routes {
    let second = Duration::from_secs(1);
    let retry = RetryPolicy::new(5, second, 300 * second, 2.0).unwrap();
    let unroutable = UnroutablePolicies::new(UnroutablePolicy::Retry, HashMap::new());
    Routes::new(retry, unroutable)
}

fn observe(routes: &mut Routes, batch: &[(Message, Outcome)], now: Instant) -> Vec<Target> {
    let batch = batch.iter().map(|(message, outcome)| (message, outcome));
    let opened = routes.observe(batch, now, || 1.0);
    opened.into_iter().map(|(target, _)| target).collect()
}

fn route(exchange: &str, routing_key: &str) -> Target {
    Target::Route {
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
    }
}

fn exchange(name: &str) -> Target {
    Target::Exchange(name.to_owned())
}

#[test]
fn a_missing_exchange_withholds_its_own_messages_and_no_others() {
    let now = Instant::now();
    let mut routes = routes();
    let failed = failure(Reason::ExchangeMissing);
    let batch = [
        (message("gone", "a"), failed.clone().into()),
        (message("here", "a"), Outcome::Confirmed),
        (message("gone", "b"), failed.into()),
    ];
    assert_eq!(observe(&mut routes, &batch, now), [exchange("gone")]);
    let withheld = routes.withheld(&message("gone", "c")).unwrap();
    assert_eq!(withheld.reason, Reason::ExchangeMissing);
    assert!(withheld.detail.contains("gone") && withheld.detail.contains("said the broker"));
    assert!(routes.withheld(&message("here", "a")).is_none());
    assert_eq!(
        routes.resume(&exchange("gone"), now).unwrap().reason,
        Reason::ExchangeMissing
    );
    assert!(routes.is_empty());
    assert!(routes.withheld(&message("gone", "c")).is_none());
}

#[test]
fn a_queue_that_does_not_answer_suspends_its_route_and_charges_nobody() {
    let now = Instant::now();
    let mut routes = routes();
    let batch = [
        (message("e", "stuck"), stuck()),
        (message("e", "well"), Outcome::Confirmed),
    ];
    assert_eq!(observe(&mut routes, &batch, now), [route("e", "stuck")]);
    assert!(routes.withheld(&message("e", "well")).is_none());
    for later in [0, 1_000, 100_000] {
        let message = due("e", "stuck", 3);
        let withheld = routes.withheld(&message).unwrap();
        let later = now + Duration::from_secs(later);
        let disposed = routes.dispose(&message, &withheld, Sent::No, later, 0.5);
        assert!(
            matches!(disposed, Disposition::Postpone { .. }),
            "{disposed:?}"
        );
    }
}

#[test]
fn a_lone_message_of_a_missing_exchange_takes_its_attempts_and_a_backlog_does_not() {
    let mut now = Instant::now();
    let mut routes = routes();
    let failed = failure(Reason::ExchangeMissing);
    let batch: Vec<_> = (0..100)
        .map(|_| (message("gone", "k"), failed.clone().into()))
        .chain([(message("here", "k"), Outcome::Confirmed)])
        .collect();
    observe(&mut routes, &batch, now);
    let mut disposed = batch
        .iter()
        .take(100)
        .map(|(message, _)| routes.dispose(message, &failed, Sent::ForItself, now, 1.0));
    assert_eq!(
        disposed.next(),
        Some(Disposition::Retry {
            after: Duration::from_secs(1),
            attempts: 1
        })
    );
    assert!(disposed.all(|disposed| matches!(disposed, Disposition::Postpone { .. })));

    for attempts in 1..5 {
        let lone = due("gone", "k", attempts);
        let withheld = routes.withheld(&lone).unwrap();
        now += Duration::from_secs(1 << (attempts - 1));
        let fresh = routes.dispose(&message("gone", "k"), &withheld, Sent::No, now, 1.0);
        assert!(matches!(fresh, Disposition::Postpone { .. }), "{fresh:?}");
        let disposed = routes.dispose(&lone, &withheld, Sent::No, now, 1.0);
        let expected = match attempts {
            4 => Disposition::GiveUp { attempts: 5 },
            _ => Disposition::Retry {
                after: Duration::from_secs(1 << attempts),
                attempts: attempts + 1,
            },
        };
        assert_eq!(disposed, expected);
        let another = routes.dispose(&due("gone", "k", 0), &withheld, Sent::No, now, 1.0);
        assert!(
            matches!(another, Disposition::Postpone { .. }),
            "{another:?}"
        );
    }
}

#[test]
fn a_message_that_was_withheld_pays_nothing_when_its_target_was_resumed_meanwhile_and_is_to_be_let_go()
 {
    let now = Instant::now();
    let mut routes = routes();
    let failed = failure(Reason::ExchangeMissing);
    observe(
        &mut routes,
        &[(message("e", "k"), failed.clone().into())],
        now,
    );
    let message = due("e", "k", 2);
    let withheld = routes.withheld(&message).unwrap();
    let awaited = |routes: &Routes, sent| routes.awaited(&message, &withheld, sent);
    assert_eq!(awaited(&routes, Sent::ForItself), Some(exchange("e")));
    routes.resume(&exchange("e"), now).unwrap();
    let disposed = routes.dispose(&message, &withheld, Sent::No, now, 0.5);
    assert!(
        matches!(disposed, Disposition::Postpone { .. }),
        "{disposed:?}"
    );
    assert_eq!(awaited(&routes, Sent::No), Some(exchange("e")));
    // One that was sent waits for its own time.
    assert_eq!(awaited(&routes, Sent::ForItself), None);
    let disposed = routes.dispose(&message, &failed, Sent::ForItself, now, 0.5);
    assert!(
        matches!(disposed, Disposition::Retry { attempts: 3, .. }),
        "{disposed:?}"
    );
}

#[test]
fn several_exchanges_refused_at_once_are_an_outage_until_something_is_confirmed() {
    let now = Instant::now();
    let mut routes = routes();
    let failed = failure(Reason::Forbidden);
    let refused = ["a", "b", "c"].map(|name| (message(name, "k"), failed.clone().into()));
    assert_eq!(observe(&mut routes, &refused, now).len(), 3);
    for name in ["a", "b", "c"] {
        let disposed = routes.dispose(&message(name, "k"), &failed, Sent::ForItself, now, 0.5);
        assert!(
            matches!(disposed, Disposition::Postpone { .. }),
            "{disposed:?}"
        );
    }
    let later = now + Duration::from_secs(1);
    observe(
        &mut routes,
        &[(message("d", "k"), Outcome::Confirmed)],
        later,
    );
    let disposed = routes.dispose(&due("a", "k", 0), &failed, Sent::No, later, 0.5);
    assert!(
        matches!(disposed, Disposition::Retry { .. }),
        "{disposed:?}"
    );
}

#[test]
fn a_route_is_suspended_when_nacks_go_on_and_not_while_its_queue_takes_some() {
    let now = Instant::now();
    let mut routes = routes();
    let nacked = || (message("e", "full"), failure(Reason::Nacked).into());
    let taken = || (message("e", "full"), Outcome::Confirmed);
    for _ in 0..10 {
        assert_eq!(observe(&mut routes, &[nacked(), taken()], now), []);
        assert_eq!(observe(&mut routes, &[nacked()], now), []);
    }
    observe(&mut routes, &[taken()], now);
    assert_eq!(observe(&mut routes, &[nacked(), nacked()], now), []);
    assert_eq!(observe(&mut routes, &[nacked()], now), []);
    assert_eq!(observe(&mut routes, &[nacked()], now), [route("e", "full")]);
    let disposed = routes.dispose(
        &message("e", "full"),
        &failure(Reason::Nacked),
        Sent::ForItself,
        now,
        0.5,
    );
    assert!(
        matches!(disposed, Disposition::Retry { .. }),
        "{disposed:?}"
    );
    let withheld = routes.withheld(&message("e", "full")).unwrap();
    let disposed = routes.dispose(&message("e", "full"), &withheld, Sent::No, now, 0.5);
    assert!(
        matches!(disposed, Disposition::Postpone { .. }),
        "{disposed:?}"
    );
}

#[test]
fn probes_come_soon_then_later_and_the_longest_due_goes_first() {
    let now = Instant::now();
    let mut routes = routes();
    observe(&mut routes, &[(message("e", "1"), stuck())], now);
    observe(
        &mut routes,
        &[(message("e", "2"), stuck())],
        now + Duration::from_secs(10),
    );
    let first = routes.next_probe().unwrap();
    assert_eq!(first, now + Duration::from_secs(1));
    assert_eq!(routes.due_for_probe(now), None);
    let mut waits = Vec::new();
    let mut at = now + Duration::from_secs(60);
    assert_eq!(routes.due_for_probe(at), Some(route("e", "1")));
    routes.resume(&route("e", "2"), at);
    for _ in 0..6 {
        routes.probe_failed(&route("e", "1"), at, 1.0);
        let next = routes.next_probe().unwrap();
        waits.push((next - at).as_secs());
        at = next;
    }
    assert_eq!(waits, [2, 4, 8, 16, 30, 30]);
}

#[test]
fn a_target_for_which_nothing_waits_is_forgotten_at_the_second_look() {
    let now = Instant::now();
    let mut routes = routes();
    observe(&mut routes, &[(message("e", "1"), stuck())], now);
    let target = route("e", "1");
    assert!(routes.nothing_waits(&target, now, 1.0).is_none());
    routes.probe_failed(&target, now, 1.0);
    assert!(routes.nothing_waits(&target, now, 1.0).is_none());
    assert!(routes.next_probe().unwrap() > now);
    assert_eq!(
        routes.nothing_waits(&target, now, 1.0).unwrap().reason,
        Reason::ConfirmTimeout
    );
    assert!(routes.is_empty());
}

#[test]
fn past_the_bound_nothing_is_suspended_and_each_message_pays_for_itself() {
    let now = Instant::now();
    let mut routes = routes();
    for n in 0..CAPACITY + 10 {
        let name = n.to_string();
        observe(
            &mut routes,
            &[(message(&name, "k"), failure(Reason::ExchangeMissing).into())],
            now,
        );
    }
    assert_eq!(routes.iter().count(), CAPACITY);
    let past = message(&(CAPACITY + 5).to_string(), "k");
    assert!(routes.withheld(&past).is_none());
    let disposed = routes.dispose(
        &past,
        &failure(Reason::ExchangeMissing),
        Sent::ForItself,
        now,
        0.5,
    );
    assert!(
        matches!(disposed, Disposition::Retry { attempts: 1, .. }),
        "{disposed:?}"
    );
}

proptest! {
    #[test]
    fn at_most_one_message_of_an_exchange_is_charged_within_the_wait_of_the_last(
        steps in prop::collection::vec((0u64..20, any::<bool>(), 0u32..4, 0.0f64..1.0), 1..100)
    ) {
        let mut now = Instant::now();
        let mut routes = routes();
        let failed = failure(Reason::Forbidden);
        observe(&mut routes, &[
            (message("e", "k"), failed.clone().into()),
            (message("other", "k"), Outcome::Confirmed),
        ], now);
        let mut free = now;
        for (seconds, is_due, attempts, random) in steps {
            now += Duration::from_secs(seconds);
            let message = if is_due { due("e", "k", attempts) } else { message("e", "k") };
            match routes.dispose(&message, &failed, Sent::No, now, random) {
                Disposition::Retry { after, attempts: charged } => {
                    prop_assert!(is_due && now >= free);
                    prop_assert_eq!(charged, attempts + 1);
                    free = now + after;
                }
                Disposition::Postpone { .. } => prop_assert!(!is_due || now < free),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
