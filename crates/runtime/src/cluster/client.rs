//! The connection to the cluster, configured as kubectl's is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{self, Poll};
use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame};
use kube::client::{Body, ClientBuilder, DynBody};
use kube::core::WatchEvent;
use kube::{Client, Config};
use serde::de::IgnoredAny;
use tokio::time::Instant;
use tower::Service;
use tower::layer::layer_fn;

/// A watch may be silent up to its own timeout of some minutes. Other responses take seconds.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
/// The API server sends a bookmark to every watch at least once a minute. If nothing arrives for longer, the connection is
/// dead.
const BOOKMARK_TIMEOUT: Duration = Duration::from_secs(90);
/// No bookmark is longer: it has a kind and the little metadata that belongs to no object. Longer lines are not kept.
const MAX_BOOKMARK: usize = 16 << 10;

/// The cluster's address and this process's credentials.
pub struct Cluster {
    config: Config,
}

impl Cluster {
    /// Finds them by `KUBECONFIG`, `~/.kube/config` or the in-cluster account. The user agent names the role, so that
    /// an audit log distinguishes the processes.
    pub async fn find(role: &str) -> anyhow::Result<Self> {
        let mut config = Config::infer().await.context(
            "no Kubernetes cluster is configured: set KUBECONFIG, or run in a pod with a service account",
        )?;
        config.read_timeout = Some(READ_TIMEOUT);
        config.connect_timeout = Some(Duration::from_secs(5));
        let agent = format!("tokenward/{} ({role})", env!("CARGO_PKG_VERSION"));
        config.headers.push((http::header::USER_AGENT, agent.parse().context("user agent")?));
        Ok(Self { config })
    }

    /// The namespace of the kubeconfig or the service account.
    pub fn default_namespace(&self) -> &str {
        &self.config.default_namespace
    }

    /// A client for all requests but those of [`Self::watch_client`].
    pub fn client(&self) -> anyhow::Result<Client> {
        Client::try_from(self.config.clone()).context("the Kubernetes client can't be made")
    }

    /// A client for one watch, and the heartbeat by which to notice that the watch brings nothing any more.
    ///
    /// Bookmarks are heartbeats, which say that nothing has changed. kube's watcher does not pass them on, so they are
    /// found in the response. Nothing else in it counts by itself: bytes may be of an event that nobody can read, or of a
    /// list that never ends. Whoever takes in an event or a whole list says so by [`WatchHeartbeat::beat`].
    pub fn watch_client(&self) -> anyhow::Result<(Client, WatchHeartbeat)> {
        let heartbeat = WatchHeartbeat::default();
        let source = heartbeat.clone();
        let mut config = self.config.clone();
        config.read_timeout = Some(BOOKMARK_TIMEOUT);
        let layer = layer_fn(move |service| Monitored { service, heartbeat: source.clone() });
        let builder = ClientBuilder::try_from(config).context("the Kubernetes client can't be made")?;
        Ok((builder.with_layer(&layer).build(), heartbeat))
    }
}

/// A service that notes each bookmark in the response to a watch.
struct Monitored<S> {
    service: S,
    heartbeat: WatchHeartbeat,
}

impl<S> Service<Request<Body>> for Monitored<S>
where
    S: Service<Request<Body>, Response = Response<Box<DynBody>>>,
    S::Future: Send + 'static,
{
    type Response = Response<Box<DynBody>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let query = request.uri().query().unwrap_or_default();
        let is_watch =
            form_urlencoded::parse(query.as_bytes()).any(|(key, value)| key == "watch" && value == "true");
        let heartbeat = self.heartbeat.clone();
        let response = self.service.call(request);
        async move {
            let response = response.await?;
            if !is_watch || !response.status().is_success() {
                return Ok(response);
            }
            Ok(response.map(|body| {
                let mut lines = Lines::default();
                let noted = body.map_frame(move |frame: Frame<Bytes>| {
                    if frame.data_ref().is_some_and(|bytes| lines.end_a_bookmark(bytes)) {
                        heartbeat.beat();
                    }
                    frame
                });
                Box::new(noted) as Box<DynBody>
            }))
        }
        .boxed()
    }
}

/// The response to a watch, which has an event in each line, and comes in frames that end anywhere.
#[derive(Default)]
struct Lines {
    /// The line that has not ended yet, as long as it may be a bookmark.
    line: Vec<u8>,
    /// Whether it is too long for one.
    is_long: bool,
}

impl Lines {
    /// Whether a bookmark ends in this frame.
    fn end_a_bookmark(&mut self, frame: &[u8]) -> bool {
        let mut found = false;
        for part in frame.split_inclusive(|byte| *byte == b'\n') {
            self.is_long |= self.line.len() + part.len() > MAX_BOOKMARK;
            if !self.is_long {
                self.line.extend_from_slice(part);
            }
            if part.ends_with(b"\n") {
                found |= !self.is_long && is_bookmark(&self.line);
                *self = Self::default();
            }
        }
        found
    }
}

fn is_bookmark(line: &[u8]) -> bool {
    matches!(serde_json::from_slice::<WatchEvent<IgnoredAny>>(line), Ok(WatchEvent::Bookmark(_)))
}

/// When a watch last brought something that was understood, be it a bookmark.
#[derive(Clone, Debug)]
pub struct WatchHeartbeat {
    start: Instant,
    /// In milliseconds since the start.
    last: Arc<AtomicU64>,
}

impl Default for WatchHeartbeat {
    fn default() -> Self {
        Self { start: Instant::now(), last: Arc::default() }
    }
}

impl WatchHeartbeat {
    /// Notes that something was received and taken in.
    pub fn beat(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// The time since the last heartbeat, or since this was made if there was none.
    pub fn age(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }

    /// The age of the oldest of these; zero if there is none.
    pub fn oldest<'h>(heartbeats: impl IntoIterator<Item = &'h Self>) -> Duration {
        heartbeats.into_iter().map(Self::age).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tower::{BoxError, service_fn};

    use super::*;

    const BOOKMARK: &str = r#"{"type":"BOOKMARK","object":{"kind":"ApiToken","apiVersion":"tokenward.dev/v1alpha1","metadata":{"resourceVersion":"7","creationTimestamp":null}}}"#;

    /// Whether the response to a request is a heartbeat.
    async fn beats(query: &'static str, status: u16, body: String) -> bool {
        let heartbeat = WatchHeartbeat::default();
        let service = service_fn(move |_: Request<Body>| {
            let body = Box::new(Full::from(body.clone()).map_err(BoxError::from)) as Box<DynBody>;
            let response = Response::builder().status(status).body(body);
            async move { response.map_err(|error| -> BoxError { error.into() }) }
        });
        let mut monitored = Monitored { service, heartbeat: heartbeat.clone() };
        let request = Request::get(format!("/apis/tokenward.dev/v1alpha1/apitokens{query}"));
        let request = request.body(Body::empty()).expect("a request");
        let response = monitored.call(request).await.expect("a response");
        std::thread::sleep(Duration::from_millis(2));
        response.into_body().collect().await.expect("a body");
        heartbeat.last.load(Ordering::Relaxed) > 0
    }

    /// A list that never ends must not pass for news.
    #[tokio::test]
    async fn only_what_a_watch_brings_is_a_heartbeat() {
        for (query, status, expected) in [
            ("?watch=true&allowWatchBookmarks=true", 200, true),
            ("?limit=50", 200, false),
            ("?labelSelector=watch%3Dtrue&limit=50", 200, false),
            ("", 200, false),
            ("?watch=true", 410, false),
        ] {
            assert_eq!(beats(query, status, format!("{BOOKMARK}\n")).await, expected, "{query} {status}");
        }
    }

    /// Nor must what nobody can read.
    #[tokio::test]
    async fn only_a_bookmark_is_a_heartbeat_by_itself() {
        let event = r#"{"type":"MODIFIED","object":{"metadata":{"name":"BOOKMARK","resourceVersion":"7"}}}"#;
        let padding = "x".repeat(MAX_BOOKMARK);
        for (body, expected) in [
            (format!("{event}\n{BOOKMARK}\n{event}\n"), true),
            (format!("{padding}\n{BOOKMARK}\n"), true),
            (BOOKMARK.to_owned(), false),
            (format!("{padding}{BOOKMARK}\n"), false),
            (format!("{event}\n"), false),
            (BOOKMARK.replace("metadata", "metadatum") + "\n", false),
            (r#"{"type":"ERROR","object":{"kind":"Status","code":500}}"#.to_owned() + "\n", false),
            ("<html>BOOKMARK</html>\n".to_owned(), false),
            ("\n\n\n".to_owned(), false),
            (String::new(), false),
        ] {
            let seen = beats("?watch=true", 200, body.clone()).await;
            assert_eq!(seen, expected, "{}", &body[body.len().saturating_sub(200)..]);
        }
    }

    #[test]
    fn a_bookmark_is_found_wherever_frames_end() {
        let body = format!("{{}}\n{BOOKMARK}\n{{}}\n");
        for at in 0..=body.len() {
            let mut lines = Lines::default();
            let (first, second) = body.as_bytes().split_at(at);
            assert_ne!(lines.end_a_bookmark(first), lines.end_a_bookmark(second), "{at}");
        }
    }
}
