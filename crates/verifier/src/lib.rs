//! The I/O of the request path: a watch feeds the index, and endpoints ask [`tokenward_core::check`] for decisions.
//!
//! This file only wires the parts. A verifier needs no lease and writes nothing; it reads ApiTokens, locks and one Secret,
//! the pepper. With the API server down it still decides from memory, and whatever ends at a given time ends in time.

mod at_least;
mod authorization;
pub mod caller_auth;
mod checkpoint;
pub mod config;
pub mod endpoints;
mod events;
mod feed;
mod heartbeat;
pub mod index;
mod issuer_keys;
mod jwt;
mod locks;
pub mod metrics;
mod outcome;
pub mod server;
pub mod snapshot;
mod staleness;
mod watermark;

use std::sync::Arc;

use anyhow::{Context, bail};
use futures::future;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::caller_auth::CallerAuthenticator;
use crate::checkpoint::Checkpoint;
use crate::config::VerifierArgs;
use crate::endpoints::gateway::ext_authz::ExtAuthz;
use crate::endpoints::{Endpoints, TrustedProxies};
use crate::feed::Source;
use crate::heartbeat::Heartbeat;
use crate::metrics::Metrics;
use crate::server::{Server, Timeouts, capacity};
use crate::snapshot::Snapshot;
use crate::staleness::Limit;
use crate::watermark::{Mark, Marks, Teller};
use tokenward_runtime::cluster::client::Cluster;
use tokenward_runtime::cluster::pepper;
use tokenward_runtime::cluster::pepper::PepperState;
use tokenward_runtime::listen::listen_on;
use tokenward_runtime::shutdown;
use tokenward_runtime::sync::optional;
use tokenward_runtime::telemetry::probes;
use tokenward_runtime::telemetry::probes::{Further, Part, Readiness};
use tokenward_runtime::tls::Clients;
use tokenward_runtime::tls::files::Certificates;

/// Runs the verifier until SIGTERM or SIGINT.
pub async fn run(args: VerifierArgs) -> anyhow::Result<()> {
    let files = args.transport.tls()?;
    let cluster = Cluster::find("verifier").await?;
    let namespace = args.common.namespace.clone().unwrap_or_else(|| cluster.default_namespace().to_owned());
    let stop = shutdown::on_signal()?;

    let mut registry = Registry::with_prefix("tokenward");
    let metrics = Metrics::register(&mut registry);
    let certificates = files
        .map(|files| Certificates::load(files, metrics.certificate_expiry.clone()).map(Arc::new))
        .transpose()
        .context("--tls-cert and --tls-key")?;
    let clients = Clients::anybody();
    let acceptor =
        |protocol| certificates.as_ref().map(|own| own.acceptor(&[protocol], &clients)).transpose();
    let (http_tls, grpc_tls) = (acceptor(b"http/1.1")?, acceptor(b"h2")?);
    let max_connections = capacity::connections(args.max_connections);
    let readiness = Readiness::default();
    let (pepper_ready, list_ready) = (readiness.part("pepper"), readiness.part("first list of ApiTokens"));
    let locks_ready = readiness.part("first list of TokenLocks");
    let fresh = readiness.part("news from the API server");
    let namespaces = args.common.namespaces();
    let lock_sources = lock_sources(&cluster, namespaces.clone())?;
    let sources = sources(&cluster, namespaces)?;
    let snapshot = Arc::new(Snapshot::of(marks(&sources, &lock_sources)));
    let limit = Limit { max_staleness: args.max_staleness.unsigned_abs(), policy: args.stale_policy };
    let teller = Teller { snapshot: snapshot.clone(), limit };
    let further: Further = Box::new(move |uri| teller.answer(uri));
    let telemetry = probes::serve(
        args.common.telemetry_listen,
        readiness.clone(),
        registry,
        Some(further),
        stop.clone(),
    )?;
    let listener = listen_on("--listen", args.listen)?;
    let grpc_listener = args.grpc_listen.map(|listen| listen_on("--grpc-listen", listen)).transpose()?;
    let version = env!("CARGO_PKG_VERSION");
    info!(version, namespace, listen = %args.listen, grpc_listen = ?args.grpc_listen, "verifier starts");

    let client = cluster.client()?;
    let (peppers, follow_pepper) = pepper::follow(client.clone(), &namespace);
    let connections = metrics.connections.clone();
    let callers = Arc::new(CallerAuthenticator::new(snapshot.clone(), Some(client)));
    let trusted_proxies = TrustedProxies(args.trusted_proxies);
    let ext_authz = ExtAuthz::new(snapshot.clone(), trusted_proxies.clone(), &metrics);
    let endpoints = Endpoints::new(snapshot.clone(), trusted_proxies, callers, &metrics);
    let heartbeats = sources.iter().map(|source| &source.heartbeat);
    let heartbeats = heartbeats.chain(lock_sources.iter().map(|source| &source.heartbeat)).cloned().collect();
    let max = limit.max_staleness;
    let locks = locks::follow(lock_sources, snapshot.clone(), max, locks_ready, metrics.clone());
    let checkpoint = args.checkpoint_dir.as_deref();
    let checkpoint = checkpoint.map(|folder| Checkpoint::in_folder(folder, args.checkpoint_min_tokens));
    let keep_checkpoint =
        checkpoint.clone().map(|checkpoint| checkpoint.keep(snapshot.clone(), metrics.clone()));
    let feed =
        feed::feed(sources, checkpoint, snapshot.clone(), peppers.clone(), max, list_ready, metrics.clone());
    let staleness = staleness::watch(heartbeats, limit, snapshot.clone(), fresh, metrics);
    let timeouts = Timeouts::default();
    let server = Server::new(endpoints, http_tls, timeouts, max_connections, connections.clone());
    let grpc = server::grpc::Server::new(ext_authz, readiness, grpc_tls, timeouts, connections);
    // In tasks of their own: this one would have to be woken on another thread for each connection.
    let mut servers = vec![tokio::spawn(server.serve(listener, stop.clone().cancelled_owned()))];
    servers.extend(grpc_listener.map(|listener| tokio::spawn(grpc.serve(listener, stop))));
    let follow_certificates = certificates.map(|certificates| async move { certificates.follow().await });
    tokio::select! {
        served = future::try_join_all(servers) => served.map(|_| ()).context("a server task failed"),
        () = optional(follow_certificates) => bail!("the watch of the TLS certificate has ended"),
        () = feed => bail!("the watch of ApiTokens has ended"),
        () = locks => bail!("the watch of TokenLocks has ended"),
        () = staleness => bail!("the staleness check has ended"),
        () = optional(keep_checkpoint) => bail!("the task that writes the checkpoint has ended"),
        () = follow_pepper => bail!("the watch of the pepper has ended"),
        () = use_pepper(peppers, snapshot, pepper_ready) => bail!("the pepper watch has closed"),
        () = async { telemetry.await; future::pending().await } => Ok(()),
    }
}

/// A source for each namespace's watch, with a connection of its own.
fn sources(cluster: &Cluster, namespaces: Option<Vec<String>>) -> anyhow::Result<Vec<Source>> {
    let namespaces = namespaces.map_or(vec![None], |named| named.into_iter().map(Some).collect());
    let source = |namespace| {
        let client = cluster.watch_client()?;
        Ok(Source { namespace, client, heartbeat: Heartbeat::default(), mark: Mark::default() })
    };
    namespaces.into_iter().map(source).collect()
}

/// A source for the TokenLocks of each namespace, with a connection of its own. Cluster-wide, one for ClusterTokenLocks too: a
/// verifier of some namespaces has no rights beyond them.
fn lock_sources(cluster: &Cluster, namespaces: Option<Vec<String>>) -> anyhow::Result<Vec<locks::Source>> {
    let of = match namespaces {
        Some(named) => named.into_iter().map(|namespace| locks::Of::Namespace(Some(namespace))).collect(),
        None => vec![locks::Of::Namespace(None), locks::Of::Cluster],
    };
    let source = |of| {
        let client = cluster.watch_client()?;
        Ok(locks::Source { of, client, heartbeat: Heartbeat::default(), mark: Mark::default() })
    };
    of.into_iter().map(source).collect()
}

/// How far the watches have come.
fn marks(tokens: &[Source], locks: &[locks::Source]) -> Marks {
    let cluster_locks = locks.iter().find(|source| matches!(source.of, locks::Of::Cluster));
    let of_namespace = |source: &locks::Source| match &source.of {
        locks::Of::Namespace(namespace) => Some((namespace.clone(), source.mark.clone())),
        locks::Of::Cluster => None,
    };
    Marks {
        tokens: tokens.iter().map(|source| (source.namespace.clone(), source.mark.clone())).collect(),
        locks: locks.iter().filter_map(of_namespace).collect(),
        cluster_locks: cluster_locks.map(|source| source.mark.clone()),
    }
}

/// Puts every usable pepper into the snapshot. One that is deleted later stays there, because checks depend on it.
async fn use_pepper(mut peppers: watch::Receiver<PepperState>, snapshot: Arc<Snapshot>, ready: Part) {
    while peppers.changed().await.is_ok() {
        match &*peppers.borrow_and_update() {
            PepperState::Present(peppers) => {
                snapshot.peppers.store(Some(peppers.clone()));
                ready.set(true);
            }
            PepperState::Missing | PepperState::Damaged(_) if snapshot.peppers.load().is_some() => {
                error!(
                    "the pepper's Secret is gone or damaged; checks go on with the one that was read before"
                );
            }
            PepperState::Damaged(damage) => warn!(%damage, "not ready: the pepper can't be used"),
            PepperState::Missing | PepperState::Unknown => {}
        }
    }
}
