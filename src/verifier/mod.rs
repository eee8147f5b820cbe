//! The effects of the request path: a watch feeds the index, doors ask [`crate::check`] and answer.
//!
//! This file wires. A verifier holds no lease and writes nothing; it reads ApiTokens and one Secret, the pepper.
//! With the API server down it goes on answering from memory, and everything that ends by time still ends in time.

pub mod doors;
mod feed;
pub mod grpc;
pub mod index;
mod metrics;
pub mod server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use arc_swap::ArcSwapOption;
use futures::future::{self, OptionFuture};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{error, info, warn};

use self::doors::Doors;
use self::doors::ext_authz::ExtAuthz;
use self::index::Index;
use self::metrics::Metrics;
use self::server::Patience;
use crate::cli::VerifierArgs;
use crate::cluster::client;
use crate::cluster::pepper::{self, PepperState};
use crate::shutdown;
use crate::telemetry::probes::{self, Part, Readiness};
use crate::token::Peppers;

/// What the doors look into: the index, and the pepper in use.
#[derive(Debug, Default)]
pub struct View {
    /// The tokens.
    pub index: Index,
    /// The peppers, once they were read.
    pub peppers: ArcSwapOption<Peppers>,
    listed: AtomicBool,
}

impl View {
    /// Whether the index has shown a full list. Before that, nothing it lacks may be called unknown.
    pub fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Acquire)
    }

    /// Says that the index shows a full list.
    pub fn set_listed(&self) {
        self.listed.store(true, Ordering::Release);
    }
}

/// Runs the verifier until SIGTERM or SIGINT.
pub async fn run(args: VerifierArgs) -> anyhow::Result<()> {
    let (client, default_namespace) = client::connect("verifier").await?;
    let namespace = args.common.namespace.clone().unwrap_or(default_namespace);
    let stop = shutdown::on_signal()?;

    let mut registry = Registry::with_prefix("tokenward");
    let metrics = Metrics::register(&mut registry);
    let readiness = Readiness::default();
    let (pepper_ready, list_ready) = (readiness.part("pepper"), readiness.part("first list of ApiTokens"));
    let telemetry = probes::serve(
        args.common.telemetry_listen,
        readiness.clone(),
        registry,
        stop.clone().cancelled_owned(),
    )
    .await?;
    let listener = bind("--listen", args.listen).await?;
    let grpc_listener = args.grpc_listen.map(|listen| bind("--grpc-listen", listen));
    let grpc_listener = OptionFuture::from(grpc_listener).await.transpose()?;
    let version = env!("CARGO_PKG_VERSION");
    info!(version, namespace, listen = %args.listen, grpc_listen = ?args.grpc_listen, "verifier starts");

    let view = Arc::new(View::default());
    let (peppers, follow_pepper) = pepper::follow(client.clone(), &namespace);
    let feed = feed::feed(client, args.common.namespaces(), view.clone(), list_ready, metrics.clone());
    let ext_authz = ExtAuthz::new(view.clone(), args.trusted_proxies.clone(), &metrics);
    let doors = Arc::new(Doors::new(view.clone(), args.trusted_proxies, metrics));
    let patience = Patience::default();
    let http = server::serve(listener, doors, patience, stop.clone().cancelled_owned());
    let grpc = grpc_listener.map(|listener| grpc::serve(listener, ext_authz, readiness, patience, stop));
    tokio::select! {
        _ = future::join(http, OptionFuture::from(grpc)) => Ok(()),
        () = feed => bail!("the watch of ApiTokens has ended"),
        () = follow_pepper => bail!("the watch of the pepper has ended"),
        () = keep_pepper(peppers, view, pepper_ready) => bail!("the pepper is no longer followed"),
        () = async { telemetry.await; future::pending().await } => Ok(()),
    }
}

async fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("{flag} {address} can't be had; choose another address or port"))
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
