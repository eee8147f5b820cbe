//! The events of a watch, with the gaps in them: a list, page by page, and what happens after it; or, where the state at some
//! resourceVersion is known, only what has happened since.
//!
//! kube's watcher does all of it but for three things that are needed here: it passes on no bookmarks, which say that nothing
//! has happened; it does not tell of which resourceVersion a list is; and it can't begin without a list.

use std::fmt::Debug;
use std::time::Duration;

use futures::channel::mpsc;
use futures::{SinkExt, Stream, StreamExt, future, stream};
use kube::api::{ListParams, WatchParams};
use kube::core::WatchEvent;
use kube::runtime::utils::Backoff;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use crate::heartbeat::Heartbeat;
use tokenward_runtime::backoff::WatchBackoff;
use tokenward_runtime::cluster::error::{ErrorClass, classify, message};
use tokenward_runtime::cluster::watch::PAGE_SIZE;

/// How long after something that could not be read everything is listed again: soon, as nobody knows what it said, but not
/// at once, since it may go on like that.
pub(super) const RELIST_AFTER: Duration = Duration::from_secs(10);
/// A watch is not taken for silent in less, whatever `--max-staleness` is.
const MIN_SILENCE: Duration = Duration::from_secs(1);
/// The API server sends a bookmark 2 s before a watch times out. So the shortest that has one tells the soonest how far it is.
const CATCH_UP_SECONDS: u32 = 3;
/// The API server's code for a resourceVersion from which it can't go on.
const GONE: u16 = 410;

/// What a watch brings.
#[derive(Debug)]
pub(super) enum Event<K> {
    /// A list begins. What it does not bring does not exist.
    ListBegins,
    /// An object of the list.
    Listed(K),
    /// The list was brought as a whole. It is of this resourceVersion.
    ListEnds(u64),
    /// What was known is up to date: everything was brought that has happened up to this resourceVersion, at which the API
    /// server was when it was asked.
    Resumed(u64),
    Applied(K),
    Deleted(K),
    /// Nothing else has happened up to this resourceVersion.
    Bookmark(u64),
    /// Something has happened that can't be attributed to an object.
    Gap,
}

/// From where a watch may go on without a list.
pub(super) struct Resume<K> {
    /// Everything up to this resourceVersion is known.
    pub known: u64,
    /// Objects of the kind in some namespace, of which one is asked for to learn how far the API server is.
    pub anywhere: Api<K>,
}

/// Follows a watch for as long as it is polled. `failure` says, in the log, what can't be watched and what goes on meanwhile.
pub(super) fn follow<K>(
    api: Api<K>,
    from: Option<Resume<K>>,
    failure: &'static str,
) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let (events, received) = mpsc::channel(0);
    let follower = Follower { api, events, backoff: WatchBackoff::default(), failure };
    // It never ends, and has no value.
    let run = stream::once(follower.run(from)).filter_map(|()| future::ready(None));
    stream::select(received, run)
}

/// The resourceVersion as a number; 0, which proves nothing, for what is none.
pub(super) fn position(resource_version: Option<&str>) -> u64 {
    resource_version.and_then(|text| text.parse().ok()).unwrap_or_default()
}

struct Follower<K> {
    api: Api<K>,
    events: mpsc::Sender<Event<K>>,
    backoff: WatchBackoff,
    failure: &'static str,
}

impl<K> Follower<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    async fn run(mut self, from: Option<Resume<K>>) {
        let known = match from {
            Some(resume) => self.resume(resume).await,
            None => None,
        };
        if let Some(resource_version) = known {
            self.watch(resource_version).await;
        }
        loop {
            match self.list().await {
                Ok(resource_version) => {
                    self.watch(resource_version).await;
                    self.pause().await;
                }
                Err(failure) => self.wait(&failure).await,
            }
        }
    }

    /// Lists all objects. Returns the resourceVersion from which to watch.
    async fn list(&mut self) -> Result<String, String> {
        self.send(Event::ListBegins).await;
        let mut page = ListParams::default().limit(PAGE_SIZE);
        loop {
            let objects = self.api.list(&page).await.map_err(|error| message(&error))?;
            for object in objects.items {
                self.send(Event::Listed(object)).await;
            }
            match objects.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(next) => page = page.continue_token(&next),
                None => {
                    let resource_version =
                        objects.metadata.resource_version.filter(|version| !version.is_empty());
                    let resource_version = resource_version.ok_or("the list has no resourceVersion")?;
                    self.send(Event::ListEnds(position(Some(&resource_version)))).await;
                    return Ok(resource_version);
                }
            }
        }
    }

    /// Watches, request after request, until the API server can't go on from where this has come.
    async fn watch(&mut self, mut resource_version: String) {
        loop {
            let mut events = match self.api.watch(&WatchParams::default(), &resource_version).await {
                Ok(events) => events.boxed(),
                Err(kube::Error::Api(status)) if status.code == GONE => return,
                Err(error) => {
                    self.wait(&message(&error)).await;
                    continue;
                }
            };
            let failure = loop {
                let event = match events.next().await {
                    Some(Ok(WatchEvent::Error(status))) if status.code == GONE => return,
                    Some(Ok(WatchEvent::Error(status))) => break Some(status.message),
                    Some(Ok(event)) => event,
                    // The watch goes on behind it.
                    Some(Err(error)) if is_unreadable(&error) => {
                        self.send(Event::Gap).await;
                        self.wait(&message(&error)).await;
                        continue;
                    }
                    Some(Err(error)) => break Some(message(&error)),
                    None => break None,
                };
                let Some(passed) = self.pass(event).await else { return };
                resource_version = passed;
                self.backoff.reset();
            };
            match failure {
                Some(failure) => self.wait(&failure).await,
                // As each does after some minutes; one that ends at once must not be begun again at once.
                None => self.pause().await,
            }
        }
    }

    /// Passes on an event. Returns its resourceVersion. `None`: it has none, so it is not passed on, and all is to be listed again.
    async fn pass(&mut self, event: WatchEvent<K>) -> Option<String> {
        let (resource_version, event) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                (object.resource_version(), Event::Applied(object))
            }
            WatchEvent::Deleted(object) => (object.resource_version(), Event::Deleted(object)),
            WatchEvent::Bookmark(bookmark) => {
                let resource_version = bookmark.metadata.resource_version;
                let at = position(Some(&resource_version));
                (Some(resource_version), Event::Bookmark(at))
            }
            WatchEvent::Error(_) => return None,
        };
        let resource_version = resource_version.filter(|version| !version.is_empty())?;
        self.send(event).await;
        Some(resource_version)
    }

    /// Brings what has happened since a resourceVersion. Returns from where to watch, once all is known that had happened when
    /// this began. `None`: it has to be listed.
    async fn resume(&mut self, Resume { known, anywhere }: Resume<K>) -> Option<String> {
        match self.catch_up(known, &anywhere).await {
            Ok(at) => {
                self.send(Event::Resumed(at)).await;
                Some(at.to_string())
            }
            Err(reason) => {
                info!(reason, "the API server can't go on from the checkpoint, so all is listed");
                None
            }
        }
    }

    async fn catch_up(&mut self, known: u64, anywhere: &Api<K>) -> Result<u64, String> {
        let now = loop {
            match latest(anywhere).await {
                Ok(now) => break now,
                // A list would fare no better.
                Err(error) if classify(&error) == ErrorClass::Retry => self.wait(&message(&error)).await,
                Err(error) => return Err(message(&error)),
            }
        };
        let mut at = known;
        // An earlier state of the cluster was restored, or it is another one. From 0 on, a watch begins anywhere.
        if now < at || at == 0 {
            return Err("it is not that far yet".to_owned());
        }
        while at < now {
            let begun = at;
            let params = WatchParams::default().timeout(CATCH_UP_SECONDS);
            let events = self.api.watch(&params, &at.to_string()).await;
            let mut events = events.map_err(|error| message(&error))?.boxed();
            while at < now {
                match events.next().await {
                    Some(Ok(WatchEvent::Error(status))) => return Err(status.message),
                    Some(Ok(event)) => {
                        at = position(self.pass(event).await.as_deref());
                        if at == 0 {
                            return Err("an event has no resourceVersion".to_owned());
                        }
                    }
                    Some(Err(error)) => return Err(message(&error)),
                    None => break,
                }
            }
            if at <= begun {
                return Err("it does not say how far it is".to_owned());
            }
        }
        Ok(at)
    }

    async fn send(&mut self, event: Event<K>) {
        // It fails only where nobody polls for events, and then this is not polled either.
        let _ = self.events.send(event).await;
    }

    async fn wait(&mut self, failure: &str) {
        warn!(error = failure, "{}", self.failure);
        self.pause().await;
    }

    async fn pause(&mut self) {
        sleep(self.backoff.next().unwrap_or_default()).await;
    }
}

/// Whether a line of a watch could not be read, so that nobody will ever hear what it said.
fn is_unreadable(error: &kube::Error) -> bool {
    // kube takes any JSON that is no event for the API server's error.
    matches!(error, kube::Error::SerdeError(_) | kube::Error::Api(_))
}

/// The resourceVersion of the latest state. A list without a resourceVersion is answered from the API server's cache once that has
/// come so far (<https://kubernetes.io/docs/reference/using-api/api-concepts/#semantics-for-get-and-list>), so watches from then
/// on bring it soon. It is of the one object of a name that none has.
async fn latest<K: Clone + Debug + DeserializeOwned>(anywhere: &Api<K>) -> Result<u64, kube::Error> {
    let list =
        anywhere.list_metadata(&ListParams::default().fields("metadata.name=none-of-this-name")).await?;
    Ok(position(list.metadata.resource_version.as_deref()))
}

/// Says when what some watches follow is to be listed again: after something that could not be read, and where one of them has
/// brought nothing for too long. A watch that goes on after an outage is silent until something changes or a bookmark is due,
/// which may take a minute.
pub(super) struct Relist {
    max_silence: Duration,
    /// Since when the watches run.
    begun: Instant,
    after_gap: Option<Instant>,
}

impl Relist {
    /// For watches that begin now.
    pub(super) fn new(max_staleness: Duration) -> Self {
        Self { max_silence: max_staleness.max(MIN_SILENCE), begun: Instant::now(), after_gap: None }
    }

    /// Notes that something could not be read.
    pub(super) fn has_gap(&mut self) {
        self.after_gap.get_or_insert_with(|| Instant::now() + RELIST_AFTER);
    }

    /// Returns once all is to be listed again. `is_listing`: a list is under way, which would never end if it were begun again
    /// for taking so long.
    pub(super) async fn due(&self, heartbeats: impl Iterator<Item = &Heartbeat> + Clone, is_listing: bool) {
        let gap = async {
            match self.after_gap {
                Some(at) => sleep_until(at).await,
                None => future::pending().await,
            }
        };
        let silence = async {
            if is_listing {
                future::pending::<()>().await;
            }
            loop {
                let oldest = Heartbeat::oldest(heartbeats.clone());
                let left = self.max_silence.saturating_sub(oldest.min(self.begun.elapsed()));
                if left.is_zero() {
                    return;
                }
                sleep(left).await;
            }
        };
        tokio::select! { () = gap => {}, () = silence => {} }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use http_body_util::StreamBody;
    use hyper::body::{Bytes, Frame};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Client;
    use kube::client::Body;
    use tower::service_fn;

    use super::*;

    /// In place of a last line: the watch goes on, and brings nothing more.
    const OPEN: &str = "open";
    const GONE_EVENT: &str = r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","code":410,"message":"too old","reason":"Expired"}}"#;
    const FAILED_EVENT: &str = r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","code":500,"message":"etcd","reason":"Internal"}}"#;

    fn event(kind: &str, name: &str, version: u64) -> String {
        format!(
            r#"{{"type":"{kind}","object":{{"metadata":{{"name":"{name}","resourceVersion":"{version}"}}}}}}"#
        )
    }

    fn bookmark(version: u64) -> String {
        format!(
            r#"{{"type":"BOOKMARK","object":{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{"resourceVersion":"{version}"}}}}}}"#
        )
    }

    /// An API server whose lists have one object and this resourceVersion, and whose watches, from a resourceVersion on, bring
    /// these lines one after the other, and end then but for those whose last line is `OPEN`. Those from elsewhere bring nothing.
    /// Returns what is asked for.
    fn api(latest: u64, watches: &[(u64, &[String])]) -> (Api<ConfigMap>, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let noted = asked.clone();
        let mut watches: Vec<(u64, String)> =
            watches.iter().map(|(from, lines)| (*from, lines.join("\n") + "\n")).collect();
        let answer = move |request: Request<Body>| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let field = |name: &str| {
                let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
            };
            let watched = (field("watch") == "true").then(|| position(Some(&field("resourceVersion"))));
            let what = match watched {
                Some(from) => format!("watch {from}"),
                None if field("fieldSelector").is_empty() => "list".to_owned(),
                None => "latest".to_owned(),
            };
            noted.lock().expect("a lock").push(what);
            let (body, stays_open) = match watched {
                Some(from) => {
                    let at = watches.iter().position(|(of, _)| *of == from);
                    let lines = at.map(|at| watches.remove(at).1).unwrap_or_else(|| OPEN.to_owned() + "\n");
                    let open = lines.strip_suffix("open\n").map(str::to_owned);
                    (open.clone().unwrap_or(lines), open.is_some())
                }
                None => {
                    let object = r#"{"metadata":{"name":"listed","resourceVersion":"3"}}"#;
                    let list =
                        format!(r#"{{"metadata":{{"resourceVersion":"{latest}"}},"items":[{object}]}}"#);
                    (list, false)
                }
            };
            let frame = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from(body)))]);
            let rest =
                if stays_open { stream::pending().left_stream() } else { stream::empty().right_stream() };
            let body = StreamBody::new(frame.chain(rest));
            future::ready(Ok::<_, Infallible>(Response::new(body)))
        };
        (Api::default_namespaced(Client::new(service_fn(answer), "default")), asked)
    }

    /// The events until none comes for a while.
    async fn events(api: Api<ConfigMap>, known: Option<u64>) -> Vec<String> {
        let from = known.map(|known| Resume { known, anywhere: api.clone() });
        let mut events = Box::pin(follow(api, from, "ConfigMaps can't be watched"));
        let mut seen = Vec::new();
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(30), events.next()).await {
            let name = |object: &ConfigMap| object.metadata.name.clone().unwrap_or_default();
            seen.push(match &event {
                Event::Listed(object) => format!("Listed({})", name(object)),
                Event::Applied(object) => format!("Applied({})", name(object)),
                Event::Deleted(object) => format!("Deleted({})", name(object)),
                other => format!("{other:?}"),
            });
        }
        seen
    }

    fn asked(of: &Mutex<Vec<String>>) -> Vec<String> {
        of.lock().expect("a lock").clone()
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_is_followed_by_what_happens_after_it() {
        let first = [event("ADDED", "a", 10), bookmark(12)];
        let second = ["{}".to_owned(), event("DELETED", "a", 13), FAILED_EVENT.to_owned()];
        let third = [GONE_EVENT.to_owned()];
        let (api, requests) = api(9, &[(9, &first), (12, &second), (13, &third)]);
        let expected = [
            "ListBegins",
            "Listed(listed)",
            "ListEnds(9)",
            "Applied(a)",
            "Bookmark(12)",
            "Gap",
            "Deleted(a)",
            "ListBegins",
            "Listed(listed)",
            "ListEnds(9)",
        ];
        assert_eq!(events(api, None).await, expected);
        let expected = ["list", "watch 9", "watch 12", "watch 13", "list", "watch 9"];
        assert_eq!(asked(&requests), expected, "each goes on where the last one was");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_is_brought_up_to_date() {
        let missed = [event("MODIFIED", "a", 7), event("DELETED", "b", 8), bookmark(9), OPEN.to_owned()];
        let (up_to_date, requests) = api(9, &[(5, &missed)]);
        let expected = ["Applied(a)", "Deleted(b)", "Bookmark(9)", "Resumed(9)"];
        assert_eq!(events(up_to_date, Some(5)).await, expected);
        assert_eq!(asked(&requests), ["latest", "watch 5", "watch 9"]);
        // Nothing at all has happened, or a watch after the other brings it.
        let (nothing, requests) = api(9, &[]);
        assert_eq!(events(nothing, Some(9)).await, ["Resumed(9)"]);
        assert_eq!(asked(&requests), ["latest", "watch 9"]);
        let (slowly, requests) = api(9, &[(5, &[bookmark(6)]), (6, &[event("ADDED", "a", 11)])]);
        assert_eq!(events(slowly, Some(5)).await, ["Bookmark(6)", "Applied(a)", "Resumed(11)"]);
        assert_eq!(asked(&requests), ["latest", "watch 5", "watch 6", "watch 11"]);
    }

    /// Until then nothing is answered, so whatever is not certain is listed.
    #[tokio::test(start_paused = true)]
    async fn what_can_not_be_brought_up_to_date_is_listed() {
        let behind = [bookmark(5)];
        let no_version = [r#"{"type":"ADDED","object":{"metadata":{"name":"a"}}}"#.to_owned(), bookmark(9)];
        for (known, first) in [
            (5, &[GONE_EVENT.to_owned()][..]),
            (5, &[FAILED_EVENT.to_owned()]),
            (5, &["<html>".to_owned()]),
            (5, &behind),
            (5, &no_version),
            (5, &[]),
            (0, &[bookmark(9)]),
            // An earlier state was restored, or it is another cluster.
            (10, &[bookmark(11)]),
        ] {
            let (api, requests) = api(9, &[(known, first)]);
            let events = events(api, Some(known)).await;
            let listed = ["ListBegins", "Listed(listed)", "ListEnds(9)"];
            assert!(events.ends_with(&listed.map(str::to_owned)), "{events:?}");
            assert!(!events.iter().any(|event| event.starts_with("Resumed")), "{events:?}");
            assert!(asked(&requests).ends_with(&["list".to_owned(), "watch 9".to_owned()]));
        }
    }
}
