//! One fault from its beginning to its end.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postrider_testbed::{Client, Direction, StopMode};
use tokio::time::sleep;

use super::{
    fault::{Fault, Trouble},
    kept::keep,
    plan::Planned,
    scene::Scene,
    stage::stuck,
};

/// Makes the fault now, lifts it after its time, and tells of both.
pub(crate) async fn act(scene: &Scene, planned: Planned) {
    let fault = planned.fault;
    let own = scene.resource(fault.resource());
    let _own = own.lock().await;
    let began = Instant::now();
    let done = suffer(scene, fault, planned.length()).await;
    scene.note_suffered(fault, began);
    if let Err(error) = done {
        scene.problem(format!("{fault}: {error:#}"));
    }
}

fn tell(scene: &Scene, sign: char, fault: Fault) {
    scene.screen.event(&format!("{sign} {fault}"));
}

async fn suffer(scene: &Scene, fault: Fault, length: Duration) -> Result<()> {
    let begin = || tell(scene, '+', fault);
    let end = || tell(scene, '-', fault);
    let stage = &scene.stage;
    let (postgres, rabbit) = (&stage.postgres, &stage.rabbit);
    match fault {
        Fault::RelayKilled { relay } => {
            let mut relay = scene.relay(relay).await?;
            begin();
            relay.kill().await?;
            sleep(length).await;
            relay.start().await?;
            end();
        }
        Fault::RelayTerminated { relay } => {
            let mut relay = scene.relay(relay).await?;
            begin();
            let stopped = relay.stop().await;
            sleep(length).await;
            relay.start().await?;
            end();
            stopped?;
        }
        Fault::RelayPaused { relay } => {
            let relay = scene.relay(relay).await?;
            begin();
            relay.pause()?;
            sleep(length).await;
            relay.resume()?;
            end();
        }
        Fault::BrokerKilled => {
            let _down = scene.broker.write().await;
            begin();
            // What was declared just before is RabbitMQ's to keep, and it writes it when it likes.
            let _ = rabbit.eval("mnesia:sync_log().").await;
            rabbit.kill().await?;
            sleep(length).await;
            rabbit.start_again().await?;
            end();
        }
        Fault::BrokerStopped => {
            let _down = scene.broker.write().await;
            begin();
            rabbit.stop().await?;
            sleep(length).await;
            rabbit.start_again().await?;
            end();
        }
        Fault::ConnectionsClosed => {
            let _up = scene.broker.read().await;
            begin();
            stage.close_connections().await?;
        }
        Fault::MemoryAlarm => {
            let _up = scene.broker.read().await;
            begin();
            rabbit.set_memory_alarm(true).await?;
            sleep(length).await;
            rabbit.set_memory_alarm(false).await?;
            end();
        }
        Fault::QueueSuspended { queue } => {
            let _up = scene.broker.read().await;
            begin();
            tell_queue(scene, &stuck(queue), "suspend").await?;
            sleep(length).await;
            tell_queue(scene, &stuck(queue), "resume").await?;
            end();
        }
        Fault::ExchangeMissing => {
            {
                let _up = scene.broker.read().await;
                begin();
                stage.delete_fleeting().await?;
            }
            sleep(length).await;
            let _up = scene.broker.read().await;
            stage.restore_fleeting().await?;
            end();
        }
        Fault::WriteForbidden => {
            {
                let _up = scene.broker.read().await;
                begin();
                stage.forbid_guarded().await?;
            }
            sleep(length).await;
            let _up = scene.broker.read().await;
            stage.allow_all().await?;
            end();
        }
        Fault::QueueFull => {
            begin();
            scene.traffic.leave_full();
            sleep(length).await;
            scene.traffic.drain_full();
            end();
        }
        Fault::BindingMissing => {
            {
                let _up = scene.broker.read().await;
                begin();
                stage.unbind().await?;
            }
            sleep(length).await;
            let _up = scene.broker.read().await;
            stage.bind_again().await?;
            end();
        }
        Fault::DatabaseRestarted => {
            let _down = scene.database.write().await;
            begin();
            postgres.stop(StopMode::Immediate).await?;
            sleep(length).await;
            postgres.start_again().await?;
            end();
        }
        Fault::BackendsTerminated => {
            let _up = scene.database.read().await;
            begin();
            postgres.terminate_backends("postrider%").await?;
        }
        Fault::DatabaseReadOnly => {
            let _up = scene.database.read().await;
            begin();
            set_read_only(scene, true).await?;
            sleep(length).await;
            set_read_only(scene, false).await?;
            end();
        }
        Fault::RowsKept => {
            let _up = scene.database.read().await;
            begin();
            keep(&stage.database, true).await?;
            sleep(length).await;
            keep(&stage.database, false).await?;
            end();
        }
        Fault::SnapshotHeld => {
            let _up = scene.database.read().await;
            let snapshot = Client::connect(&stage.database.url).await?;
            begin();
            snapshot
                .batch_execute(
                    "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.messages",
                )
                .await?;
            sleep(length).await;
            snapshot.batch_execute("COMMIT").await?;
            end();
        }
        Fault::Path {
            relay,
            peer,
            trouble,
        } => {
            let path = stage.path(relay, peer)?;
            begin();
            match trouble {
                Trouble::Cut => path.cut(),
                Trouble::RequestsStalled => path.stall(Direction::ToServer),
                Trouble::AnswersStalled => path.stall(Direction::ToClient),
                Trouble::Slowed { bytes_per_second } => path.slow(bytes_per_second),
            }
            sleep(length).await;
            path.pass();
            end();
        }
    }
    Ok(())
}

/// Suspends or resumes the process of a quorum queue: it is there, and answers nothing.
async fn tell_queue(scene: &Scene, queue: &str, what: &str) -> Result<()> {
    let vhost = &scene.stage.vhost.name;
    let answer = scene
        .stage
        .rabbit
        .eval(&format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{vhost}\">>, queue, <<\"{queue}\">>)), \
             {{Name, _}} = amqqueue:get_pid(Q), sys:{what}(Name)."
        ))
        .await?;
    ensure!(answer == "ok", "the broker could not {what} it: {answer}");
    Ok(())
}

/// Every session is read-only from its next transaction on, producers' too.
async fn set_read_only(scene: &Scene, on: bool) -> Result<()> {
    let client = Client::connect(&scene.stage.database.url).await?;
    let order = if on {
        "ALTER SYSTEM SET default_transaction_read_only = on"
    } else {
        "ALTER SYSTEM RESET default_transaction_read_only"
    };
    client.batch_execute(order).await?;
    client.batch_execute("SELECT pg_reload_conf()").await?;
    Ok(())
}
