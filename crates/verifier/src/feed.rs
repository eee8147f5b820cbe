//! The feed: a watch of ApiTokens, applied to the index event by event. No whole object is stored.
//!
//! An object that can't be parsed loses its entry: an outdated decision about a token is worse than a denial. Lists are
//! read page by page, so never are all objects in memory at once.

use std::borrow::Cow;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, future, stream};
use kube::api::ObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::watermark::Mark;
use tokenward_core::check::{Metadata, WireToken};
use tokenward_core::crd::ApiToken;
use tokenward_core::token::Peppers;
use tokenward_runtime::backoff::WatchBackoff;
use tokenward_runtime::cluster::client::WatchHeartbeat;
use tokenward_runtime::cluster::error::watch_message;
use tokenward_runtime::cluster::pepper::PepperState;
use tokenward_runtime::cluster::watch::in_pages;
use tokenward_runtime::telemetry::probes::Part;

/// The source of one watch.
pub(super) struct Source {
    /// `None`: all namespaces.
    pub namespace: Option<String>,
    pub client: Client,
    /// That of the client, to which the end of a list is news.
    pub heartbeat: WatchHeartbeat,
    pub mark: Mark,
}

/// Feeds the snapshot for as long as it is polled, once there is a pepper: without one, no version is authentic. Sets
/// `ready` after the first full list of every source.
pub(super) async fn feed(
    sources: Vec<Source>,
    snapshot: Arc<Snapshot>,
    mut pepper_state: watch::Receiver<PepperState>,
    ready: Part,
    metrics: Metrics,
) {
    let mut listings: Vec<_> =
        sources.iter().map(|source| Listing::new(source.namespace.clone(), source.mark.clone())).collect();
    let Some(mut peppers) = next_peppers(&mut pepper_state).await else { return };
    loop {
        let mut events =
            stream::select_all(sources.iter().enumerate().map(|(at, source)| events(source, at)));
        let mut lacks_pepper = false;
        loop {
            tokio::select! {
                event = events.next() => {
                    let Some((at, event)) = event else { return };
                    if matches!(event, Event::InitDone) {
                        sources[at].heartbeat.beat();
                    }
                    lacks_pepper |= listings[at].take(event, &snapshot, &peppers);
                    if !snapshot.are_tokens_listed() && listings.iter().all(|listing| listing.listed) {
                        snapshot.set_tokens_listed();
                        ready.set(true);
                    }
                    metrics.tokens.set(i64::try_from(snapshot.index.len()).unwrap_or(i64::MAX));
                }
                next = next_peppers(&mut pepper_state) => {
                    let Some(next) = next else { return };
                    peppers = next;
                    if lacks_pepper {
                        info!("there is another pepper, which some tokens may need; listing ApiTokens again");
                        break;
                    }
                }
            }
        }
    }
}

/// The next usable peppers. `None`: nobody follows them any more.
async fn next_peppers(state: &mut watch::Receiver<PepperState>) -> Option<Arc<Peppers>> {
    loop {
        state.changed().await.ok()?;
        if let PepperState::Present(peppers) = &*state.borrow_and_update() {
            return Some(peppers.clone());
        }
    }
}

/// The events of a source, each with the source's position.
fn events(
    Source { namespace, client, .. }: &Source,
    at: usize,
) -> BoxStream<'static, (usize, Event<Object>)> {
    let api: Api<Object> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    watcher(api, in_pages())
        .inspect_err(|error| {
            warn!(error = watch_message(error), "ApiTokens can't be watched; checks go on from memory")
        })
        .backoff(WatchBackoff::default())
        .filter_map(move |result| future::ready(result.ok().map(|event| (at, event))))
        .boxed()
}

/// The lists of one watch.
struct Listing {
    /// `None`: all namespaces.
    namespace: Option<String>,
    /// The number of lists that were begun. At the end of one, an entry with an older number was not in it.
    list: u32,
    /// Whether the first list is complete.
    listed: bool,
    mark: Mark,
}

impl Listing {
    fn new(namespace: Option<String>, mark: Mark) -> Self {
        Self { namespace, list: 0, listed: false, mark }
    }

    /// Applies an event to the index. Returns whether a version was left out because its pepper is not among these.
    fn take(&mut self, event: Event<Object>, snapshot: &Snapshot, peppers: &Peppers) -> bool {
        match event {
            Event::Init => {
                self.list = self.list.wrapping_add(1);
                self.mark.list_begins();
            }
            Event::InitApply(object) => {
                let lacks_pepper = self.apply(&object, snapshot, peppers);
                self.mark.listed(object.metadata.resource_version.as_deref());
                return lacks_pepper;
            }
            Event::Apply(object) => {
                let lacks_pepper = self.apply(&object, snapshot, peppers);
                self.mark.applied(object.metadata.resource_version.as_deref());
                return lacks_pepper;
            }
            Event::Delete(object) => {
                snapshot.index.delete(object.namespace(), object.name());
                self.mark.applied(object.metadata.resource_version.as_deref());
            }
            Event::InitDone => {
                let within = |namespace: &str| self.namespace.as_deref().is_none_or(|own| own == namespace);
                snapshot.index.retain(|entry| !within(entry.namespace()) || entry.seen_in() == self.list);
                info!(tokens = snapshot.index.len(), "listed ApiTokens");
                self.mark.list_ends();
                self.listed = true;
            }
        }
        false
    }

    fn apply(&self, object: &Object, snapshot: &Snapshot, peppers: &Peppers) -> bool {
        match &object.token {
            Ok(token) => snapshot.index.apply(token, peppers, self.list),
            Err(error) => {
                let token = format!("{}/{}", object.namespace(), object.name());
                warn!(token, error, "an ApiToken can't be read, so its token is denied");
                snapshot.index.delete(object.namespace(), object.name());
                false
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
        let peppers = Peppers::from_data(&Peppers::new_data(&[1; 32])).expect("peppers");
        let object = |text: &str| serde_json::from_str::<Object>(text).expect("an object");
        let mut all = Listing::new(None, Mark::default());
        let list = |listing: &mut Listing, objects: &[&str]| {
            listing.take(Event::Init, &snapshot, &peppers);
            for text in objects {
                listing.take(Event::InitApply(object(text)), &snapshot, &peppers);
            }
            listing.take(Event::InitDone, &snapshot, &peppers);
        };
        list(&mut all, &[GOOD, &GOOD.replace("good", "other")]);
        assert!(all.listed);
        assert_eq!(snapshot.index.len(), 2);
        let mut elsewhere =
            Listing { list: 6, ..Listing::new(Some("elsewhere".to_owned()), Mark::default()) };
        list(&mut elsewhere, &[]);
        assert_eq!(snapshot.index.len(), 2);
        list(&mut all, &[GOOD]);
        assert_eq!(snapshot.index.len(), 1);
        all.take(Event::Apply(object(&BAD.replace("bad", "good"))), &snapshot, &peppers);
        assert!(snapshot.index.is_empty());
    }
}
