//! The connection to the cluster, configured as kubectl's is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame};
use kube::client::{Body, ClientBuilder, DynBody};
use kube::{Client, Config};
use tower::Service;
use tower::layer::layer_fn;

/// A watch may be silent up to its own timeout of some minutes. Other responses take seconds.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
/// The API server sends a bookmark to every watch at least once a minute. If nothing arrives for longer, the connection is
/// dead.
const BOOKMARK_TIMEOUT: Duration = Duration::from_secs(90);

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

    /// A client for one watch, and the heartbeat by which to notice that the watch receives nothing any more.
    ///
    /// Bookmarks are heartbeats, which say that nothing has changed. kube's watcher does not pass them on, so each frame of
    /// the response to a watch counts. Those to a list do not: it may be a list that never ends. Whoever reads it to its end
    /// says so by [`WatchHeartbeat::beat`].
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

/// A service that notes each frame of the response to a watch.
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
                let noted = body.map_frame(move |frame: Frame<Bytes>| {
                    heartbeat.beat();
                    frame
                });
                Box::new(noted) as Box<DynBody>
            }))
        }
        .boxed()
    }
}

/// When a watch last received anything, be it a bookmark.
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
    /// Notes that something was received.
    pub fn beat(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// The time since the last heartbeat, or since this was made if there was none.
    pub fn age(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tower::{BoxError, service_fn};

    use super::*;

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
            let heartbeat = WatchHeartbeat::default();
            let service = service_fn(move |_: Request<Body>| async move {
                let body = Box::new(Full::from("frame").map_err(BoxError::from)) as Box<DynBody>;
                let response = Response::builder().status(status).body(body);
                response.map_err(|error| -> BoxError { error.into() })
            });
            let mut monitored = Monitored { service, heartbeat: heartbeat.clone() };
            let request = Request::get(format!("/apis/tokenward.dev/v1alpha1/apitokens{query}"));
            let request = request.body(Body::empty()).expect("a request");
            let response = monitored.call(request).await.expect("a response");
            std::thread::sleep(Duration::from_millis(2));
            response.into_body().collect().await.expect("a body");
            assert_eq!(heartbeat.last.load(Ordering::Relaxed) > 0, expected, "{query} {status}");
        }
    }
}
