//! Flags and environment variables that every server takes.

use std::net::SocketAddr;

use clap::Args;
use jiff::SignedDuration;
use tokenward_core::crd::DurationString;

use crate::telemetry::log;

/// What both servers take.
#[derive(Clone, Debug, Args)]
pub struct CommonArgs {
    /// The operator's own namespace, which holds the pepper and the lease [default: that of the kubeconfig or the service account]
    #[arg(long, env = "TOKENWARD_NAMESPACE")]
    pub namespace: Option<String>,
    /// Where /livez, /readyz and /metrics are served
    #[arg(long, env = "TOKENWARD_TELEMETRY_LISTEN", default_value = "[::]:9090")]
    pub telemetry_listen: SocketAddr,
    /// The namespaces whose ApiTokens are looked after, separated by commas [default: all]
    #[arg(long, env = "TOKENWARD_WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// What is logged, such as info, debug or info,tokenward=debug
    #[arg(long, env = "TOKENWARD_LOG", default_value = "info")]
    pub log: String,
    /// The form of the log
    #[arg(long, env = "TOKENWARD_LOG_FORMAT", default_value = "auto")]
    pub log_format: log::Format,
}

impl CommonArgs {
    /// The namespaces to watch. `None` is all of them.
    pub fn namespaces(&self) -> Option<Vec<String>> {
        let named: Vec<_> = self.watch_namespaces.iter().filter(|name| !name.is_empty()).cloned().collect();
        (!named.is_empty()).then_some(named)
    }
}

/// Reads a duration flag, in the form that the CRDs take: `90s`, `1h30m`.
pub fn duration(text: &str) -> Result<SignedDuration, String> {
    DurationString::new(text).parse().map_err(|error| error.to_string())
}
