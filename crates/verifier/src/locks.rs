//! The watches of TokenLocks and ClusterTokenLocks. Each change makes another set of locks, by which every check from then on
//! decides: a lock takes effect at once, whatever the number of tokens that it stops.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use kube::core::DeserializeGuard;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tracing::{info, warn};

use crate::events::{self, Event, Relist, position};
use crate::heartbeat::Heartbeat;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::watermark::Mark;
use tokenward_core::crd::{AnyLock, ClusterTokenLock, TokenLock};
use tokenward_core::lock::{Lock, Locks};
use tokenward_runtime::telemetry::probes::Part;

const TOKEN_LOCKS: &str = "TokenLocks can't be watched; checks go on by those that are known";
const CLUSTER_TOKEN_LOCKS: &str = "ClusterTokenLocks can't be watched; checks go on by those that are known";

/// The source of one watch.
pub(super) struct Source {
    pub of: Of,
    pub client: Client,
    /// To which an event that is taken in is news, and the end of a list.
    pub heartbeat: Heartbeat,
    pub mark: Mark,
}

/// The locks of one watch.
pub(super) enum Of {
    /// TokenLocks of a namespace. `None`: of all.
    Namespace(Option<String>),
    /// ClusterTokenLocks.
    Cluster,
}

/// A lock by namespace and name.
type Key = (Option<String>, String);

/// What is needed of an object.
struct Prepared {
    key: Key,
    resource_version: u64,
    lock: Result<Arc<Lock>, String>,
}

type LockEvent = Event<Prepared>;

/// Puts the locks into the snapshot for as long as it is polled. Sets `ready` after the first list of every source. Lists again
/// what has brought nothing for `max_staleness`.
pub(super) async fn follow(
    sources: Vec<Source>,
    snapshot: Arc<Snapshot>,
    max_staleness: Duration,
    ready: Part,
    metrics: Metrics,
) {
    let mut known: Vec<Known> = sources.iter().map(|_| Known::default()).collect();
    let mut marks: Vec<Mark> = sources.iter().map(|source| source.mark.clone()).collect();
    let mut generation = 0u32;
    loop {
        let mut events = stream::select_all(
            sources.iter().enumerate().map(|(at, source)| source.events().map(move |e| (at, e))),
        );
        let mut relist = Relist::new(max_staleness);
        loop {
            let heartbeats = sources.iter().map(|source| &source.heartbeat);
            let is_listing = marks.iter().any(Mark::is_listing);
            let (at, event) = tokio::select! {
                event = events.next() => match event {
                    Some(event) => event,
                    None => return,
                },
                () = relist.due(heartbeats, is_listing) => break,
            };
            let passed = Passed::of(&event);
            if known[at].take(event) {
                generation = generation.wrapping_add(1);
                let locks = known.iter().flat_map(|known| known.locks.values().cloned());
                snapshot.locks.store(Arc::new(Locks::new(generation, locks)));
                let number: usize = known.iter().map(|known| known.locks.len()).sum();
                metrics.locks.set(i64::try_from(number).unwrap_or(i64::MAX));
            }
            // Once checks go by it.
            passed.note(&mut marks[at], &sources[at].heartbeat);
            if passed == Passed::Gap {
                relist.has_gap();
            }
            if !snapshot.are_locks_listed() && known.iter().all(|known| known.is_listed) {
                info!("listed TokenLocks and ClusterTokenLocks");
                snapshot.set_locks_listed(true);
                ready.set(true);
            }
        }
    }
}

/// What an event says of how far its watch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passed {
    ListBegins,
    /// A part of a list, which may never end.
    Listed,
    ListEnds(u64),
    Event(u64),
    /// It is no news, and what it is of goes on as before.
    Unreadable(u64),
    Gap,
}

impl Passed {
    fn of(event: &LockEvent) -> Self {
        match event {
            Event::ListBegins => Self::ListBegins,
            Event::Listed(_) => Self::Listed,
            Event::ListEnds(at) | Event::Resumed(at) => Self::ListEnds(*at),
            Event::Applied(object) if object.lock.is_err() => Self::Unreadable(object.resource_version),
            Event::Applied(object) | Event::Deleted(object) => Self::Event(object.resource_version),
            Event::Bookmark(at) => Self::Event(*at),
            Event::Gap => Self::Gap,
        }
    }

    fn note(self, mark: &mut Mark, heartbeat: &Heartbeat) {
        match self {
            Self::ListBegins => mark.list_begins(),
            Self::Listed => {}
            Self::ListEnds(at) => {
                mark.list_ends(at);
                heartbeat.beat();
            }
            Self::Event(at) => {
                mark.applied(at);
                heartbeat.beat();
            }
            Self::Unreadable(at) => mark.applied(at),
            Self::Gap => mark.has_gap(),
        }
    }
}

impl Source {
    fn events(&self) -> BoxStream<'static, LockEvent> {
        match &self.of {
            Of::Namespace(Some(namespace)) => {
                events::<TokenLock>(Api::namespaced(self.client.clone(), namespace), TOKEN_LOCKS)
            }
            Of::Namespace(None) => events::<TokenLock>(Api::all(self.client.clone()), TOKEN_LOCKS),
            Of::Cluster => events::<ClusterTokenLock>(Api::all(self.client.clone()), CLUSTER_TOKEN_LOCKS),
        }
    }
}

fn events<K>(api: Api<DeserializeGuard<K>>, failure: &'static str) -> BoxStream<'static, LockEvent>
where
    K: AnyLock + Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug + Send + 'static,
{
    events::follow(api, None, failure).map(prepared).boxed()
}

fn prepared<K: AnyLock + Resource<DynamicType = ()>>(event: Event<DeserializeGuard<K>>) -> LockEvent {
    let prepare = |object: DeserializeGuard<K>| {
        let key = (object.namespace(), object.name_any());
        let resource_version = position(object.resource_version().as_deref());
        let lock = object.0.map(|lock| Arc::new(Lock::of(&lock))).map_err(|invalid| invalid.error);
        Prepared { key, resource_version, lock }
    };
    match event {
        Event::ListBegins => Event::ListBegins,
        Event::Listed(object) => Event::Listed(prepare(object)),
        Event::ListEnds(at) => Event::ListEnds(at),
        Event::Resumed(at) => Event::Resumed(at),
        Event::Applied(object) => Event::Applied(prepare(object)),
        Event::Deleted(object) => Event::Deleted(prepare(object)),
        Event::Bookmark(at) => Event::Bookmark(at),
        Event::Gap => Event::Gap,
    }
}

/// The locks of one watch.
#[derive(Default)]
struct Known {
    locks: HashMap<Key, Arc<Lock>>,
    /// Those that the list has brought that is under way.
    listed: Vec<Key>,
    is_listed: bool,
}

impl Known {
    /// Applies an event. Returns whether the locks have changed.
    fn take(&mut self, event: LockEvent) -> bool {
        match event {
            Event::ListBegins => {
                self.listed.clear();
                false
            }
            Event::Listed(Prepared { key, lock, .. }) => {
                self.listed.push(key.clone());
                self.apply(key, lock)
            }
            Event::Applied(Prepared { key, lock, .. }) => self.apply(key, lock),
            Event::Deleted(Prepared { key, .. }) => self.locks.remove(&key).is_some(),
            Event::ListEnds(_) => {
                self.is_listed = true;
                let (before, listed) = (self.locks.len(), std::mem::take(&mut self.listed));
                self.locks.retain(|key, _| listed.contains(key));
                self.locks.len() != before
            }
            Event::Resumed(_) | Event::Bookmark(_) | Event::Gap => false,
        }
    }

    fn apply(&mut self, key: Key, lock: Result<Arc<Lock>, String>) -> bool {
        match lock {
            // Only its metadata or status has changed.
            Ok(lock) if self.locks.get(&key) == Some(&lock) => false,
            Ok(lock) => {
                self.locks.insert(key, lock);
                true
            }
            // What it stops is unknown. It can't be changed, so what was read of it before still holds.
            Err(error) => {
                let (namespace, name) = key;
                warn!(
                    namespace,
                    name, error, "a lock can't be read; it stops what it stopped before, if anything"
                );
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, spec: serde_json::Value) -> Prepared {
        let object = json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec});
        let guard: DeserializeGuard<TokenLock> = serde_json::from_value(object).expect("an object");
        let Event::Applied(prepared) = prepared(Event::Applied(guard)) else { panic!("another event") };
        prepared
    }

    fn names(known: &Known) -> Vec<&str> {
        let mut names: Vec<_> = known.locks.keys().map(|(_, name)| &**name).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_list_replaces_the_previous_one_but_for_what_can_not_be_read() {
        let readable = || json!({"match": {"all": true}, "action": "Suspend"});
        let unreadable = || json!({"match": {"tomorrow": 1}, "action": "Suspend"});
        let mut known = Known::default();
        assert!(known.take(Event::Applied(event("a", readable()))));
        assert!(!known.take(Event::Applied(event("a", readable()))), "nothing has changed");
        assert!(known.take(Event::Applied(event("b", readable()))));
        assert!(!known.take(Event::Applied(event("new", unreadable()))), "what it stops is unknown");
        assert_eq!(names(&known), ["a", "b"]);
        for event in [Event::ListBegins, Event::Listed(event("a", unreadable())), Event::ListEnds(1)] {
            known.take(event);
        }
        assert_eq!(names(&known), ["a"], "what was read before still holds");
        assert!(known.take(Event::Deleted(event("a", unreadable()))));
        assert!(known.locks.is_empty() && known.is_listed);
    }
}
