//! Confirms that come after their batch was settled, or never.

use std::time::SystemTime;

use postrider_core::Scope;

use crate::broker::{Batch, Hold};
use crate::fate::{Fate, Word};
use crate::outbox::until;
use crate::scene::{Scene, rarely, settings};

const ROUTE: Fate = Fate::Late {
    scope: Scope::Route,
    word: Word::OnCommand,
};
const BROKER: Fate = Fate::Late {
    scope: Scope::Broker,
    word: Word::OnCommand,
};

#[tokio::test]
async fn a_confirm_that_comes_after_the_settle_deletes_the_deferred_row_and_resumes_the_route() {
    let scene = Scene::new().await;
    let id = scene.outbox.insert("e", "stuck").await;
    // Only the word that comes late can be good news.
    scene.broker.always(id, ROUTE);
    let mut settings = settings();
    settings.reloadable.retry = rarely();
    let relay = scene.start(settings);
    until("the message is deferred", async || {
        scene.outbox.place(id).await.as_deref() == Some("deferred")
    })
    .await;
    assert_eq!(scene.outbox.attempts(id).await, 0);
    assert_eq!(relay.suspended(), 1);
    scene.broker.answer_late(id, true).await;
    scene.delivered().await;
    until("the route is resumed", async || relay.suspended() == 0).await;
    let next = scene.outbox.insert("e", "stuck").await;
    scene.delivered().await;
    assert_eq!(scene.outbox.taken(next).await, 1);
    relay.stop().await;
}

#[tokio::test]
async fn a_late_confirm_lets_go_what_waits_for_its_route() {
    let scene = Scene::new().await;
    let id = scene.outbox.insert("e", "stuck").await;
    scene.broker.always(id, ROUTE);
    let mut settings = settings();
    settings.reloadable.retry = rarely();
    let relay = scene.start(settings);
    until("the message is deferred", async || {
        scene.outbox.place(id).await.as_deref() == Some("deferred")
    })
    .await;
    let others: Vec<_> = (0..5).map(|_| uuid::Uuid::new_v4()).collect();
    for other in &others {
        let word = Word::NotTakenAfter(0);
        let scope = Scope::Route;
        scene.broker.always(*other, Fate::Late { scope, word });
    }
    let rows: Vec<_> = others.iter().map(|id| (*id, "e", "stuck")).collect();
    scene.outbox.insert_rows(&rows, true).await;
    until("the others are deferred", async || {
        let deferred = "SELECT count(*) FROM outbox.deferred";
        scene.outbox.number(deferred).await == 6
    })
    .await;
    // With a probe under way there is no other, and nothing suspends the route anew.
    scene.broker.hold(Some(Hold::Untaken));
    scene.broker.held(1).await;
    scene.broker.answer_late(id, true).await;
    until("they are sent together", async || {
        let batches = scene.broker.batches();
        batches.iter().any(|batch| batch.ids.len() > 1)
    })
    .await;
    for other in &others {
        scene.broker.always(*other, Fate::CONFIRMED);
    }
    scene.broker.hold(None);
    scene.delivered().await;
    relay.stop().await;
}

/// Hazard: nothing was told of a batch before the broker had spoken of all of it, and one silent queue kept what another had confirmed or
/// refused where it was.
#[tokio::test]
async fn a_queue_that_stays_silent_keeps_nothing_from_others_of_its_batch_that_are_confirmed_or_refused_late()
 {
    let scene = Scene::new().await;
    scene.outbox.insert("e", "first").await;
    let mut settings = settings();
    settings.workers = 1;
    settings.reloadable.retry = rarely();
    let relay = scene.start(settings);
    // From now on batches are larger than one message.
    scene.delivered().await;
    let ids: Vec<_> = (0..3).map(|_| uuid::Uuid::new_v4()).collect();
    let &[silent, confirmed, refused] = ids.as_slice() else {
        unreachable!()
    };
    scene.broker.always(silent, ROUTE);
    scene.broker.fates(confirmed, [ROUTE]);
    scene.broker.fates(refused, [ROUTE, Fate::CONFIRMED]);
    let rows = [
        (silent, "e", "a"),
        (confirmed, "e", "b"),
        (refused, "e", "c"),
    ];
    scene.outbox.insert_rows(&rows, true).await;
    until("all are deferred", async || {
        let deferred = "SELECT count(*) FROM outbox.deferred";
        scene.outbox.number(deferred).await == 3
    })
    .await;
    let together = |batch: &Batch| ids.iter().all(|id| batch.ids.contains(id));
    assert!(scene.broker.batches().iter().any(together));
    scene.broker.answer_late(confirmed, true).await;
    until("what was confirmed is gone", async || {
        scene.outbox.place(confirmed).await.is_none()
    })
    .await;
    scene.broker.answer_late(refused, false).await;
    until("what was refused was sent again", async || {
        scene.outbox.place(refused).await.is_none()
    })
    .await;
    assert_eq!(scene.broker.sent(confirmed), 1);
    assert_eq!(
        scene.outbox.place(silent).await.as_deref(),
        Some("deferred")
    );
    until("the routes of the others are resumed", async || {
        relay.suspended() == 1
    })
    .await;
    relay.stop().await;
}

#[tokio::test]
async fn a_confirm_that_comes_while_its_row_is_being_deferred_deletes_it_and_repeats_nothing() {
    let scene = Scene::new().await;
    let id = scene.outbox.insert("e", "slow").await;
    scene.broker.fates(id, [ROUTE]);
    scene.outbox.hold_settle(id).await;
    let mut settings = settings();
    settings.reloadable.retry = rarely();
    let relay = scene.start(settings);
    scene.outbox.settle_held().await;
    scene.broker.answer_late(id, true).await;
    until("the relay has heard it", async || scene.broker.lates() == 0).await;
    scene.outbox.let_settle().await;
    scene.delivered().await;
    assert_eq!(scene.broker.sent(id), 1);
    until("the route is resumed", async || relay.suspended() == 0).await;
    relay.stop().await;
}

#[tokio::test]
async fn what_was_being_deferred_while_its_route_was_resumed_is_let_go() {
    let scene = Scene::new().await;
    let (confirmed, other) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    let (word, scope) = (Word::NotTakenAfter(0), Scope::Route);
    scene.broker.fates(confirmed, [ROUTE]);
    scene.broker.fates(other, [Fate::Late { scope, word }]);
    scene.outbox.hold_settle(other).await;
    // A worker each: a new connection is given one message at first.
    scene.broker.hold(Some(Hold::Untaken));
    let rows = [confirmed, other].map(|id| (id, "e", "slow"));
    scene.outbox.insert_rows(&rows, true).await;
    let mut settings = settings();
    settings.reloadable.retry = rarely();
    let relay = scene.start(settings);
    scene.broker.held(2).await;
    scene.broker.hold(None);
    scene.outbox.settle_held().await;
    until("its neighbour is deferred", async || {
        scene.outbox.place(confirmed).await.as_deref() == Some("deferred")
    })
    .await;
    scene.broker.answer_late(confirmed, true).await;
    until("the route is resumed", async || relay.suspended() == 0).await;
    scene.outbox.let_settle().await;
    scene.delivered().await;
    assert_eq!(
        (scene.broker.sent(confirmed), scene.broker.sent(other)),
        (1, 2)
    );
    relay.stop().await;
}

#[tokio::test]
async fn what_may_be_confirmed_late_is_noted_before_its_row_is_settled() {
    let scene = Scene::new().await;
    let id = scene.outbox.insert("e", "stuck").await;
    scene.broker.always(id, ROUTE);
    let relay = scene.start(settings());
    let mut deferred_at = None;
    until("the message is deferred", async || {
        let sql = "SELECT deferred_at FROM outbox.deferred";
        let row = scene.outbox.client.query_opt(sql, &[]).await.unwrap();
        deferred_at = row.map(|row| row.get::<_, SystemTime>(0));
        deferred_at.is_some()
    })
    .await;
    // Both clocks are this machine's.
    assert!(scene.broker.asked_at() <= deferred_at.unwrap());
    relay.stop().await;
}

#[tokio::test]
async fn a_late_confirm_of_a_message_that_was_discarded_meanwhile_touches_nothing() {
    let scene = Scene::new().await;
    let id = scene.outbox.insert("e", "stuck").await;
    scene.broker.always(id, ROUTE);
    let mut settings = settings();
    settings.reloadable.retry = rarely();
    let relay = scene.start(settings);
    until("the message is deferred", async || {
        scene.outbox.place(id).await.as_deref() == Some("deferred")
    })
    .await;
    // Its place is that of another now, as after a failover that lost it.
    let other = uuid::Uuid::new_v4();
    scene
        .outbox
        .unwatched(&format!(
            "UPDATE outbox.deferred SET id = '{other}', due_at = 'tomorrow', cause = 'scheduled'"
        ))
        .await;
    scene.broker.answer_late(id, true).await;
    until("the confirm was looked at", async || relay.suspended() == 0).await;
    until("nobody waits for it any more", async || {
        scene.broker.lates() == 0
    })
    .await;
    assert_eq!(scene.outbox.place(other).await.as_deref(), Some("deferred"));
    assert_eq!(scene.broker.sent(other), 0);
    relay.stop().await;
}

#[tokio::test]
async fn of_more_stuck_routes_than_can_be_waited_for_every_message_is_delivered() {
    const MOST_WAITED_FOR: usize = 16;
    let scene = Scene::new().await;
    let mut settings = settings();
    settings.reloadable.batch_rows = 1;
    let mut routes = Vec::new();
    for number in 0..MOST_WAITED_FOR + 4 {
        let route = ("e".to_owned(), format!("{number}"));
        scene.broker.stick(&route);
        scene.outbox.insert(&route.0, &route.1).await;
        routes.push(route);
    }
    let relay = scene.start(settings);
    let deferred = "SELECT count(*) FROM outbox.deferred";
    until("all are deferred", async || {
        scene.outbox.number(deferred).await == routes.len() as i64
    })
    .await;
    until("as many as possible are waited for", async || {
        scene.broker.lates() == MOST_WAITED_FOR
    })
    .await;
    for route in &routes {
        scene.broker.free(route).await;
    }
    scene.delivered().await;
    until("every route is resumed", async || relay.suspended() == 0).await;
    until("nothing is waited for", async || scene.broker.lates() == 0).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_message_is_not_sent_again_while_its_confirm_may_still_come() {
    let scene = Scene::new().await;
    let id = scene.outbox.insert("e", "k").await;
    scene.broker.fates(id, [BROKER]);
    let relay = scene.start(settings());
    until("its batch is over", async || scene.broker.lates() == 1).await;
    // Claimed by place: whoever claims these would have claimed it.
    for _ in 0..10 {
        let next = scene.outbox.insert("e", "k").await;
        until("the next is delivered", async || {
            scene.outbox.place(next).await.is_none()
        })
        .await;
    }
    assert_eq!(scene.broker.sent(id), 1);
    scene.broker.answer_late(id, true).await;
    scene.delivered().await;
    assert_eq!(scene.broker.sent(id), 1);
    relay.stop().await;
}

#[tokio::test]
async fn a_message_is_sent_again_when_its_confirm_will_not_come_or_its_connection_is_gone() {
    let scene = Scene::new().await;
    let relay = scene.start(settings());
    for connection_ends in [false, true] {
        let id = uuid::Uuid::new_v4();
        scene.broker.fates(id, [BROKER]);
        scene.outbox.insert_rows(&[(id, "e", "k")], true).await;
        until("its batch is over", async || scene.broker.lates() == 1).await;
        if connection_ends {
            scene.broker.lose();
        } else {
            scene.broker.answer_late(id, false).await;
        }
        scene.delivered().await;
        assert_eq!(
            (scene.broker.sent(id), scene.outbox.taken(id).await),
            (2, 1)
        );
    }
    relay.stop().await;
}

#[tokio::test]
async fn a_pause_of_one_queue_repeats_nothing() {
    let scene = Scene::new().await;
    let (paused, probed) = (("e".to_owned(), "paused".to_owned()), "probed");
    scene.broker.stick(&paused);
    let ids = scene.outbox.insert_many(&paused.0, &paused.1, 5).await;
    // Nothing of this one is on its way: it is probed.
    let other = scene.outbox.insert("e", probed).await;
    let not_taken = Fate::Late {
        scope: Scope::Route,
        word: Word::NotTakenAfter(0),
    };
    scene.broker.fates(other, [not_taken; 8]);
    let relay = scene.start(settings());
    until("the other route was probed often", async || {
        scene.broker.sent(other) > 8
    })
    .await;
    scene.broker.free(&paused).await;
    scene.delivered().await;
    for id in ids {
        assert_eq!(scene.outbox.taken(id).await, 1);
    }
    relay.stop().await;
}

#[tokio::test]
async fn a_queue_that_does_not_answer_costs_no_attempt_and_its_neighbours_no_time() {
    let scene = Scene::new().await;
    let stuck = scene.outbox.insert_many("e", "stuck", 3).await;
    let not_taken = Fate::Late {
        scope: Scope::Route,
        word: Word::NotTakenAfter(1),
    };
    for id in &stuck {
        scene.broker.always(*id, not_taken);
    }
    let relay = scene.start(settings());
    let neighbours = scene.outbox.insert_many("e", "fine", 20).await;
    until("the neighbours are delivered", async || {
        let mut taken = 0;
        for id in &neighbours {
            taken += scene.outbox.taken(*id).await;
        }
        taken == neighbours.len() as i64
    })
    .await;
    until("the queue was asked often", async || {
        let sent = stuck.iter().map(|id| scene.broker.sent(*id));
        sent.sum::<usize>() > 12
    })
    .await;
    for id in &stuck {
        assert_eq!(scene.outbox.attempts(*id).await, 0);
        scene.broker.always(*id, Fate::CONFIRMED);
    }
    scene.delivered().await;
    assert_eq!(scene.outbox.dead_letters().await, []);
    until("the route is resumed", async || relay.suspended() == 0).await;
    relay.stop().await;
}
