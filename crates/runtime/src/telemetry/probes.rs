//! `/livez`, `/readyz` and `/metrics`, on a port of their own that faces the cluster only.
//!
//! Readiness is a list of named parts. A part that was never declared ready keeps the process unready, so that
//! none can be forgotten.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::listen::listen_on;

/// The parts of the process, and which of them are ready.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<watch::Sender<BTreeMap<&'static str, bool>>>);

/// One part of the process, to report its readiness with.
#[derive(Clone, Debug)]
pub struct Part {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Adds a part, which is not ready until it says so.
    pub fn part(&self, name: &'static str) -> Part {
        self.set(name, false);
        Part { name, readiness: self.clone() }
    }

    /// The names of the parts that are not ready.
    pub fn missing(&self) -> Vec<&'static str> {
        self.0.borrow().iter().filter(|(_, ready)| !**ready).map(|(name, _)| *name).collect()
    }

    /// Waits until all parts are ready, or until one is not.
    pub async fn becomes(&self, ready: bool) {
        // An error would mean that the sender is gone, and `self` is the sender.
        let _ = self.0.subscribe().wait_for(|parts| parts.values().all(|part| *part) == ready).await;
    }

    fn set(&self, name: &'static str, ready: bool) {
        self.0.send_if_modified(|parts| parts.insert(name, ready) != Some(ready));
    }
}

impl Part {
    /// Reports whether this part is ready.
    pub fn set(&self, ready: bool) {
        self.readiness.set(self.name, ready);
    }
}

/// Binds to the address, and returns the server, which runs until `stop`.
pub async fn serve(
    listen: SocketAddr,
    readiness: Readiness,
    registry: Registry,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<impl Future<Output = ()>> {
    let listener = listen_on("--telemetry-listen", listen)?;
    let registry = Arc::new(registry);
    let router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(async move || ready(&readiness)))
        .route("/metrics", get(async move || metrics(&registry)));
    Ok(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
            tracing::error!(%error, "the telemetry server has ended");
        }
    })
}

fn ready(readiness: &Readiness) -> (StatusCode, String) {
    match &*readiness.missing() {
        [] => (StatusCode::OK, "ok\n".to_owned()),
        missing => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", missing.join(", "))),
    }
}

fn metrics(registry: &Registry) -> (StatusCode, [(header::HeaderName, &'static str); 1], String) {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let mut text = String::new();
    let status = match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, [(header::CONTENT_TYPE, OPENMETRICS)], text)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn ready_only_while_every_part_is() {
        let readiness = Readiness::default();
        let (tokens, pepper) = (readiness.part("tokens"), readiness.part("pepper"));
        assert_eq!(
            ready(&readiness),
            (StatusCode::SERVICE_UNAVAILABLE, "waiting for: pepper, tokens\n".to_owned())
        );
        tokens.set(true);
        pepper.set(true);
        assert_eq!(ready(&readiness).0, StatusCode::OK);
        pepper.set(false);
        assert_eq!(readiness.missing(), ["pepper"]);
    }

    #[tokio::test]
    async fn waiting_ends_when_readiness_changes() {
        let readiness = Readiness::default();
        let (tokens, pepper) = (readiness.part("tokens"), readiness.part("pepper"));
        readiness.becomes(false).await;
        let waiting = readiness.becomes(true);
        tokio::pin!(waiting);
        assert_eq!(waiting.as_mut().now_or_never(), None);
        tokens.set(true);
        assert_eq!(waiting.as_mut().now_or_never(), None);
        pepper.set(true);
        waiting.await;
        assert_eq!(readiness.becomes(false).now_or_never(), None);
    }
}
