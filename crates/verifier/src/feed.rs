//! The feed: a watch of ApiTokens, applied to the index event by event. No whole object is stored.
//!
//! An object that can't be parsed loses its entry: an outdated decision about a token is worse than a denial. Others are
//! not concerned, unless none can be parsed at all: then nothing is known, as before the first list. An event that does not
//! even name its object may have been a revocation, so all are listed again. Lists are read page by page, so never are all
//! objects in memory at once.

use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use kube::api::ObjectMeta;
use kube::{Api, Client, Resource};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::checkpoint::{Checkpoint, Opened};
use crate::events::{self, Event, Relist, Resume, position};
use crate::heartbeat::Heartbeat;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::watermark::Mark;
use tokenward_core::check::{Metadata, WireToken};
use tokenward_core::crd::ApiToken;
use tokenward_core::token::Peppers;
use tokenward_runtime::cluster::pepper::PepperState;
use tokenward_runtime::telemetry::probes::Part;

/// Of a list, how many objects that can't be read are named in the log.
const NAMED_UNREADABLE: u32 = 20;

/// How many events are kept while a checkpoint is restored. Those beyond are read then.
const MAX_WAITING: usize = 1000;

/// The source of one watch.
pub(super) struct Source {
    /// `None`: all namespaces.
    pub namespace: Option<String>,
    pub client: Client,
    /// To which an event that is taken in is news, and the end of a list.
    pub heartbeat: Heartbeat,
    pub mark: Mark,
}

/// Feeds the snapshot for as long as it is polled, once there is a pepper: without one, no version is authentic. Goes on from the
/// checkpoint, if there is one that can be used. Sets `ready` once every source has been listed, or brought up to date. Lists
/// again what has brought nothing for `max_staleness`.
pub(super) async fn feed(
    sources: Vec<Source>,
    checkpoint: Option<Checkpoint>,
    snapshot: Arc<Snapshot>,
    mut pepper_state: watch::Receiver<PepperState>,
    max_staleness: Duration,
    ready: Part,
    metrics: Metrics,
) {
    let mut listings: Vec<_> =
        sources.iter().map(|source| Listing::new(source.namespace.clone(), source.mark.clone())).collect();
    let Some(mut peppers) = next_peppers(&mut pepper_state).await else { return };
    let mut opened = match checkpoint {
        Some(checkpoint) => checkpoint.open(snapshot.clone(), peppers.clone()).await,
        None => None,
    };
    loop {
        // What is restored may lack a version whose pepper was not there.
        let mut lacks_pepper = opened.is_some();
        let known = opened.as_ref().map(Opened::positions).unwrap_or_default();
        for listing in &listings {
            listing.mark.list_begins();
        }
        snapshot.index_peppers.store(Some(peppers.clone()));
        let mut events = stream::select_all(
            sources.iter().enumerate().map(|(at, source)| events(source, known.get(at).copied(), at)),
        );
        // What has happened since comes after what is restored.
        let mut waiting = Vec::new();
        if let Some(opened) = opened.take() {
            let mut restored = pin!(opened.restore());
            let is_restored = loop {
                tokio::select! {
                    is_restored = &mut restored => break is_restored,
                    Some(event) = events.next(), if waiting.len() < MAX_WAITING => waiting.push(event),
                }
            };
            if !is_restored {
                continue;
            }
        }
        let mut events = stream::iter(waiting).chain(events);
        let mut relist = Relist::new(max_staleness);
        loop {
            let heartbeats = sources.iter().map(|source| &source.heartbeat);
            let is_listing = listings.iter().any(|listing| listing.mark.is_listing());
            tokio::select! {
                event = events.next() => {
                    let Some((at, event)) = event else { return };
                    let is_gap = matches!(event, Event::Gap);
                    let is_end_of_list = matches!(event, Event::ListEnds(_));
                    let taken = listings[at].take(event, &snapshot, &peppers);
                    lacks_pepper |= taken.lacks_pepper;
                    if taken.is_news {
                        sources[at].heartbeat.beat();
                    } else if is_end_of_list || is_gap {
                        relist.has_gap();
                    }
                    let listed = listings.iter().all(|listing| listing.listed);
                    if snapshot.are_tokens_listed() != listed {
                        snapshot.set_tokens_listed(listed);
                        ready.set(listed);
                    }
                    metrics.tokens.set(i64::try_from(snapshot.index.len()).unwrap_or(i64::MAX));
                }
                next = next_peppers(&mut pepper_state) => {
                    let Some(next) = next else { return };
                    let is_another = next.ids().any(|id| !peppers.contains(&id));
                    peppers = next;
                    if lacks_pepper && is_another {
                        info!("there is another pepper, which some tokens may need; listing ApiTokens again");
                        break;
                    }
                    snapshot.index_peppers.store(Some(peppers.clone()));
                }
                () = relist.due(heartbeats, is_listing) => break,
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

/// The events of a source, each with the source's position. `known`: of which resourceVersion its tokens are known already.
fn events(
    Source { namespace, client, .. }: &Source,
    known: Option<u64>,
    at: usize,
) -> BoxStream<'static, (usize, Event<Object>)> {
    let api: Api<Object> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let anywhere = match namespace {
        Some(_) => api.clone(),
        None => Api::default_namespaced(client.clone()),
    };
    let from = known.map(|known| Resume { known, anywhere });
    events::follow(api, from, "ApiTokens can't be watched; checks go on from memory")
        .map(move |event| (at, event))
        .boxed()
}

/// The lists of one watch.
struct Listing {
    /// `None`: all namespaces.
    namespace: Option<String>,
    /// The number of lists that were begun. At the end of one, an entry with an older number was not in it.
    list: u32,
    /// The number of objects in the last list that could not be parsed.
    unreadable: u32,
    /// Whether the last list that ended was understood.
    listed: bool,
    mark: Mark,
}

/// What came of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Taken {
    /// Whether it says that the snapshot is up to date: a readable event, or the end of a list that was understood.
    is_news: bool,
    /// Whether a version was left out because its pepper is not among those in use.
    lacks_pepper: bool,
}

impl Listing {
    fn new(namespace: Option<String>, mark: Mark) -> Self {
        Self { namespace, list: 0, unreadable: 0, listed: false, mark }
    }

    /// Applies an event to the index.
    fn take(&mut self, event: Event<Object>, snapshot: &Snapshot, peppers: &Peppers) -> Taken {
        match event {
            Event::ListBegins => {
                self.list = self.list.wrapping_add(1);
                self.mark.list_begins();
                self.unreadable = 0;
                Taken::default()
            }
            Event::Listed(object) => {
                self.unreadable += u32::from(object.token.is_err());
                let log = self.unreadable <= NAMED_UNREADABLE;
                let taken = self.apply(&object, snapshot, peppers, log);
                // Part of a list that may never end.
                Taken { is_news: false, ..taken }
            }
            Event::ListEnds(at) => {
                let within = |namespace: &str| self.namespace.as_deref().is_none_or(|own| own == namespace);
                snapshot.index.retain(|entry| !within(entry.namespace()) || entry.seen_in() == self.list);
                self.end(snapshot.index.len());
                self.mark.list_ends(at);
                Taken { is_news: self.listed, lacks_pepper: false }
            }
            Event::Resumed(at) => {
                self.listed = true;
                info!(tokens = snapshot.index.len(), "what has happened since the checkpoint is known");
                self.mark.list_ends(at);
                Taken { is_news: true, lacks_pepper: false }
            }
            Event::Applied(object) => {
                let taken = self.apply(&object, snapshot, peppers, true);
                self.mark.applied(position(object.metadata.resource_version.as_deref()));
                taken
            }
            Event::Deleted(object) => {
                snapshot.index.delete(object.namespace(), object.name());
                self.mark.applied(position(object.metadata.resource_version.as_deref()));
                Taken { is_news: true, lacks_pepper: false }
            }
            Event::Bookmark(at) => {
                self.mark.applied(at);
                Taken { is_news: true, lacks_pepper: false }
            }
            Event::Gap => {
                self.mark.has_gap();
                Taken::default()
            }
        }
    }

    /// Notes the end of a list, after which so many tokens are known.
    fn end(&mut self, tokens: usize) {
        let unreadable = self.unreadable;
        self.listed = tokens > 0 || unreadable == 0;
        if self.listed {
            info!(tokens, unreadable, "listed ApiTokens");
        } else {
            error!(
                unreadable,
                "not ready: of all ApiTokens not one can be read; install the verifier and the CRDs of one version"
            );
        }
    }

    fn apply(&self, object: &Object, snapshot: &Snapshot, peppers: &Peppers, log: bool) -> Taken {
        match &object.token {
            Ok(token) => {
                Taken { is_news: true, lacks_pepper: snapshot.index.apply(token, peppers, self.list) }
            }
            Err(error) => {
                if log {
                    let token = format!("{}/{}", object.namespace(), object.name());
                    warn!(token, error, "an ApiToken can't be read, so its token is denied");
                }
                snapshot.index.delete(object.namespace(), object.name());
                Taken::default()
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
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::future;
    use http::{Request, Response};
    use kube::client::Body;
    use kube::core::{ObjectList, WatchEvent};
    use tokenward_runtime::telemetry::probes::Readiness;
    use tower::service_fn;

    use super::*;
    use crate::events::RELIST_AFTER;

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
            listing.take(Event::ListBegins, &snapshot, &peppers);
            for text in objects {
                listing.take(Event::Listed(object(text)), &snapshot, &peppers);
            }
            listing.take(Event::ListEnds(1), &snapshot, &peppers);
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
        all.take(Event::Applied(object(&BAD.replace("bad", "good"))), &snapshot, &peppers);
        assert!(snapshot.index.is_empty());
    }

    fn object(text: &str) -> Object {
        serde_json::from_str(text).expect("an object")
    }

    /// What can't be read is denied, but it says nothing of how fresh the rest is; and where nothing can be read, nothing
    /// is known.
    #[test]
    fn only_what_can_be_read_is_news() {
        let snapshot = Snapshot::default();
        let peppers = Peppers::from_data(&Peppers::new_data(&[1; 32])).expect("peppers");
        let mut listing = Listing::new(None, Mark::default());
        let mut news = |event| {
            let taken = listing.take(event, &snapshot, &peppers).is_news;
            (taken, listing.listed)
        };
        assert_eq!(news(Event::ListBegins), (false, false));
        assert_eq!(news(Event::Listed(object(BAD))), (false, false));
        assert_eq!(news(Event::ListEnds(1)), (false, false), "no object of the list can be read");
        assert_eq!(news(Event::ListBegins), (false, false));
        assert_eq!(news(Event::Listed(object(BAD))), (false, false));
        assert_eq!(news(Event::Listed(object(GOOD))), (false, false));
        assert_eq!(news(Event::ListEnds(1)), (true, true), "one object does not make others unknown");
        assert_eq!(news(Event::Applied(object(BAD))), (false, true));
        assert_eq!(news(Event::Applied(object(GOOD))), (true, true));
        assert_eq!(news(Event::Deleted(object(BAD))), (true, true), "its name is enough");
        assert_eq!(news(Event::Bookmark(9)), (true, true));
        assert_eq!(news(Event::Gap), (false, true));
        news(Event::ListBegins);
        assert_eq!(news(Event::ListEnds(1)), (true, true), "there need not be any");
        assert!(snapshot.index.is_empty());
    }

    fn is_watch(request: &Request<Body>) -> bool {
        request.uri().query().unwrap_or_default().contains("watch=true")
    }

    fn empty_list() -> Response<Body> {
        Response::new(Body::from(br#"{"metadata":{"resourceVersion":"1"},"items":[]}"#.to_vec()))
    }

    /// An API server with a token in its first list only, and then an event that nobody can read, and a bookmark behind it.
    fn garbled(lists: Arc<AtomicU32>) -> Client {
        let answer = move |request: Request<Body>| {
            let is_watch = is_watch(&request);
            let body = if is_watch {
                let events = "{\"type\":\"MODIFIED\",\"object\":{\"kind\":\"ApiToken\"}}\n\
                    {\"type\":\"BOOKMARK\",\"object\":{\"kind\":\"ApiToken\",\"apiVersion\":\"tokenward.dev/v1alpha1\",\
                     \"metadata\":{\"resourceVersion\":\"9\"}}}\n";
                events.to_owned()
            } else {
                let items = if lists.fetch_add(1, Ordering::Relaxed) == 0 { GOOD } else { "" };
                format!(r#"{{"metadata":{{"resourceVersion":"1"}},"items":[{items}]}}"#)
            };
            future::ready(Ok::<_, Infallible>(Response::new(Body::from(body.into_bytes()))))
        };
        Client::new(service_fn(answer), "default")
    }

    /// Feeds a snapshot from an API server until `check` holds, or panics.
    async fn feeds(
        client: Client,
        max_staleness: Duration,
        snapshot: Arc<Snapshot>,
        check: impl Fn() -> bool,
    ) {
        let peppers = Peppers::from_data(&Peppers::new_data(&[1; 32])).expect("peppers");
        let (_sender, mut peppers) = watch::channel(PepperState::Present(Arc::new(peppers)));
        peppers.mark_changed();
        let heartbeat = Heartbeat::default();
        let source = Source { namespace: None, client, heartbeat, mark: Mark::default() };
        let ready = Readiness::default().part("list");
        let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
        let checked = async {
            while !check() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = feed(vec![source], None, snapshot, peppers, max_staleness, ready, metrics) => panic!("the feed has ended"),
            checked = tokio::time::timeout(RELIST_AFTER * 10, checked) => checked.expect("in time"),
        }
    }

    /// The event may have been a revocation, which the watch would never repeat.
    #[tokio::test(start_paused = true)]
    async fn after_an_event_that_no_one_can_read_all_are_listed_again() {
        let (lists, snapshot) = (Arc::<AtomicU32>::default(), Arc::new(Snapshot::default()));
        feeds(garbled(lists.clone()), RELIST_AFTER * 100, snapshot.clone(), || {
            lists.load(Ordering::Relaxed) > 1 && snapshot.are_tokens_listed() && snapshot.index.is_empty()
        })
        .await;
    }

    /// A watch that goes on after an outage may say nothing for a minute. It is listed again each time, however long another was
    /// silent meanwhile.
    #[tokio::test(start_paused = true)]
    async fn what_is_silent_is_listed_again() {
        let lists = Arc::<AtomicU32>::default();
        let listed = lists.clone();
        let silent = move |request: Request<Body>| {
            let is_watch = is_watch(&request);
            let listed = listed.clone();
            async move {
                if is_watch {
                    future::pending::<()>().await;
                }
                listed.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Infallible>(empty_list())
            }
        };
        let client = Client::new(service_fn(silent), "default");
        let begun = tokio::time::Instant::now();
        feeds(client, RELIST_AFTER, Arc::default(), || lists.load(Ordering::Relaxed) > 5).await;
        assert!(begun.elapsed() >= RELIST_AFTER * 5, "not before it has been silent for so long");
    }

    /// One that begins again and again would never end.
    #[tokio::test(start_paused = true)]
    async fn a_list_that_takes_long_is_not_begun_again() {
        let (lists, snapshot) = (Arc::<AtomicU32>::default(), Arc::new(Snapshot::default()));
        let begun = lists.clone();
        let slow = move |request: Request<Body>| {
            let is_watch = is_watch(&request);
            begun.fetch_add(u32::from(!is_watch), Ordering::Relaxed);
            async move {
                tokio::time::sleep(RELIST_AFTER * 5).await;
                Ok::<_, Infallible>(empty_list())
            }
        };
        let client = Client::new(service_fn(slow), "default");
        feeds(client, RELIST_AFTER, snapshot.clone(), || snapshot.are_tokens_listed()).await;
        assert_eq!(lists.load(Ordering::Relaxed), 1);
    }
}
