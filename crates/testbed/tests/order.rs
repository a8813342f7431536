//! The auditor's judgement of order by key.

use postrider_testbed::{Audit, Place, order::OrderingHeaders};
use uuid::Uuid;

struct Line {
    audit: Audit,
    ids: Vec<Uuid>,
}

/// So many committed messages of one key, numbered from 0.
fn line(messages: i64, supersede: bool) -> Line {
    let audit = Audit::new();
    let ids: Vec<Uuid> = (0..messages).map(|_| Uuid::now_v7()).collect();
    for (id, number) in ids.iter().zip(0..) {
        let place = Place {
            key: "k".into(),
            number,
            supersede: supersede.then(|| "way".into()),
        };
        audit.placed(*id, place);
    }
    audit.committed(ids.iter().copied());
    Line { audit, ids }
}

impl Line {
    fn arrives(&self, number: usize) {
        self.arrives_as(number, number as i64, "k");
    }

    fn arrives_as(&self, number: usize, seq: i64, key: &str) {
        let headers = OrderingHeaders {
            key: key.into(),
            seq,
        };
        self.audit
            .delivered_with(self.ids[number], "q", false, Some(headers));
    }
}

#[test]
fn repeats_are_in_order_and_a_first_delivery_after_a_later_one_is_not() {
    let line = line(4, false);
    for number in [0, 1, 0, 1, 2] {
        line.arrives(number);
    }
    let order = line.audit.order();
    assert!(order.is_clean(), "{order}");
    assert_eq!((order.keys, order.delivered), (1, 3));
    line.arrives(3);
    assert!(line.audit.order().is_clean());

    let line = self::line(3, false);
    for number in [0, 2, 1] {
        line.arrives(number);
    }
    let order = line.audit.order();
    let [inversion] = &order.inversions[..] else {
        panic!("{order}");
    };
    assert_eq!((inversion.late, inversion.numbers), (line.ids[1], (1, 2)));
    // And a consumer that goes by the highest seq would have dropped it.
    assert_eq!(order.misjudged, [line.ids[1]]);
}

#[test]
fn each_queue_is_looked_at_by_itself() {
    let line = line(2, false);
    line.arrives(1);
    let headers = OrderingHeaders {
        key: "k".into(),
        seq: 0,
    };
    line.audit
        .delivered_with(line.ids[0], "other", false, Some(headers));
    assert!(line.audit.order().is_clean(), "{}", line.audit.order());
}

#[test]
fn headers_that_do_not_name_the_key_or_do_not_rise_are_found() {
    let line = line(3, false);
    line.arrives_as(0, 7, "another");
    line.audit.delivered(line.ids[1], "q", false);
    let order = line.audit.order();
    assert_eq!(order.mislabelled, [line.ids[0], line.ids[1]]);
    let line = self::line(3, false);
    line.arrives_as(0, 7, "k");
    line.arrives_as(1, 7, "k");
    let order = line.audit.order();
    assert!(order.inversions.is_empty());
    assert_eq!(order.misjudged, [line.ids[1]]);
}

#[test]
fn a_message_is_superseded_only_by_a_delivered_one_with_none_between_that_may_not_be() {
    let line = line(4, true);
    assert_eq!(line.audit.report().lost.len(), 4);
    line.arrives(2);
    let report = line.audit.report();
    assert_eq!((report.superseded, report.lost), (2, vec![line.ids[3]]));

    let line = self::line(3, true);
    let unmarked = Place {
        key: "k".into(),
        number: 1,
        supersede: None,
    };
    line.audit.placed(line.ids[1], unmarked);
    line.arrives(2);
    let report = line.audit.report();
    let mut lost = vec![line.ids[0], line.ids[1]];
    lost.sort_unstable();
    assert_eq!((report.superseded, report.lost), (0, lost));
}
