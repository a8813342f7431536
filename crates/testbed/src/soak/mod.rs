//! The soak's pieces, and the order in which they are set up and taken down.

mod act;
mod evidence;
mod fault;
mod finish;
mod kept;
mod plan;
mod relay;
mod scene;
mod screen;
mod settings;
mod stage;
mod traffic;

use std::{convert::Infallible, process::ExitCode, time::Duration};

use anyhow::Result;
use futures_util::future::join_all;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, interval, sleep_until},
};

use self::{
    finish::{Report, finish},
    plan::Plan,
    scene::Scene,
    screen::Screen,
    settings::Settings,
};

const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// Runs the soak from the environment's settings.
pub(crate) async fn run() -> ExitCode {
    let screen = Screen::new();
    let settings = match Settings::from_environment() {
        Ok(settings) => settings,
        Err(problem) => {
            screen.line(&problem);
            return ExitCode::from(2);
        }
    };
    let plan = Plan::draw(settings.seed, settings.seconds);
    screen.plan(&plan);
    if settings.plan_only {
        return ExitCode::SUCCESS;
    }
    screen.line("starting servers, relays and consumers ...");
    // Whatever is dropped is killed and removed, with its directory.
    let code = tokio::select! {
        code = soak(&settings, &plan) => code,
        code = interruption() => code,
    };
    match code {
        Ok(0) => ExitCode::SUCCESS,
        Ok(code) => {
            screen.line(&format!("again: {}", plan.command()));
            ExitCode::from(code)
        }
        Err(error) => {
            screen.line(&format!("{error:#}"));
            screen.line(&format!("again: {}", plan.command()));
            ExitCode::FAILURE
        }
    }
}

async fn soak(settings: &Settings, plan: &Plan) -> Result<u8> {
    let mut scene = Scene::open(settings).await?;
    scene.screen.start();
    let ended = tokio::select! {
        report = play(&scene, settings, plan) => report,
        never = show_progress(&scene) => match never {},
    };
    let report = match ended {
        Ok(report) => report,
        Err(error) => {
            keep_evidence(&scene, plan).await;
            return Err(error);
        }
    };
    tell(&scene.screen, plan, &report);
    if report.is_good() {
        return Ok(0);
    }
    keep_evidence(&scene, plan).await;
    Ok(1)
}

/// Has each fault at its time, then waits for the end.
async fn play(scene: &Scene, settings: &Settings, plan: &Plan) -> Result<Report> {
    let start = Instant::now();
    scene.traffic.produce(&scene.stage).await?;
    let disaster = async {
        join_all(plan.faults.iter().map(async |planned| {
            sleep_until(start + planned.at()).await;
            act::act(scene, *planned).await;
        }))
        .await;
        sleep_until(start + settings.length()).await;
        scene.screen.event("all faults are lifted");
        finish(scene).await
    };
    tokio::select! {
        report = disaster => report,
        never = scene.watch_relays() => match never {},
    }
}

async fn show_progress(scene: &Scene) -> Infallible {
    let mut ticks = interval(PROGRESS_INTERVAL);
    loop {
        ticks.tick().await;
        let audit = &scene.traffic.audit;
        scene.screen.event(&format!(
            "  committed {}, deliveries {}",
            audit.committed_count(),
            audit.delivery_count()
        ));
    }
}

fn tell(screen: &Screen, plan: &Plan, report: &Report) {
    let line = |what: &str, value: String| screen.line(&format!("  {what:<22}{value}"));
    let books = &report.books;
    screen.line("");
    line("seed", format!("{}, {} seconds", plan.seed, plan.seconds));
    line("committed", books.committed.to_string());
    line("rolled back", books.rolled_back.to_string());
    line("delivered", books.delivered.to_string());
    line("repeats", books.duplicates.to_string());
    let (arrived, early, untimed) = report.scheduled;
    line(
        "scheduled",
        format!("{arrived} deliveries, {early} early, {untimed} without their time"),
    );
    line("lost", books.lost.len().to_string());
    line("phantom", books.phantom.len().to_string());
    line("superseded", books.superseded.to_string());
    line("order by key", report.order.to_string());
    let [messages, deferred, dead, parked, blocked] = report.left;
    line(
        "left in the outbox",
        format!(
            "{messages} messages, {deferred} deferred, {dead} dead letters, {parked} parked, {blocked} blocked keys"
        ),
    );
    line(
        "dead letters retried",
        format!(
            "{} {:?}",
            report.dead_letters.values().sum::<i64>(),
            report.dead_letters
        ),
    );
    line("relays restarted", report.relay_restarts.to_string());
    line("recovered in", format!("{:.1?}", report.recovery));
    let (count, longest) = report.neighbours;
    line(
        "neighbours",
        format!("{count} messages, the longest took {longest:.1?} while only other routes failed"),
    );
    line(
        "longest of all",
        format!("{:.1?}; a dead letter waits for the end", report.longest),
    );
    screen.line("  faults");
    for (kind, count) in &report.faults {
        screen.line(&format!("  {count:>8} x {kind}"));
    }
    screen.line("  logged by the relays");
    for (event, count) in &report.events {
        screen.line(&format!("  {count:>8} x {event}"));
    }
    for problem in &report.problems {
        line("PROBLEM", problem.clone());
    }
    screen.line(if report.is_good() {
        "  clean: all that was committed arrived, in the order of its keys, and nothing else"
    } else {
        "  NOT CLEAN"
    });
}

async fn keep_evidence(scene: &Scene, plan: &Plan) {
    scene.screen.line(&match evidence::keep(scene, plan).await {
        Ok(dir) => format!("the logs and what is left are in {}", dir.display()),
        Err(error) => format!("the logs could not be kept: {error:#}"),
    });
}

/// Waits for a signal that ends the soak early; the exit code that tells of it.
async fn interruption() -> Result<u8> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
        _ = hangup.recv() => 129,
    })
}
