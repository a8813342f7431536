//! The admin port: `/metrics`, `/livez`, `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use postrider_relay::Progress;
use prometheus::{Encoder, Registry, TextEncoder};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the handlers answer from.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) registry: Registry,
    pub(crate) progress: Arc<Progress>,
}

/// The body of `/readyz`.
#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    reasons: Vec<&'static str>,
}

/// Binds the admin port, so that a port that is taken is an error of the start.
pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Answers until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    admin: Admin,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(admin);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
}

async fn index() -> Html<&'static str> {
    Html(
        "<!doctype html><title>postrider</title><h1>postrider</h1><ul>\
         <li><a href=\"/metrics\">/metrics</a> for Prometheus</li>\
         <li><a href=\"/livez\">/livez</a> the loop turns, or waits for a peer</li>\
         <li><a href=\"/readyz\">/readyz</a> messages can move; says why not</li></ul>",
    )
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&admin.registry.gather(), &mut text) {
        Ok(()) => (
            [(header::CONTENT_TYPE, encoder.format_type().to_owned())],
            text,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn livez(State(admin): State<Admin>) -> Response {
    match admin.progress.stuck(Instant::now()) {
        None => "ok\n".into_response(),
        Some(stuck) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "worker {} has stood still for {} s\n",
                stuck.worker,
                stuck.standing_for.as_secs()
            ),
        )
            .into_response(),
    }
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let reasons: Vec<_> = admin
        .progress
        .not_ready(Instant::now())
        .into_iter()
        .map(postrider_relay::NotReady::as_str)
        .collect();
    let status = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let ready = reasons.is_empty();
    (status, Json(Readiness { ready, reasons })).into_response()
}
