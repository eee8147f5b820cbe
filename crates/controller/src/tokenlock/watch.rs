//! Follows the locks of the watched namespaces, and those of the cluster.

use std::fmt::Debug;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch::{self, Sender};
use tracing::warn;

use super::KnownLocks;
use crate::watches::api;
use tokenward_core::crd::{AnyLock, ClusterTokenLock, TokenLock};
use tokenward_core::lock::{Lock, Locks};
use tokenward_runtime::backoff::WatchBackoff;
use tokenward_runtime::cluster::error::watch_message;
use tokenward_runtime::cluster::watch::in_pages;

/// A lock, or why the stored object can't be parsed.
pub(super) type Guarded<K> = DeserializeGuard<K>;

/// The caches of what is watched.
#[derive(Clone)]
pub(crate) struct LockStores {
    pub(super) of_namespaces: Vec<Store<Guarded<TokenLock>>>,
    /// `None`: a controller of some namespaces has no rights beyond them.
    pub(super) of_cluster: Option<Store<Guarded<ClusterTokenLock>>>,
}

impl LockStores {
    async fn wait_until_ready(&self) {
        // An error means that the watch has ended, which whoever polls the watch notices.
        for store in &self.of_namespaces {
            let _ = store.wait_until_ready().await;
        }
        if let Some(store) = &self.of_cluster {
            let _ = store.wait_until_ready().await;
        }
    }

    fn locks(&self, generation: u32) -> Locks {
        let of_namespaces = self.of_namespaces.iter().flat_map(prepared);
        Locks::new(generation, of_namespaces.chain(self.of_cluster.iter().flat_map(prepared)))
    }
}

/// What can't be read stops nothing that is known; its status says so.
fn prepared<K>(store: &Store<Guarded<K>>) -> Vec<Arc<Lock>>
where
    K: AnyLock + Resource<DynamicType = ()> + Clone + Debug + 'static,
{
    store.state().iter().filter_map(|lock| Some(Arc::new(Lock::of(lock.0.as_ref().ok()?)))).collect()
}

/// The locks, their caches, and the task that follows them.
pub(crate) fn follow(
    client: &Client,
    namespaces: &[Option<String>],
) -> (KnownLocks, LockStores, impl Future<Output = ()> + use<>) {
    let (mut stores, mut changes) = (Vec::new(), Vec::new());
    for namespace in namespaces {
        let (store, watch) = watch_locks(api::<Guarded<TokenLock>>(client, namespace.as_deref()));
        stores.push(store);
        changes.push(watch);
    }
    let of_cluster = namespaces.contains(&None).then(|| {
        let (store, watch) = watch_locks(Api::<Guarded<ClusterTokenLock>>::all(client.clone()));
        changes.push(watch);
        store
    });
    let stores = LockStores { of_namespaces: stores, of_cluster };
    let (publish, current) = watch::channel(None);
    let run = publish_changes(stores.clone(), stream::select_all(changes), publish);
    (KnownLocks::new(current), stores, run)
}

async fn publish_changes(
    stores: LockStores,
    mut changes: impl futures::Stream<Item = ()> + Unpin,
    publish: Sender<Option<Arc<Locks>>>,
) {
    let mut generation = 0u32;
    let mut is_listed = false;
    let listed = stores.wait_until_ready();
    let mut listed = std::pin::pin!(listed);
    loop {
        tokio::select! {
            change = changes.next() => if change.is_none() { return },
            () = &mut listed, if !is_listed => is_listed = true,
        }
        if is_listed {
            generation = generation.wrapping_add(1);
            publish.send_replace(Some(Arc::new(stores.locks(generation))));
        }
    }
}

/// A cache, and an item for each change of it.
fn watch_locks<K>(api: Api<Guarded<K>>) -> (Store<Guarded<K>>, BoxStream<'static, ()>)
where
    K: AnyLock + Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let changes = watcher(api, in_pages())
        .inspect_err(|error| warn!(error = watch_message(error), "locks can't be watched; trying again"))
        .modify(|lock| lock.meta_mut().managed_fields = None)
        .backoff(WatchBackoff::default())
        .reflect(writer)
        .map(|_| ());
    (store, changes.boxed())
}
