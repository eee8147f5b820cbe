//! The connection to the cluster, taken from where kubectl takes it.

use std::time::Duration;

use anyhow::Context;
use kube::{Client, Config};

/// Connects by `KUBECONFIG`, `~/.kube/config` or the in-cluster account. The user agent names the role, so that
/// an audit log tells the processes apart. Also answers the namespace that the configuration names.
pub async fn connect(role: &str) -> anyhow::Result<(Client, String)> {
    let mut config = Config::infer().await.context(
        "no Kubernetes cluster is configured: set KUBECONFIG, or run in a pod with a service account",
    )?;
    // A watch is quiet for up to its own timeout of some minutes; everything else answers within seconds.
    config.read_timeout = Some(Duration::from_secs(300));
    config.connect_timeout = Some(Duration::from_secs(5));
    let agent = format!("tokenward/{} ({role})", env!("CARGO_PKG_VERSION"));
    config.headers.push((http::header::USER_AGENT, agent.parse().context("user agent")?));
    let namespace = config.default_namespace.clone();
    Ok((Client::try_from(config).context("the Kubernetes client can't be made")?, namespace))
}
