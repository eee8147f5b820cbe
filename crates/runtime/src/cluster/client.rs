//! The connection to the cluster, taken from where kubectl takes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame};
use kube::client::{ClientBuilder, DynBody};
use kube::{Client, Config};
use tower::util::MapResponseLayer;

/// A watch is quiet for up to its own timeout of some minutes; everything else answers within seconds.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
/// The API server tells a watch at least once a minute that nothing has changed (a bookmark). One that hears nothing
/// for longer hangs on a connection that is dead.
const BOOKMARK_TIMEOUT: Duration = Duration::from_secs(90);

/// Where the cluster is, and who we are there.
pub struct Cluster {
    config: Config,
}

impl Cluster {
    /// Finds it by `KUBECONFIG`, `~/.kube/config` or the in-cluster account. The user agent names the role, so that
    /// an audit log tells the processes apart.
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

    /// The namespace that the configuration names.
    pub fn default_namespace(&self) -> &str {
        &self.config.default_namespace
    }

    /// A client for anything.
    pub fn client(&self) -> anyhow::Result<Client> {
        Client::try_from(self.config.clone()).context("the Kubernetes client can't be made")
    }

    /// A client for one watch, and when that was last heard of.
    ///
    /// Bookmarks count, which say that nothing has changed: kube's watcher keeps them to itself, so it is the frames
    /// of the answers that are listened to.
    pub fn watch_client(&self) -> anyhow::Result<(Client, WatchHeartbeat)> {
        let heard = WatchHeartbeat::default();
        let listening = heard.clone();
        let mut config = self.config.clone();
        config.read_timeout = Some(BOOKMARK_TIMEOUT);
        let listen = MapResponseLayer::new(move |answer: http::Response<Box<DynBody>>| {
            let heard = answer.status().is_success().then(|| listening.clone());
            answer.map(|body| {
                body.map_frame(move |frame: Frame<Bytes>| {
                    heard.iter().for_each(WatchHeartbeat::note);
                    frame
                })
            })
        });
        let builder = ClientBuilder::try_from(config).context("the Kubernetes client can't be made")?;
        Ok((builder.with_layer(&listen).build(), heard))
    }
}

/// When something was last heard of.
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
    fn note(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// How long ago it was.
    pub fn age(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}
