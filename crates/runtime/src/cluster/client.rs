//! The connection to the cluster, configured as kubectl's is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame};
use kube::client::{ClientBuilder, DynBody};
use kube::{Client, Config};
use tower::util::MapResponseLayer;

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
    /// a response counts.
    pub fn watch_client(&self) -> anyhow::Result<(Client, WatchHeartbeat)> {
        let heartbeat = WatchHeartbeat::default();
        let source = heartbeat.clone();
        let mut config = self.config.clone();
        config.read_timeout = Some(BOOKMARK_TIMEOUT);
        let layer = MapResponseLayer::new(move |response: http::Response<Box<DynBody>>| {
            let heartbeat = response.status().is_success().then(|| source.clone());
            response.map(|body| {
                body.map_frame(move |frame: Frame<Bytes>| {
                    heartbeat.iter().for_each(WatchHeartbeat::beat);
                    frame
                })
            })
        });
        let builder = ClientBuilder::try_from(config).context("the Kubernetes client can't be made")?;
        Ok((builder.with_layer(&layer).build(), heartbeat))
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
    fn beat(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// The time since the last heartbeat, or since this was made if there was none.
    pub fn age(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}
