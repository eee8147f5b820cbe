//! The effects of the manifest path: watch, observe, ask [`tokenward_core::lifecycle`] for the next step, make it.
//!
//! This file wires; `apitoken.rs` is the loop; `apply.rs` alone writes statuses and Secrets. Every replica
//! watches and only the holder of the lease writes. What is kept in memory can be lost at any moment: a token
//! that was minted and not delivered is then minted again.

mod admission;
mod apitoken;
mod bootstrap;
pub mod config;
mod context;
mod metrics;
mod objects;
mod recorder;
mod requeue;
mod tokenwebhook;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt, TryStreamExt, future};
use kube::runtime::WatchStreamExt;
use kube::runtime::controller::{self, Controller};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admission::Admission;
use crate::apitoken::reconcile;
use crate::config::ControllerArgs;
use crate::context::Context;
use crate::objects::{SecretMeta, Token};
use tokenward_core::crd::ApiToken;
use tokenward_core::crd::labels::{MANAGED_BY, MANAGED_BY_VALUE, TOKEN_LABEL};
use tokenward_runtime::backoff::WatchBackoff;
use tokenward_runtime::cluster::client::Cluster;
use tokenward_runtime::cluster::error::watch_message;
use tokenward_runtime::cluster::lease;
use tokenward_runtime::cluster::lease::{Claim, Election};
use tokenward_runtime::cluster::pepper;
use tokenward_runtime::cluster::pepper::{PEPPER_SECRET, PepperState};
use tokenward_runtime::shutdown;
use tokenward_runtime::telemetry::probes;
use tokenward_runtime::telemetry::probes::Readiness;

use crate::apitoken::cache::StateCache;
use crate::metrics::Metrics;
use crate::requeue::Load;
use crate::tokenwebhook::Webhooks;
use tokenward_core::outbox::destination::AddressPolicy;
use tokenward_core::outbox::retry::Schedule;

/// How many tokens are worked on at once. Each waits for the API server most of the time.
const CONCURRENCY: u16 = 64;

/// Runs the controller until SIGTERM or SIGINT.
pub async fn run(args: ControllerArgs) -> anyhow::Result<()> {
    let cluster = Cluster::find("controller").await?;
    let (client, default_namespace) = (cluster.client()?, cluster.default_namespace().to_owned());
    let namespace = args.common.namespace.clone().unwrap_or(default_namespace);
    let stop = shutdown::on_signal()?;

    let mut registry = Registry::with_prefix("tokenward");
    let metrics = Metrics::register(&mut registry);
    let readiness = Readiness::default();
    let pepper_ready = readiness.part("pepper");
    let scopes: Vec<Option<String>> = match args.common.namespaces() {
        Some(namespaces) => namespaces.into_iter().map(Some).collect(),
        None => vec![None],
    };
    let caches = readiness.part("first list of ApiTokens and Secrets");
    let admission = Admission::new(&args.admission, &namespace, &mut registry, &readiness).await?;
    let telemetry =
        probes::serve(args.common.telemetry_listen, readiness, registry, stop.clone().cancelled_owned())
            .await?;
    info!(version = env!("CARGO_PKG_VERSION"), namespace, "controller starts");

    let tokens: Vec<Api<ApiToken>> = scopes.iter().map(|scope| api(&client, scope.as_deref())).collect();
    let work = async {
        tokio::select! {
            made = first_pepper(&client, &namespace, &tokens) => made?,
            () = stop.cancelled() => return Ok(()),
        }
        let (peppers, follow_pepper) = pepper::follow(client.clone(), &namespace);
        let identity = args.identity();
        let (events, tell_events) = recorder::channel(client.clone(), identity.clone());
        let config = lease::Config {
            namespace: namespace.clone(),
            name: args.lease_name.clone(),
            identity,
            duration: args.lease_duration(),
        };
        let (election, claim) = Election::new(client.clone(), config);
        // The lease outlives the controllers, so that what they still write at the end they may write.
        let done = CancellationToken::new();

        let policy = Arc::new(AddressPolicy {
            allow_private: args.webhooks.webhook_allow_private,
            allow: args.webhooks.webhook_allow_cidrs.clone(),
        });
        let (controllers, stores): (Vec<_>, Vec<_>) = scopes
            .iter()
            .map(|scope| {
                let (store, writer) = reflector::store();
                let memories = Arc::<StateCache>::default();
                let load = Load::default();
                let (nudges, nudged) = requeue::channel(memories.clone(), load.clone());
                let shared = tokenwebhook::Shared {
                    client: client.clone(),
                    claim: claim.clone(),
                    events: events.clone(),
                    metrics: metrics.webhooks.clone(),
                    memories: memories.clone(),
                    schedule: Schedule::faster(args.webhooks.webhook_time_scale),
                    policy: policy.clone(),
                    nudges,
                    load: load.clone(),
                    registry: Default::default(),
                };
                let context = Arc::new(Context {
                    client: client.clone(),
                    claim: claim.clone(),
                    skipped: AtomicBool::new(false),
                    peppers: peppers.clone(),
                    secrets: store,
                    memories,
                    events: events.clone(),
                    metrics: metrics.clone(),
                    propagation: args.propagation,
                    expiry_notice: args.expiry_notice,
                    webhooks: Webhooks::new(Arc::new(shared), stop.clone()),
                    load,
                });
                watch_and_reconcile(scope.as_deref(), context, writer, nudged, &stop)
            })
            .unzip();
        let controllers = async {
            // Without the pepper nothing can be decided, so nothing is looked at before.
            tokio::select! {
                () = first_present(peppers.clone()) => {
                    pepper_ready.set(true);
                    future::join_all(controllers).await;
                }
                () = stop.cancelled() => {}
            }
            done.cancel();
        };
        let ready = async {
            for (tokens, secrets) in &stores {
                let _ = tokens.wait_until_ready().await;
                let _ = secrets.wait_until_ready().await;
            }
            caches.set(true);
            future::pending::<()>().await;
        };
        let work = future::join(controllers, election.run(done.cancelled()));
        let tokens = stores.iter().map(|(tokens, _)| tokens.clone()).collect();
        let admission = admit(admission, client.clone(), claim, tokens, policy, stop.clone());
        tokio::select! {
            _ = work => Ok(()),
            () = ready => Ok(()),
            () = follow_pepper => bail!("the watch of the pepper has ended"),
            () = tell_events => bail!("the queue of Events has ended"),
            Err(error) = admission => Err(error),
            state = lost_pepper(peppers.clone()) => bail!("{state}"),
        }
    };
    tokio::select! {
        result = work => { stop.cancel(); result }
        () = async { telemetry.await; future::pending().await } => Ok(()),
        // A second chance for what does not come to an end by itself.
        () = async { stop.cancelled().await; tokio::time::sleep(Duration::from_secs(10)).await } => {
            warn!("not everything was finished in time");
            Ok(())
        }
    }
}

/// Answers the API server, if that is wanted. Comes to an end by an error only.
async fn admit(
    admission: Option<Admission>,
    client: Client,
    claim: watch::Receiver<Claim>,
    tokens: Vec<Store<Token>>,
    addresses: Arc<AddressPolicy>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    if let Some(admission) = admission {
        admission.run(client, claim, tokens, addresses, stop).await?;
    }
    future::pending().await
}

/// Makes sure of the pepper, waiting for an API server that is not there yet.
async fn first_pepper(client: &Client, namespace: &str, tokens: &[Api<ApiToken>]) -> anyhow::Result<()> {
    let mut delay = Duration::from_millis(200);
    loop {
        match bootstrap::ensure(client, namespace, tokens).await {
            Ok(()) => return Ok(()),
            Err(error @ bootstrap::Error::Api { .. }) => {
                warn!(%error, "can't start yet; trying again");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(Duration::from_secs(10));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Comes to an end when the pepper is there.
// The answer of `wait_for` holds a lock on the channel, so it must not be kept.
async fn first_present(mut peppers: watch::Receiver<PepperState>) {
    drop(peppers.wait_for(|state| matches!(state, PepperState::Present(_))).await);
}

/// Comes to an end when a pepper that was there no longer is.
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

fn api<K: Resource<Scope = k8s_openapi::NamespaceResourceScope>>(
    client: &Client,
    namespace: Option<&str>,
) -> Api<K>
where
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Watches the ApiTokens of a namespace, or of all, and the Secrets that are labelled as ours, of which only
/// metadata is kept.
fn watch_and_reconcile(
    namespace: Option<&str>,
    context: Arc<Context>,
    secrets_writer: reflector::store::Writer<SecretMeta>,
    nudged: BoxStream<'static, ObjectRef<Token>>,
    stop: &CancellationToken,
) -> (impl Future<Output = ()> + use<>, (Store<Token>, Store<SecretMeta>)) {
    let (tokens_store, tokens_writer) = reflector::store();
    let (forgetful, noting) = (context.clone(), context.clone());
    let tokens = watcher(api::<Token>(&context.client, namespace), watcher::Config::default())
        .inspect_err(|error| warn!(error = watch_message(error), "ApiTokens can't be watched; trying again"))
        .inspect_ok(move |event| {
            if let Event::Delete(token) = event {
                forgetful.memories.forget(token.meta().uid.as_deref().unwrap_or_default());
            }
        })
        .modify(|token| token.meta_mut().managed_fields = None)
        .backoff(WatchBackoff::default())
        .reflect(tokens_writer)
        .inspect_ok(move |event| noting.webhooks.saw(event))
        .applied_objects()
        .filter(is_ok);
    let labelled =
        watcher::Config::default().labels(&format!("{MANAGED_BY}={MANAGED_BY_VALUE},{TOKEN_LABEL}"));
    let secrets = watcher(api::<SecretMeta>(&context.client, namespace), labelled)
        .inspect_err(|error| warn!(error = watch_message(error), "Secrets can't be watched; trying again"))
        .modify(|secret| secret.metadata.managed_fields = None)
        .backoff(WatchBackoff::default())
        .reflect(secrets_writer)
        .touched_objects()
        .filter(is_ok);
    let stores = (tokens_store.clone(), context.secrets.clone());
    let hooks = api(&context.client, namespace);
    let (following, known, tokens_of_hooks) = (context.clone(), context.clone(), tokens_store.clone());
    let controller = Controller::for_stream(tokens, tokens_store)
        .watches_stream(secrets, |secret: SecretMeta| {
            let token = secret.labels().get(TOKEN_LABEL).cloned();
            token.map(|name| ObjectRef::new(&name).within(&secret.namespace().unwrap_or_default()))
        })
        .reconcile_on(nudged)
        .reconcile_all_on(becomes_leader(context.clone()))
        .with_config(controller::Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(timed, |token, error, context| reconcile::after_failure(&token, error, &context), context)
        .for_each(|_| future::ready(()));
    let stopped = stop.clone();
    let work = async move {
        let controller = async {
            tokio::select! {
                () = known.webhooks.listed() => controller.await,
                () = stopped.cancelled() => {}
            }
        };
        tokio::select! {
            () = following.webhooks.follow(hooks, tokens_of_hooks) => {}
            () = controller => {}
        }
    };
    (work, stores)
}

/// Keeps errors from the controller, which would hold up all its watches for one's sake, and for long. They are
/// logged, and waited out, by the watch itself.
fn is_ok<T>(item: &Result<T, watcher::Error>) -> future::Ready<bool> {
    future::ready(item.is_ok())
}

/// Speaks whenever the lease is held and something was left undone for want of it.
fn becomes_leader(context: Arc<Context>) -> impl Stream<Item = ()> {
    let claim = context.claim.clone();
    stream::unfold((claim, context), async |(mut claim, context)| {
        loop {
            claim.changed().await.ok()?;
            let leads = claim.borrow().holds();
            context.metrics.leader.set(i64::from(leads));
            if leads && context.skipped.swap(false, Ordering::Relaxed) {
                return Some(((), (claim, context)));
            }
        }
    })
}

async fn timed(token: Arc<Token>, context: Arc<Context>) -> Result<controller::Action, reconcile::Error> {
    let (start, _work) = (Instant::now(), context.load.begin());
    let result = reconcile::reconcile(token, context.clone()).await;
    context.metrics.reconciled(start.elapsed());
    result
}
