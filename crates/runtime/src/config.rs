//! Flags and environment variables of every server.

use std::net::SocketAddr;

use clap::Args;
use jiff::SignedDuration;
use tokenward_core::crd::DurationString;

use crate::telemetry::log;

/// The flags of every server.
#[derive(Clone, Debug, Args)]
pub struct CommonArgs {
    /// The operator's own namespace, with the pepper and the controller's lease [default: that of the kubeconfig or the service account]
    #[arg(long, env = "TOKENWARD_NAMESPACE")]
    pub namespace: Option<String>,
    /// Address of /livez, /readyz and /metrics
    #[arg(long, env = "TOKENWARD_TELEMETRY_LISTEN", default_value = "[::]:9090")]
    pub telemetry_listen: SocketAddr,
    /// Namespaces to watch for ApiTokens, separated by commas [default: all]
    #[arg(long, env = "TOKENWARD_WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// Log filter, such as info, debug or info,tokenward=debug
    #[arg(long, env = "TOKENWARD_LOG", default_value = "info")]
    pub log: String,
    /// Log format
    #[arg(long, env = "TOKENWARD_LOG_FORMAT", default_value = "auto")]
    pub log_format: log::Format,
}

impl CommonArgs {
    /// The namespaces to watch. `None`: all.
    pub fn namespaces(&self) -> Option<Vec<String>> {
        let named: Vec<_> = self.watch_namespaces.iter().filter(|name| !name.is_empty()).cloned().collect();
        (!named.is_empty()).then_some(named)
    }
}

/// Parses a duration flag in the format of the CRDs: `90s`, `1h30m`.
pub fn duration(text: &str) -> Result<SignedDuration, String> {
    DurationString::new(text).parse().map_err(|error| error.to_string())
}
