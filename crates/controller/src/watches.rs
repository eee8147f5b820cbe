//! The watches of one namespace, or of all, and the controller that they feed.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures::{Stream, StreamExt, TryStreamExt, future, stream};
use kube::runtime::WatchStreamExt;
use kube::runtime::controller::{self, Controller};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use tracing::warn;

use crate::apitoken::cache::StateCache;
use crate::apitoken::error::Error;
use crate::apitoken::reconcile;
use crate::context::{Common, Context};
use crate::objects::{SecretMeta, Token, token_secrets_selector};
use crate::requeue::{self, Load};
use crate::tokenwebhook::{self, Webhooks};
use tokenward_core::crd::labels::TOKEN_LABEL;
use tokenward_runtime::backoff::WatchBackoff;
use tokenward_runtime::cluster::error::watch_message;
use tokenward_runtime::cluster::watch::in_pages;

/// How many tokens are reconciled at a time. Each waits for the API server most of the time.
const MAX_CONCURRENT_RECONCILIATIONS: u16 = 64;

/// The caches of what is watched.
pub(crate) struct Stores {
    pub(crate) tokens: Store<Token>,
    secrets: Store<SecretMeta>,
}

impl Stores {
    /// Waits for the first complete lists.
    pub(crate) async fn wait_until_ready(&self) {
        // An error means that the watch has ended, which whoever polls the watch notices.
        let _ = self.tokens.wait_until_ready().await;
        let _ = self.secrets.wait_until_ready().await;
    }
}

/// Watches the ApiTokens of a namespace, or of all, and the metadata of the Secrets that are labelled as managed by
/// tokenward. Returns the controller, which runs until `common.stop`, and the caches.
pub(crate) fn watch_and_reconcile(
    namespace: Option<&str>,
    common: Common,
) -> (impl Future<Output = ()> + use<>, Stores) {
    let client = common.client.clone();
    let stop = common.stop.clone();
    let cache = Arc::<StateCache>::default();
    let load = Load::default();
    let (requeue, requeued) = requeue::channel(cache.clone(), load.clone());
    let (secrets_store, secrets_writer) = reflector::store();
    let (tokens_store, tokens_writer) = reflector::store();
    let stores = Stores { tokens: tokens_store.clone(), secrets: secrets_store.clone() };
    let webhooks = tokenwebhook::Shared {
        client: common.client.clone(),
        claim: common.claim.clone(),
        events: common.events.clone(),
        metrics: common.metrics.webhooks.clone(),
        cache: cache.clone(),
        schedule: common.schedule,
        policy: common.addresses,
        requeue,
        load: load.clone(),
        registry: Default::default(),
    };
    let context = Arc::new(Context {
        client: common.client,
        claim: common.claim,
        skipped: AtomicBool::new(false),
        peppers: common.peppers,
        secrets: secrets_store,
        cache,
        events: common.events,
        metrics: common.metrics,
        propagation: common.propagation,
        expiry_notice: common.expiry_notice,
        webhooks: Webhooks::new(Arc::new(webhooks), common.stop),
        load,
    });

    let tokens = watch_tokens(api(&client, namespace), tokens_writer, context.clone());
    let secrets = watch_secrets(api(&client, namespace), secrets_writer);
    let controller = Controller::for_stream(tokens, tokens_store.clone())
        .watches_stream(secrets, |secret: SecretMeta| {
            let (token, namespace) =
                (secret.labels().get(TOKEN_LABEL)?, secret.metadata.namespace.as_deref()?);
            Some(ObjectRef::new(token).within(namespace))
        })
        .reconcile_on(requeued)
        .reconcile_all_on(becomes_leader(context.clone()))
        .with_config(controller::Config::default().concurrency(MAX_CONCURRENT_RECONCILIATIONS))
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(
            reconcile_timed,
            |token, error, context| reconcile::after_failure(&token, error, &context),
            context.clone(),
        )
        .for_each(|_| future::ready(()));
    let hooks = api(&client, namespace);
    let run = async move {
        // The first decision on a token needs to know which TokenWebhooks subscribe to its events.
        let controller = async {
            tokio::select! {
                () = context.webhooks.listed() => controller.await,
                () = stop.cancelled() => {}
            }
        };
        tokio::select! {
            () = context.webhooks.follow(hooks, tokens_store) => {}
            () = controller => {}
        }
    };
    (run, stores)
}

fn watch_tokens(
    api: Api<Token>,
    writer: reflector::store::Writer<Token>,
    context: Arc<Context>,
) -> impl Stream<Item = watcher::Result<Token>> {
    let remove_deleted = {
        let context = context.clone();
        let mut listed = HashSet::new();
        move |event: &Event<Token>| match event {
            Event::Init => listed.clear(),
            Event::InitApply(token) => listed.extend(token.meta().uid.clone()),
            // No event tells of what was deleted while nobody watched.
            Event::InitDone => context.cache.retain(&std::mem::take(&mut listed)),
            Event::Delete(token) => token.meta().uid.iter().for_each(|uid| context.cache.remove(uid)),
            Event::Apply(_) => {}
        }
    };
    watcher(api, in_pages())
        .inspect_err(|error| warn!(error = watch_message(error), "ApiTokens can't be watched; trying again"))
        .inspect_ok(remove_deleted)
        .modify(|token| {
            // Large, and of no use here: a tenant may write 256 KiB of annotations.
            token.meta_mut().managed_fields = None;
            token.meta_mut().annotations = None;
        })
        .backoff(WatchBackoff::default())
        .reflect(writer)
        .inspect_ok(move |event| context.webhooks.on_token_event(event))
        .applied_objects()
        .filter(is_ok)
}

fn watch_secrets(
    api: Api<SecretMeta>,
    writer: reflector::store::Writer<SecretMeta>,
) -> impl Stream<Item = watcher::Result<SecretMeta>> {
    watcher(api, in_pages().labels(&token_secrets_selector()))
        .inspect_err(|error| warn!(error = watch_message(error), "Secrets can't be watched; trying again"))
        .modify(|secret| secret.metadata.managed_fields = None)
        .backoff(WatchBackoff::default())
        .reflect(writer)
        .touched_objects()
        .filter(is_ok)
}

/// Hides errors from the controller, which would delay all its watches for each of them. The watch itself logs them
/// and backs off.
fn is_ok<T>(item: &watcher::Result<T>) -> future::Ready<bool> {
    future::ready(item.is_ok())
}

/// An item whenever this replica gets the lease and has skipped a write for want of it.
fn becomes_leader(context: Arc<Context>) -> impl Stream<Item = ()> {
    let claim = context.claim.clone();
    stream::unfold((claim, context), async |(mut claim, context)| {
        loop {
            claim.changed().await.ok()?;
            let is_leader = claim.borrow().is_valid();
            context.metrics.leader.set(i64::from(is_leader));
            if is_leader && context.skipped.swap(false, Ordering::Relaxed) {
                return Some(((), (claim, context)));
            }
        }
    })
}

async fn reconcile_timed(token: Arc<Token>, context: Arc<Context>) -> Result<controller::Action, Error> {
    let (start, _work) = (Instant::now(), context.load.begin());
    let result = reconcile::reconcile(token, context.clone()).await;
    context.metrics.reconciled(start.elapsed());
    result
}

/// The API of a kind in a namespace, or in all.
pub(crate) fn api<K: Resource<Scope = k8s_openapi::NamespaceResourceScope>>(
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
