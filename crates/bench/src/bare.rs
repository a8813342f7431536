//! The broker's own limit: messages that are in memory already, published with confirms pipelined and nothing else
//! done.
//!
//! Same library, same message, same guarantees as the daemon's publisher: persistent, mandatory, each confirm
//! awaited, a return or a nack is an error.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, stream::FuturesOrdered};
use lapin::{
    BasicProperties, Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use uuid::Uuid;

use crate::{
    cpu,
    queue::Queue,
    stage::{CONTENT_TYPE, Stage, now_in_seconds},
    throughput::Measured,
};

/// How many messages wait for their confirms on a channel.
const WINDOW: usize = 1_000;

/// Publishes `messages` times `payload` on one connection and `channels` channels.
///
/// # Errors
/// The broker did not take all of them.
pub(crate) async fn publish(
    stage: &Stage,
    queue: &Queue,
    payload: &[u8],
    messages: u32,
    channels: u32,
) -> Result<Measured> {
    let connection = stage.vhost.connection().await?;
    let mut ready = Vec::new();
    for number in 0..channels {
        let channel = connection
            .create_channel()
            .await
            .context("could not open a channel to publish on")?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .context("could not switch confirms on")?;
        let share = messages / channels + u32::from(number < messages % channels);
        ready.push((channel, share));
    }
    let payload: Arc<[u8]> = payload.into();
    stage.wait_until_quiet().await?;

    let before = stage.cpu(cpu::of_this_process()?)?;
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (channel, share) in ready {
        let (payload, queue) = (Arc::clone(&payload), queue.name.clone());
        tasks.spawn(async move {
            publish_all(&channel, &queue, &payload, share).await?;
            anyhow::Ok(channel)
        });
    }
    // A channel that is dropped is closed in the background, which the connection's own close would run into.
    let mut done = Vec::new();
    while let Some(published) = tasks.join_next().await {
        done.push(published.context("a publisher panicked")??);
    }
    let elapsed = began.elapsed();
    let cpu = stage.cpu(cpu::of_this_process()?)?;

    connection
        .close(200, "done".into())
        .await
        .context("could not close the publisher's connection")?;
    Ok(Measured {
        elapsed,
        cpu_us_a_message: cpu.microseconds_a_message(before, messages),
        peak_memory_bytes: None,
    })
}

async fn publish_all(channel: &Channel, queue: &str, payload: &[u8], messages: u32) -> Result<()> {
    let mut window = FuturesOrdered::new();
    for _ in 0..messages {
        if window.len() == WINDOW {
            confirmed(window.next().await)?;
        }
        // The first poll queues the frames, the last has the confirm: nobody waits in between.
        window.push_back(async move {
            channel
                .basic_publish(
                    "".into(),
                    queue.into(),
                    BasicPublishOptions {
                        mandatory: true,
                        immediate: false,
                    },
                    payload,
                    BasicProperties::default()
                        .with_delivery_mode(2)
                        .with_content_type(CONTENT_TYPE.into())
                        .with_message_id(Uuid::new_v4().to_string().into())
                        .with_timestamp(now_in_seconds()),
                )
                .await?
                .await
        });
    }
    while !window.is_empty() {
        confirmed(window.next().await)?;
    }
    Ok(())
}

fn confirmed(outcome: Option<lapin::Result<Confirmation>>) -> Result<()> {
    match outcome {
        Some(Ok(Confirmation::Ack(None))) => Ok(()),
        Some(Ok(other)) => bail!("the broker did not take a message: {other:?}"),
        Some(Err(error)) => Err(error).context("publishing failed"),
        None => bail!("a confirm is missing"),
    }
}
