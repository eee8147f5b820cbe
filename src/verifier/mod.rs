//! The effects of the request path: a watch feeds the index, doors ask [`crate::check`] and answer.
//!
//! This file wires. A verifier holds no lease and writes nothing; it reads ApiTokens and one Secret, the pepper.
//! With the API server down it goes on answering from memory, and everything that ends by time still ends in time.

pub mod callers;
pub mod doors;
mod feed;
mod freshness;
pub mod index;
pub mod metrics;
pub mod server;
pub mod view;

use std::sync::Arc;

use anyhow::{Context, bail};
use futures::future;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{error, info, warn};

use self::callers::Callers;
use self::doors::{Doors, TrustedProxies};
use self::feed::Source;
use self::freshness::Limit;
use self::metrics::Metrics;
use self::server::Patience;
use self::view::View;
use crate::cli::VerifierArgs;
use crate::cluster::client::{Cluster, Heard};
use crate::cluster::pepper::{self, PepperState};
use crate::shutdown;
use crate::telemetry::probes::{self, Part, Readiness};

/// Runs the verifier until SIGTERM or SIGINT.
pub async fn run(args: VerifierArgs) -> anyhow::Result<()> {
    let cluster = Cluster::find("verifier").await?;
    let namespace = args.common.namespace.clone().unwrap_or_else(|| cluster.default_namespace().to_owned());
    let stop = shutdown::on_signal()?;

    let mut registry = Registry::with_prefix("tokenward");
    let metrics = Metrics::register(&mut registry);
    let readiness = Readiness::default();
    let (pepper_ready, list_ready) = (readiness.part("pepper"), readiness.part("first list of ApiTokens"));
    let fresh = readiness.part("news from the API server");
    let telemetry =
        probes::serve(args.common.telemetry_listen, readiness, registry, stop.clone().cancelled_owned())
            .await?;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("--listen {} can't be had; choose another address or port", args.listen))?;
    info!(version = env!("CARGO_PKG_VERSION"), namespace, listen = %args.listen, "verifier starts");

    let view = Arc::new(View::default());
    let client = cluster.client()?;
    let (peppers, follow_pepper) = pepper::follow(client.clone(), &namespace);
    let callers = Arc::new(Callers::new(view.clone(), Some(client)));
    let doors = Doors::new(view.clone(), TrustedProxies(args.trusted_proxies), callers, &metrics);
    let (sources, heard) = sources(&cluster, args.common.namespaces())?;
    let feed = feed::feed(sources, view.clone(), list_ready, metrics.clone());
    let limit = Limit { max_staleness: args.max_staleness.unsigned_abs(), policy: args.stale_policy };
    let freshness = freshness::watch(heard, limit, view.clone(), fresh, metrics);
    tokio::select! {
        () = server::serve(listener, Arc::new(doors), Patience::default(), stop.cancelled_owned()) => Ok(()),
        () = feed => bail!("the watch of ApiTokens has ended"),
        () = freshness => bail!("the age of the view is no longer looked at"),
        () = follow_pepper => bail!("the watch of the pepper has ended"),
        () = keep_pepper(peppers, view, pepper_ready) => bail!("the pepper is no longer followed"),
        () = async { telemetry.await; future::pending().await } => Ok(()),
    }
}

/// One watch for each namespace, each with a connection of its own, and when each was last heard of.
fn sources(cluster: &Cluster, namespaces: Option<Vec<String>>) -> anyhow::Result<(Vec<Source>, Vec<Heard>)> {
    let namespaces = namespaces.map_or(vec![None], |named| named.into_iter().map(Some).collect());
    let source = |namespace| {
        let (client, heard) = cluster.watching_client()?;
        Ok((Source { namespace, client }, heard))
    };
    namespaces.into_iter().map(source).collect()
}

/// Takes every usable pepper into use. One that vanishes later stays in use: it is what checks depend on.
async fn keep_pepper(mut peppers: watch::Receiver<PepperState>, view: Arc<View>, ready: Part) {
    while peppers.changed().await.is_ok() {
        match &*peppers.borrow_and_update() {
            PepperState::Present(peppers) => {
                view.peppers.store(Some(peppers.clone()));
                ready.set(true);
            }
            PepperState::Missing | PepperState::Damaged(_) if view.peppers.load().is_some() => {
                error!(
                    "the pepper's Secret is gone or damaged; checks go on with the one that was read before"
                );
            }
            PepperState::Damaged(damage) => warn!(%damage, "not ready: the pepper can't be used"),
            PepperState::Missing | PepperState::Unknown => {}
        }
    }
}
