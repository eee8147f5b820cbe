//! The feed: a watch of ApiTokens, applied to the index event by event. No whole object is stored.
//!
//! An object that can't be parsed loses its entry: an outdated decision about a token is worse than a denial. Lists are
//! read page by page, so never are all objects in memory at once.

use std::borrow::Cow;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, future, stream};
use kube::api::ObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tracing::{info, warn};

use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use tokenward_core::check::{Metadata, WireToken};
use tokenward_core::crd::ApiToken;
use tokenward_runtime::backoff::WatchBackoff;
use tokenward_runtime::cluster::error::watch_message;
use tokenward_runtime::cluster::watch::in_pages;
use tokenward_runtime::telemetry::probes::Part;

/// The source of one watch.
pub(super) struct Source {
    /// `None`: all namespaces.
    pub namespace: Option<String>,
    pub client: Client,
}

/// Feeds the snapshot for as long as it is polled. Sets `ready` after the first full list of every source.
pub(super) fn feed(
    sources: Vec<Source>,
    snapshot: Arc<Snapshot>,
    ready: Part,
    metrics: Metrics,
) -> impl Future<Output = ()> {
    let mut unlisted = sources.len();
    let events = stream::select_all(sources.into_iter().map(|Source { namespace, client }| {
        let api: Api<Object> = match &namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        };
        let mut listing = Listing { namespace, list: 0, listed: false };
        watcher(api, in_pages())
            .inspect_err(|error| {
                warn!(error = watch_message(error), "ApiTokens can't be watched; checks go on from memory")
            })
            .backoff(WatchBackoff::default())
            .filter_map(|result| future::ready(result.ok()))
            .map({
                let snapshot = snapshot.clone();
                move |event| listing.take(event, &snapshot)
            })
            .boxed()
    }));
    events.for_each(move |first_list| {
        if first_list {
            unlisted -= 1;
        }
        if first_list && unlisted == 0 {
            snapshot.set_listed();
            ready.set(true);
        }
        metrics.tokens.set(i64::try_from(snapshot.index.len()).unwrap_or(i64::MAX));
        future::ready(())
    })
}

/// The lists of one watch.
struct Listing {
    /// `None`: all namespaces.
    namespace: Option<String>,
    /// The number of lists that were begun. At the end of one, an entry with an older number was not in it.
    list: u32,
    /// Whether the first list is complete.
    listed: bool,
}

impl Listing {
    /// Applies an event to the index; returns whether it completes the first full list.
    fn take(&mut self, event: Event<Object>, snapshot: &Snapshot) -> bool {
        match event {
            Event::Init => self.list = self.list.wrapping_add(1),
            Event::InitApply(object) | Event::Apply(object) => self.apply(&object, snapshot),
            Event::Delete(object) => snapshot.index.delete(object.namespace(), object.name()),
            Event::InitDone => {
                let within = |namespace: &str| self.namespace.as_deref().is_none_or(|own| own == namespace);
                snapshot.index.retain(|entry| !within(entry.namespace()) || entry.seen_in() == self.list);
                info!(tokens = snapshot.index.len(), "listed ApiTokens");
                return !std::mem::replace(&mut self.listed, true);
            }
        }
        false
    }

    fn apply(&self, object: &Object, snapshot: &Snapshot) {
        match &object.token {
            Ok(token) => snapshot.index.apply(token, self.list),
            Err(error) => {
                let token = format!("{}/{}", object.namespace(), object.name());
                warn!(token, error, "an ApiToken can't be read, so its token is denied");
                snapshot.index.delete(object.namespace(), object.name());
            }
        }
    }
}

/// An ApiToken, or the error if it can't be parsed.
#[derive(Clone, Debug)]
struct Object {
    metadata: ObjectMeta,
    token: Result<WireToken, String>,
}

/// The part of an ApiToken that identifies it, for one that can't be parsed as a whole.
#[derive(Deserialize)]
struct Named {
    metadata: Metadata,
}

impl Object {
    fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for Object {
    /// Reads the text first and parses it then, so that one object that can't be parsed does not fail a whole list.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let token: Result<WireToken, _> = serde_json::from_str(text.get());
        let Metadata { namespace, name, resource_version, .. } = match &token {
            Ok(token) => token.metadata.clone(),
            Err(_) => serde_json::from_str::<Named>(text.get()).map_err(D::Error::custom)?.metadata,
        };
        let metadata = ObjectMeta {
            namespace: Some(namespace),
            name: Some(name),
            resource_version,
            ..Default::default()
        };
        Ok(Self { metadata, token: token.map_err(|error| error.to_string()) })
    }
}

impl Resource for Object {
    type DynamicType = ();
    type Scope = <ApiToken as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        ApiToken::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        ApiToken::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        ApiToken::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        ApiToken::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{ObjectList, WatchEvent};

    use super::*;

    const BAD: &str =
        r#"{"metadata":{"name":"bad","namespace":"ns"},"spec":{"scopes":["a:b"],"expiresAt":7}}"#;
    const GOOD: &str = r#"{"metadata":{"name":"good","namespace":"ns"},"spec":{"scopes":["a:b"]}}"#;

    #[test]
    fn one_malformed_object_does_not_fail_the_list() {
        let list = format!(r#"{{"metadata":{{"resourceVersion":"1"}},"items":[{BAD},{GOOD}]}}"#);
        let list: ObjectList<Object> = serde_json::from_str(&list).expect("a list");
        let seen: Vec<_> = list.items.iter().map(|object| (object.name(), object.token.is_ok())).collect();
        assert_eq!(seen, [("bad", false), ("good", true)]);
    }

    #[test]
    fn an_event_contains_an_object() {
        let event: WatchEvent<Object> =
            serde_json::from_str(&format!(r#"{{"type":"MODIFIED","object":{GOOD}}}"#)).expect("an event");
        assert!(
            matches!(event, WatchEvent::Modified(object) if object.namespace() == "ns" && object.token.is_ok())
        );
    }

    /// An object that is listed no more, or that can't be parsed any more, is removed; another namespace's is not.
    #[test]
    fn a_list_replaces_the_previous_one() {
        let snapshot = Snapshot::default();
        let object = |text: &str| serde_json::from_str::<Object>(text).expect("an object");
        let mut all = Listing { namespace: None, list: 0, listed: false };
        let list = |listing: &mut Listing, objects: &[&str]| {
            listing.take(Event::Init, &snapshot);
            for text in objects {
                listing.take(Event::InitApply(object(text)), &snapshot);
            }
            listing.take(Event::InitDone, &snapshot)
        };
        assert!(list(&mut all, &[GOOD, &GOOD.replace("good", "other")]), "the first full list");
        assert_eq!(snapshot.index.len(), 2);
        let mut elsewhere = Listing { namespace: Some("elsewhere".to_owned()), list: 6, listed: false };
        list(&mut elsewhere, &[]);
        assert_eq!(snapshot.index.len(), 2);
        assert!(!list(&mut all, &[GOOD]), "not the first list");
        assert_eq!(snapshot.index.len(), 1);
        all.take(Event::Apply(object(&BAD.replace("bad", "good"))), &snapshot);
        assert!(snapshot.index.is_empty());
    }
}
