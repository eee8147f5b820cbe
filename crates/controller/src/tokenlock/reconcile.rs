//! The finalizers and the status of locks.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Mutex;
use std::time::Duration;

use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ListParams;
use kube::runtime::reflector::Store;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::watch::{Guarded, LockStores};
use super::{KnownLocks, candidate};
use crate::objects::{Token, finalizers_patch, params, resource_version};
use crate::recorder::{EventRecorder, NewEvent};
use crate::verifiers::Verifiers;
use crate::watches::api;
use tokenward_core::crd::labels::LOCK_FINALIZER;
use tokenward_core::crd::{
    AnyLock, ClusterTokenLock, ConditionType, LockAction, Reason, TokenLock, find_condition,
};
use tokenward_core::lock::{Candidate, Lock, Tally, report};
use tokenward_core::proof::Written;
use tokenward_runtime::cluster::error::{is_not_found, message};
use tokenward_runtime::cluster::lease::Claim;
use tokenward_runtime::failpoint;
use tokenward_runtime::sync::lock;

/// How often the status of a lock is brought up to date while tokens are still to be recorded.
const INTERVAL: Duration = Duration::from_secs(1);
/// How many of these pass until locks are looked at again on whose part nothing is left to do: tokens may have been restored.
const SETTLED_ROUNDS: u32 = 30;
/// Objects in a page of the list.
const PAGE_SIZE: u32 = 50;
/// Tokens that are counted before other tasks have their turn.
const TOKENS_AT_A_TIME: usize = 256;
/// Locks that are reconciled at a time.
const CONCURRENT: usize = 8;

/// What a reconciliation of locks needs.
pub(crate) struct Parts {
    pub(crate) client: Client,
    pub(crate) claim: tokio::sync::watch::Receiver<Claim>,
    pub(crate) events: EventRecorder,
    pub(crate) known: KnownLocks,
    pub(crate) verifiers: Verifiers,
    pub(crate) stores: LockStores,
    pub(crate) tokens: Vec<Store<Token>>,
    /// By uid, the resourceVersion by which verifiers have to know a lock: the first that was seen, as a lock never changes.
    pub(crate) first_seen: Mutex<HashMap<String, u64>>,
    /// By uid, the resourceVersion that a status written here was given, once verifiers have confirmed the lock. Its event is no
    /// news: while tokens are recorded, each write would lead to the next one at once.
    pub(crate) written: Mutex<HashMap<String, u64>>,
    pub(crate) stop: CancellationToken,
}

/// Keeps finalizers and statuses of all locks up to date, until `stop`.
pub(crate) async fn reconcile_all(mut parts: Parts) {
    parts.known.listed().await;
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut rounds, mut uids) = (0u32, BTreeSet::new());
    loop {
        let news = tokio::select! {
            () = parts.stop.cancelled() => return,
            changed = parts.known.current.changed() => {
                if changed.is_err() { return }
                if !parts.have_others_written(&mut uids) { continue }
                true
            }
            _ = interval.tick() => false,
        };
        rounds = rounds.wrapping_add(1);
        if !parts.claim.borrow().is_valid() {
            continue;
        }
        parts.forget_deleted();
        let all = news || rounds.is_multiple_of(SETTLED_ROUNDS);
        for store in &parts.stores.of_namespaces {
            parts.reconcile_store(store, all, api::<TokenLock>).await;
        }
        if let Some(store) = &parts.stores.of_cluster {
            parts.reconcile_store(store, all, |client, _| Api::<ClusterTokenLock>::all(client.clone())).await;
        }
    }
}

impl Parts {
    fn first_seen(&self, uid: &str, version: u64) -> u64 {
        *lock(&self.first_seen).entry(uid.to_owned()).or_insert(version)
    }

    fn note_written(&self, uid: &str, version: u64) {
        lock(&self.written).insert(uid.to_owned(), version);
    }

    fn forget_deleted(&self) {
        let known = self.known.current();
        for versions in [&self.first_seen, &self.written] {
            lock(versions).retain(|uid, _| known.iter().any(|lock| lock.uid() == uid));
        }
    }

    /// Whether there are other locks than `before`, or one has changed since it was written here. `before` becomes those that there
    /// are.
    fn have_others_written(&self, before: &mut BTreeSet<String>) -> bool {
        let of_namespaces = self.stores.of_namespaces.iter().flat_map(versions);
        let all: Vec<_> = of_namespaces.chain(self.stores.of_cluster.iter().flat_map(versions)).collect();
        let written = lock(&self.written);
        let has_changed = all.iter().any(|(uid, at)| written.get(uid).is_none_or(|written| written < at));
        drop(written);
        let uids = all.into_iter().map(|(uid, _)| uid).collect();
        let are_others = *before != uids;
        *before = uids;
        are_others || has_changed
    }

    /// Reconciles the locks of a store: `all`, or those with which something is left to do.
    async fn reconcile_store<K>(
        &self,
        store: &Store<Guarded<K>>,
        all: bool,
        api: impl Fn(&Client, Option<&str>) -> Api<K>,
    ) where
        K: AnyLock
            + Resource<DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize
            + Sync
            + 'static,
    {
        let locks = store.state();
        let readable = locks.iter().filter_map(|lock| lock.0.as_ref().ok());
        let locks: Vec<&K> = readable.filter(|lock| all || !is_settled(*lock)).collect();
        let prepared: Vec<Lock> = locks.iter().map(|lock| Lock::of(*lock)).collect();
        let tallies = self.count(&prepared).await;
        let work = locks.into_iter().zip(prepared.iter().zip(tallies)).map(|(lock, (prepared, tally))| {
            let api = api(&self.client, lock.namespace().as_deref());
            async move {
                if let Err(error) = self.reconcile(lock, prepared, tally, &api).await {
                    let (namespace, name) = (lock.namespace(), lock.name_any());
                    warn!(namespace, name, error = message(&error), "a lock could not be written yet");
                }
            }
        });
        stream::iter(work).buffer_unordered(CONCURRENT).collect::<()>().await;
    }

    /// Makes the next write of a lock, if it needs one.
    async fn reconcile<K>(&self, lock: &K, prepared: &Lock, tally: Tally, api: &Api<K>) -> kube::Result<()>
    where
        K: AnyLock + Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize,
    {
        let is_deleted = lock.meta().deletion_timestamp.is_some();
        let has_finalizer = lock.finalizers().iter().any(|name| name == LOCK_FINALIZER);
        if is_deleted && !has_finalizer {
            return Ok(());
        }
        if prepared.action() == LockAction::Revoke && !has_finalizer {
            return self.write_finalizer(lock, api, true).await;
        }
        if is_deleted && !tally.holds() && !self.count_anew(prepared).await?.holds() {
            return self.write_finalizer(lock, api, false).await;
        }
        let before = lock.lock_status();
        let now = Timestamp::now();
        let written = resource_version(lock).map(|version| Written::Lock {
            namespace: prepared.namespace(),
            resource_version: self.first_seen(prepared.uid(), version),
        });
        let created = lock.meta().creation_timestamp.as_ref().map_or(now, |time| time.0);
        let is_enforced = before.is_some_and(|before| before.enforced_at.is_some());
        let confirmations = if is_enforced { None } else { self.verifiers.confirmations(written, created) };
        let generation = lock.meta().generation;
        let status = report(before, prepared, tally, confirmations.as_ref(), generation, now);
        if before == Some(&status) || !self.claim.borrow().is_valid() {
            return Ok(());
        }
        let event = event(prepared, before.map(|before| &*before.conditions), &status.conditions);
        let mut object = lock.clone();
        object.set_lock_status(status);
        failpoint::before("lock-status");
        let stored = api.replace_status(&lock.name_any(), &params(), &object).await?;
        failpoint::after("lock-status");
        if is_enforced && let Some(version) = resource_version(&stored) {
            self.note_written(prepared.uid(), version);
        }
        if let Some(event) = event {
            info!(namespace = lock.namespace(), name = lock.name_any(), "{}", event.reason.message);
            self.events.publish(lock, event);
        }
        Ok(())
    }

    /// How far each lock has come, by the caches.
    async fn count(&self, locks: &[Lock]) -> Vec<Tally> {
        let mut tallies = vec![Tally::default(); locks.len()];
        if locks.is_empty() {
            return tallies;
        }
        for (at, token) in self.tokens.iter().flat_map(Store::state).enumerate() {
            let candidate = candidate(&token);
            for (lock, tally) in locks.iter().zip(&mut tallies) {
                add(tally, &token, candidate.as_ref(), lock);
            }
            if at % TOKENS_AT_A_TIME == 0 {
                tokio::task::yield_now().await;
            }
        }
        tallies
    }

    /// The same by the API server: a cache may lack a token that was made just before the lock.
    async fn count_anew(&self, lock: &Lock) -> kube::Result<Tally> {
        let tokens: Api<Token> = api(&self.client, lock.namespace());
        let (mut tally, mut params) = (Tally::default(), ListParams::default().limit(PAGE_SIZE));
        loop {
            let page = tokens.list(&params).await?;
            page.items.iter().for_each(|token| add(&mut tally, token, candidate(token).as_ref(), lock));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(tally),
            }
        }
    }

    async fn write_finalizer<K>(&self, lock: &K, api: &Api<K>, wanted: bool) -> kube::Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        if !self.claim.borrow().is_valid() {
            return Ok(());
        }
        let (params, patch) =
            finalizers_patch(lock.meta(), &[LOCK_FINALIZER], wanted.then_some(LOCK_FINALIZER));
        let point = if wanted { "add-lock-finalizer" } else { "remove-lock-finalizer" };
        failpoint::before(point);
        let written = api.patch_metadata(&lock.name_any(), &params, &patch).await;
        failpoint::after(point);
        match written {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The uid and the resourceVersion of each lock.
fn versions<K>(store: &Store<Guarded<K>>) -> Vec<(String, u64)>
where
    K: AnyLock + Resource<DynamicType = ()> + Clone + Debug + 'static,
{
    let locks = store.state();
    let version = |lock: &Guarded<K>| Some((lock.uid()?, resource_version(lock).unwrap_or(u64::MAX)));
    locks.iter().filter_map(|lock| version(lock)).collect()
}

fn add(tally: &mut Tally, token: &Token, candidate: Option<&Candidate<'_>>, lock: &Lock) {
    match candidate {
        Some(candidate) => tally.add(candidate.progress(lock)),
        None if lock.namespace().is_none_or(|own| token.namespace().as_deref() == Some(own)) => {
            tally.unreadable += 1;
        }
        None => {}
    }
}

/// Whether nothing is left to do about a lock until something changes.
fn is_settled<K: AnyLock + Resource>(lock: &K) -> bool {
    let ready =
        lock.lock_status().and_then(|status| find_condition(&status.conditions, ConditionType::Ready));
    let is_enforced = lock.lock_status().is_some_and(|status| status.enforced_at.is_some());
    lock.meta().deletion_timestamp.is_none()
        && is_enforced
        && ready.is_some_and(|ready| ready.status == "True")
}

/// What is told once of a lock, each time that it says something else.
fn event(lock: &Lock, before: Option<&[Condition]>, after: &[Condition]) -> Option<NewEvent> {
    let before = before.and_then(|before| find_condition(before, ConditionType::Ready));
    let ready = find_condition(after, ConditionType::Ready)?;
    if before.is_some_and(|before| before.reason == ready.reason) {
        return None;
    }
    let code = match (lock.action(), &*ready.reason) {
        (_, "NoMatch") => "NoMatch",
        (_, "Unreadable") => "Unreadable",
        (LockAction::Suspend, "Suspending") => "Suspending",
        (LockAction::Suspend, _) => "Suspended",
        (LockAction::Revoke, "Revoking") => "Revoking",
        (LockAction::Revoke, _) => "Revoked",
    };
    Some(NewEvent { reason: Reason::new(code, ready.message.clone()), warning: code == "Unreadable" })
}
