//! The controller: watches ApiTokens, and makes the steps that [`tokenward_core::lifecycle`] decides on.
//!
//! This file connects the parts. Every replica watches, and only the leader writes. What is in memory can be lost at any
//! moment: a token that was minted and not delivered is then minted again.

mod admission;
mod apitoken;
mod bootstrap;
pub mod config;
mod context;
mod ledger;
mod metrics;
mod objects;
mod recorder;
pub mod remove_finalizers;
mod requeue;
mod tokenlock;
mod tokenwebhook;
mod verifiers;
mod watches;
mod workqueue;

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use futures::future;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admission::Admission;
use crate::config::ControllerArgs;
use crate::context::Common;
use crate::metrics::Metrics;
use crate::tokenwebhook::resolve;
use tokenward_core::outbox::destination::AddressPolicy;
use tokenward_core::outbox::retry::Schedule;
use tokenward_runtime::backoff::Backoff;
use tokenward_runtime::cluster::client::Cluster;
use tokenward_runtime::cluster::lease;
use tokenward_runtime::cluster::lease::Election;
use tokenward_runtime::cluster::pepper;
use tokenward_runtime::cluster::pepper::{PEPPER_SECRET, PepperState};
use tokenward_runtime::shutdown;
use tokenward_runtime::sync::optional;
use tokenward_runtime::telemetry::probes;
use tokenward_runtime::telemetry::probes::{Part, Readiness};

/// How long the process may take to finish after SIGTERM.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// The waits for an API server that can't be reached when the process starts.
const STARTUP_BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));

/// Runs the controller until SIGTERM or SIGINT.
pub async fn run(args: ControllerArgs) -> anyhow::Result<()> {
    let cluster = Cluster::find("controller").await?;
    let client = cluster.client()?;
    let namespace = args.common.namespace.clone().unwrap_or_else(|| cluster.default_namespace().to_owned());
    let stop = shutdown::on_signal()?;

    let mut registry = Registry::with_prefix("tokenward");
    let metrics = Metrics::register(&mut registry);
    let readiness = Readiness::default();
    let pepper_ready = readiness.part("pepper");
    let lists_ready = readiness.part("first list of ApiTokens and Secrets");
    let admission = Admission::new(&args.admission, &namespace, &mut registry, &readiness).await?;
    let telemetry = probes::serve(args.common.telemetry_listen, readiness, registry, None, stop.clone())?;
    info!(version = env!("CARGO_PKG_VERSION"), namespace, "controller starts");

    let process = Process { args, client, namespace, metrics, pepper_ready, lists_ready, stop: stop.clone() };
    tokio::select! {
        result = process.run(admission) => { stop.cancel(); result }
        () = async { telemetry.await; future::pending().await } => Ok(()),
        () = async { stop.cancelled().await; tokio::time::sleep(SHUTDOWN_TIMEOUT).await } => {
            warn!("not everything was finished in time");
            Ok(())
        }
    }
}

/// The controller once its ports are bound.
struct Process {
    args: ControllerArgs,
    client: Client,
    namespace: String,
    metrics: Metrics,
    pepper_ready: Part,
    lists_ready: Part,
    stop: CancellationToken,
}

impl Process {
    async fn run(self, admission: Option<Admission>) -> anyhow::Result<()> {
        let Self { args, client, namespace, metrics, pepper_ready, lists_ready, stop } = self;
        // `None` is all namespaces.
        let namespaces: Vec<Option<String>> = match args.common.namespaces() {
            Some(namespaces) => namespaces.into_iter().map(Some).collect(),
            None => vec![None],
        };
        tokio::select! {
            ensured = ensure_pepper(&client, &namespace, &namespaces) => ensured?,
            () = stop.cancelled() => return Ok(()),
        }
        let (peppers, follow_pepper) = pepper::follow(client.clone(), &namespace);
        let identity = args.identity();
        let (events, write_events) = recorder::channel(client.clone(), identity.clone());
        let lease = lease::Config {
            namespace: namespace.clone(),
            name: args.lease_name.clone(),
            identity,
            duration: args.lease_duration(),
        };
        let (election, claim) = Election::new(client.clone(), lease);
        let addresses = Arc::new(AddressPolicy {
            allow_private: args.webhooks.webhook_allow_private,
            allow: args.webhooks.webhook_allow_cidrs.clone(),
        });
        let (verifiers, ask_verifiers) =
            verifiers::follow(&client, &namespace, &args.verifiers, peppers.clone());
        let (known_locks, lock_stores, follow_locks) = tokenlock::watch::follow(&client, &namespaces);
        let (ledger, follow_ledger) =
            ledger::follow(client.clone(), &namespace, claim.clone(), metrics.clone());
        let common = Common {
            client: client.clone(),
            ledger,
            locks: known_locks.clone(),
            verifiers: verifiers.clone(),
            claim: claim.clone(),
            peppers: peppers.clone(),
            events: events.clone(),
            metrics,
            addresses: addresses.clone(),
            resolve: resolve::system(),
            schedule: Schedule::faster(args.webhooks.webhook_time_scale),
            propagation: args.propagation,
            expiry_notice: args.expiry_notice,
            stop: stop.clone(),
        };
        let (controllers, stores): (Vec<_>, Vec<_>) = namespaces
            .iter()
            .map(|namespace| watches::watch_and_reconcile(namespace.as_deref(), common.clone()))
            .unzip();
        let tokens: Vec<_> = stores.iter().map(|stores| stores.tokens.clone()).collect();
        let reconcile_locks = tokenlock::reconcile_all(tokenlock::Parts {
            client: client.clone(),
            claim: claim.clone(),
            events,
            known: known_locks,
            verifiers,
            stores: lock_stores,
            tokens: tokens.clone(),
            first_seen: Default::default(),
            written: Default::default(),
            stop: stop.clone(),
        });
        let reconcile_locks = async {
            future::join_all(stores.iter().map(watches::Stores::wait_until_ready)).await;
            reconcile_locks.await;
            // Until the controllers have finished, too.
            future::pending::<()>().await;
        };
        let reconcile = run_controllers(controllers, election, peppers.clone(), pepper_ready, stop.clone());
        let report_lists = async {
            future::join_all(stores.iter().map(watches::Stores::wait_until_ready)).await;
            lists_ready.set(true);
            future::pending::<()>().await;
        };
        let admission = admission.map(|admission| admission.run(client, claim, tokens, addresses, stop));
        tokio::select! {
            () = reconcile => Ok(()),
            () = report_lists => Ok(()),
            () = reconcile_locks => Ok(()),
            () = ask_verifiers => bail!("the watch of the verifiers has ended"),
            () = follow_ledger => bail!("the watch of the ledger has ended"),
            () = follow_locks => bail!("the watch of TokenLocks has ended"),
            () = follow_pepper => bail!("the watch of the pepper has ended"),
            () = write_events => bail!("the queue of Events has ended"),
            Err(error) = optional(admission) => Err(error),
            state = lost_pepper(peppers) => bail!("{state}"),
        }
    }
}

/// Runs the controllers, which need the pepper for every decision, and the election. The lease is released after the
/// controllers have ended, so that their last writes are still allowed.
async fn run_controllers(
    controllers: Vec<impl Future<Output = ()>>,
    election: Election,
    peppers: watch::Receiver<PepperState>,
    pepper_ready: Part,
    stop: CancellationToken,
) {
    let done = CancellationToken::new();
    let controllers = async {
        tokio::select! {
            () = first_present(peppers) => {
                pepper_ready.set(true);
                future::join_all(controllers).await;
            }
            () = stop.cancelled() => {}
        }
        done.cancel();
    };
    future::join(controllers, election.run(done.cancelled())).await;
}

/// Makes sure that there is a pepper. Waits for an API server that can't be reached yet.
async fn ensure_pepper(client: &Client, namespace: &str, watched: &[Option<String>]) -> anyhow::Result<()> {
    for failures in 1.. {
        match bootstrap::ensure(client, namespace, watched).await {
            Ok(()) => break,
            Err(error @ bootstrap::Error::Api { .. }) => {
                warn!(%error, "can't start yet; trying again");
                tokio::time::sleep(STARTUP_BACKOFF.wait(failures)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Ends when the pepper has been read and can be used.
// What `wait_for` returns locks the channel, so it is dropped at once.
async fn first_present(mut peppers: watch::Receiver<PepperState>) {
    drop(peppers.wait_for(|state| matches!(state, PepperState::Present(_))).await);
}

/// Ends when the pepper that was in use is deleted or damaged. Returns which, as a message.
async fn lost_pepper(mut peppers: watch::Receiver<PepperState>) -> String {
    first_present(peppers.clone()).await;
    let lost = peppers.wait_for(|state| !matches!(state, PepperState::Present(_))).await;
    match lost.as_deref() {
        Ok(PepperState::Damaged(damage)) => {
            format!("Secret {PEPPER_SECRET} can't be used any more: {damage}. Restore it from a backup")
        }
        _ => format!(
            "Secret {PEPPER_SECRET} was deleted. Restore it from a backup: without it no token can be checked after a restart"
        ),
    }
}
