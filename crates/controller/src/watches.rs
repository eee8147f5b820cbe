//! The watches of one namespace, or of all, and the work queue that they feed.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt, future, stream};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::watch;
use tracing::warn;

use crate::apitoken::cache::StateCache;
use crate::apitoken::reconcile;
use crate::apitoken::terminating::Terminating;
use crate::context::{Common, Context};
use crate::objects::{SecretMeta, TOKEN_SECRETS_SELECTOR, Token};
use crate::requeue::{self, Load, RequeueSender};
use crate::tokenlock;
use crate::tokenwebhook::{self, Webhooks};
use crate::workqueue::{self, Next};
use tokenward_core::crd::labels::TOKEN_LABEL;
use tokenward_core::lifecycle::tombstone_of;
use tokenward_core::tombstone::Tombstone;
use tokenward_runtime::backoff::WatchBackoff;
use tokenward_runtime::cluster::error::watch_message;
use tokenward_runtime::cluster::watch::in_pages;

/// The caches of what is watched.
#[derive(Clone)]
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
        resolve: common.resolve,
        requeue: requeue.clone(),
        load: load.clone(),
        registry: Default::default(),
    };
    let context = Arc::new(Context {
        client: common.client,
        claim: common.claim,
        skipped: AtomicBool::new(false),
        peppers: common.peppers,
        locks: common.locks,
        ledger: common.ledger,
        verifiers: common.verifiers,
        secrets: secrets_store.clone(),
        cache,
        terminating: Terminating::default(),
        events: common.events,
        metrics: common.metrics,
        propagation: common.propagation,
        expiry_notice: common.expiry_notice,
        webhooks: Webhooks::new(Arc::new(webhooks), common.stop),
        load,
    });

    let changes = stream::select_all([
        watch_tokens(api(&client, namespace), tokens_store.clone(), tokens_writer, context.clone()).boxed(),
        watch_secrets(api(&client, namespace), secrets_store, secrets_writer, requeue).boxed(),
        requeued,
        all_when_leading(context.clone(), tokens_store.clone()).boxed(),
        all_when_ledger_grows(context.ledger.changes(), tokens_store.clone()).boxed(),
        tokenlock::concerned(context.locks.clone(), tokens_store.clone())
            .flat_map(|tokens| stream::iter(tokens).map(|token| ObjectRef::from_obj(&*token)))
            .boxed(),
    ]);
    // Before that, a Secret that is not in the store may be there all the same, and so may a lock.
    let listed = {
        let stores = stores.clone();
        let (locks, ledger) = (context.locks.clone(), context.ledger.clone());
        async move {
            stores.wait_until_ready().await;
            locks.listed().await;
            ledger.listed().await;
        }
    };
    let reconcile = {
        let (context, tokens_store) = (context.clone(), tokens_store.clone());
        move |token| reconcile_timed(tokens_store.get(&token), context.clone())
    };
    let controller = workqueue::run(changes, listed, reconcile, stop.clone());
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

/// The tokens that change, each when the store has it: those of a list once the list is complete.
fn watch_tokens(
    api: Api<Token>,
    store: Store<Token>,
    writer: reflector::store::Writer<Token>,
    context: Arc<Context>,
) -> impl Stream<Item = ObjectRef<Token>> {
    let remove_deleted = {
        let context = context.clone();
        let mut listed = HashSet::new();
        move |event: &Event<Token>| match event {
            Event::Init => listed.clear(),
            Event::InitApply(token) => listed.extend(token.meta().uid.clone()),
            // No event tells of what was deleted while nobody watched.
            Event::InitDone => context.cache.relisted(&std::mem::take(&mut listed)),
            Event::Delete(token) => {
                token.meta().uid.iter().for_each(|uid| context.cache.remove(uid));
                context.ledger.enter(revoked(token));
            }
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
        .flat_map(move |event| match event {
            Ok(Event::Apply(token)) => stream::iter(Some(ObjectRef::from_obj(&token))).left_stream(),
            Ok(Event::InitDone) => all_in(&store).right_stream(),
            // Nobody acts on a deletion. The watch has logged an error already, and backs off.
            Ok(Event::Init | Event::InitApply(_) | Event::Delete(_)) | Err(_) => {
                stream::iter(None).left_stream()
            }
        })
}

/// The tombstone of a token that is deleted, if it was revoked: there is no status to take it from any more.
fn revoked(token: &Token) -> Vec<Tombstone> {
    token.0.as_ref().ok().and_then(tombstone_of).into_iter().collect()
}

fn all_in(store: &Store<Token>) -> BoxStream<'static, ObjectRef<Token>> {
    stream::iter(store.state()).map(|token| ObjectRef::from_obj(&*token)).boxed()
}

/// Requeues the tokens whose Secrets change, when the store has the change: those of a list once the list is complete. Yields
/// nothing itself.
///
/// Whoever may edit a Secret may make its label name another token. So a change concerns both: the token that it names now,
/// and the one that it named before.
fn watch_secrets(
    api: Api<SecretMeta>,
    store: Store<SecretMeta>,
    writer: reflector::store::Writer<SecretMeta>,
    requeue: RequeueSender,
) -> impl Stream<Item = ObjectRef<Token>> {
    let (mut listed, mut changed) = (HashSet::new(), Vec::new());
    // The store has what was known before the event; and the receiver is polled after it has the event.
    let requeue_tokens = move |event: &Event<SecretMeta>| match event {
        Event::Init => {
            listed.clear();
            changed.clear();
        }
        Event::InitApply(secret) => {
            listed.extend(secret.metadata.uid.clone());
            changed.extend(tokens_of(secret, &store));
        }
        Event::InitDone => {
            // No event tells of what was deleted while nobody watched.
            let is_gone =
                |secret: &SecretMeta| !secret.metadata.uid.as_ref().is_some_and(|uid| listed.contains(uid));
            let gone = store.state().into_iter().filter(|secret| is_gone(secret));
            changed.extend(gone.filter_map(|secret| token_of(&secret)));
            changed.drain(..).for_each(|token| requeue.now(token));
            listed.clear();
        }
        Event::Apply(secret) | Event::Delete(secret) => {
            tokens_of(secret, &store).for_each(|token| requeue.now(token));
        }
    };
    watcher(api, in_pages().labels(TOKEN_SECRETS_SELECTOR))
        .inspect_err(|error| warn!(error = watch_message(error), "Secrets can't be watched; trying again"))
        .modify(|secret| secret.metadata.managed_fields = None)
        .backoff(WatchBackoff::default())
        .inspect_ok(requeue_tokens)
        .reflect(writer)
        .filter_map(|_| future::ready(None))
}

/// The tokens that a Secret names, and has named before.
fn tokens_of(
    secret: &SecretMeta,
    store: &Store<SecretMeta>,
) -> impl Iterator<Item = ObjectRef<Token>> + use<> {
    let now = token_of(secret);
    let before = store.get(&ObjectRef::from_obj(secret)).and_then(|before| token_of(&before));
    before.filter(|before| Some(before) != now.as_ref()).into_iter().chain(now)
}

/// The token that a Secret's label names.
fn token_of(secret: &SecretMeta) -> Option<ObjectRef<Token>> {
    let (token, namespace) = (secret.labels().get(TOKEN_LABEL)?, secret.metadata.namespace.as_deref()?);
    Some(ObjectRef::new(token).within(namespace))
}

/// All tokens, whenever this replica gets the lease and has skipped a write for want of it.
fn all_when_leading(context: Arc<Context>, tokens: Store<Token>) -> impl Stream<Item = ObjectRef<Token>> {
    let claim = context.claim.clone();
    let leads = stream::unfold((claim, context), async |(mut claim, context)| {
        loop {
            claim.changed().await.ok()?;
            let is_leader = claim.borrow().is_valid();
            context.metrics.leader.set(i64::from(is_leader));
            if is_leader && context.skipped.swap(false, Ordering::Relaxed) {
                return Some(((), (claim, context)));
            }
        }
    });
    leads.flat_map(move |()| all_in(&tokens))
}

/// All tokens, whenever somebody else has added to the ledger, as after a restore.
fn all_when_ledger_grows(
    changes: watch::Receiver<Option<u64>>,
    tokens: Store<Token>,
) -> impl Stream<Item = ObjectRef<Token>> {
    let grows = stream::unfold(changes, async |mut changes| {
        changes.changed().await.ok()?;
        Some(((), changes))
    });
    grows.flat_map(move |()| all_in(&tokens))
}

/// Reconciles a token, unless it is gone.
async fn reconcile_timed(token: Option<Arc<Token>>, context: Arc<Context>) -> Next {
    let Some(token) = token else { return Next::OnChange };
    let (start, _work) = (Instant::now(), context.load.begin());
    let result = reconcile::reconcile(&token, &context).await;
    context.metrics.reconciled(start.elapsed());
    result.unwrap_or_else(|error| reconcile::after_failure(&token, &error, &context))
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
