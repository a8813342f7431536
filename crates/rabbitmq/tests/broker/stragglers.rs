//! x
use std::time::{Duration, Instant};

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use postrider_core::{Message, Outcome};
use postrider_rabbitmq::{Patience, Published};
use postrider_testbed::{TestVhost, shared};

use crate::{LONG, message, publisher};

async fn quorum_queue(channel: &Channel, name: &str) {
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    channel
        .queue_declare(name.into(), options, arguments)
        .await
        .unwrap();
}

async fn on_process(vhost: &TestVhost, queue: &str, call: &str) {
    let expression = format!(
        "{{ok,Q}}=rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{}\">>,queue,<<\"{queue}\">>)),{{Name,_}}=amqqueue:get_pid(Q),sys:{call}(Name),ok.",
        vhost.name
    );
    assert_eq!(
        shared::rabbit().await.eval(&expression).await.unwrap(),
        "ok"
    );
}

fn show(batch: &[Message], published: &Published) -> String {
    let mut text = String::new();
    let mut last = (String::new(), 0);
    for (message, outcome) in batch.iter().zip(&published.outcomes) {
        let q7 = if message.routing_key == "q7" {
            "Q7:"
        } else {
            ""
        };
        let this = match outcome {
            Outcome::Confirmed => format!("{q7}ok"),
            Outcome::Failed(failure) => format!("{q7}{}/{:?}", failure.reason, failure.scope),
        };
        if this == last.0 {
            last.1 += 1;
        } else {
            text.push_str(&format!("{}x{} ", last.0, last.1));
            last = (this, 1);
        }
    }
    text.push_str(&format!("{}x{} ", last.0, last.1));
    text.truncate(300);
    format!(
        "{text} {:?} late {:?}",
        published.channel,
        published.late.as_ref().map(|l| l.positions().len())
    )
}

#[tokio::test]
async fn explore() {
    let var = |name: &str, default: u64| -> u64 {
        std::env::var(name).map_or(default, |v| v.parse().unwrap())
    };
    let (n, stuck, at) = (
        var("N", 500) as usize,
        var("STUCK", 1) as usize,
        var("AT", 100) as usize,
    );
    let vhost = shared::vhost().await;
    let channel = vhost
        .connection()
        .await
        .unwrap()
        .create_channel()
        .await
        .unwrap();
    for i in 0..20 {
        quorum_queue(&channel, &format!("q{i}")).await;
    }
    let (_connection, mut publisher) = publisher(&vhost.url).await;
    let patience = Patience {
        confirm_timeout: Duration::from_secs(var("CONFIRM", 30)),
        straggler_timeout: Duration::from_millis(var("STRAGGLER", 2000)),
    };
    if var("WARM", 0) == 1 {
        let batch: Vec<_> = (0..40)
            .map(|i| message("", &format!("q{}", i % 20)))
            .collect();
        let p = publisher.publish(&batch, patience).await;
        println!("warm: {}", show(&batch, &p));
    }
    on_process(&vhost, "q7", "suspend").await;
    let neighbours = [
        0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
    ];
    let batch: Vec<_> = (0..n)
        .map(|i| {
            if i >= at && i < at + stuck {
                message("", "q7")
            } else {
                message("", &format!("q{}", neighbours[i % 19]))
            }
        })
        .collect();
    for round in 0..var("ROUNDS", 1) {
        let start = Instant::now();
        let p = publisher.publish(&batch, patience).await;
        println!("{round} in {:?}: {}", start.elapsed(), show(&batch, &p));
        if let Some(late) = p.late {
            println!(
                "  late: {:?}",
                tokio::time::timeout(Duration::from_secs(var("LATE", 3)), late.confirmed())
                    .await
                    .map(|l| l.len())
            );
        }
        let b2: Vec<_> = (0..40)
            .map(|i| message("", &format!("q{}", neighbours[i % 19])))
            .collect();
        let start = Instant::now();
        let p = publisher.publish(&b2, patience).await;
        println!("  next in {:?}: {}", start.elapsed(), show(&b2, &p));
    }
    on_process(&vhost, "q7", "resume").await;
    let _ = LONG;
}
