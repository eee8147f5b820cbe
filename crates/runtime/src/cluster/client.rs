//! The connection to the cluster, configured as kubectl's is.

use std::time::Duration;

use anyhow::Context;
use kube::{Client, Config};

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

    /// A client for one watch.
    pub fn watch_client(&self) -> anyhow::Result<Client> {
        let mut config = self.config.clone();
        config.read_timeout = Some(BOOKMARK_TIMEOUT);
        Client::try_from(config).context("the Kubernetes client can't be made")
    }
}
