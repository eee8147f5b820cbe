//! Flags and environment variables of the verifier.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use jiff::SignedDuration;
use thiserror::Error;
use tokenward_runtime::config::{CommonArgs, duration};
use tokenward_runtime::tls::files::Files;

/// Flags of `tokenward verifier`.
#[derive(Clone, Debug, Args)]
pub struct VerifierArgs {
    /// Flags that the controller has as well.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Address of the HTTP endpoints
    #[arg(long, env = "TOKENWARD_LISTEN", default_value = "[::]:8080")]
    pub listen: SocketAddr,
    /// Address of the gRPC endpoint for Envoy's ext_authz, such as 0.0.0.0:8081 [default: disabled]
    #[arg(long, env = "TOKENWARD_GRPC_LISTEN")]
    pub grpc_listen: Option<SocketAddr>,
    /// Networks of trusted proxies in CIDR notation, separated by commas: the client address that they send is used (X-Forwarded-For; over gRPC, the source address) [default: none]
    #[arg(long, env = "TOKENWARD_TRUSTED_PROXIES", value_delimiter = ',')]
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// How long the API server may be silent before this replica is no longer ready. Watches receive a bookmark about once a minute, so less than 2m fails on a quiet cluster
    #[arg(long, env = "TOKENWARD_MAX_STALENESS", default_value = "2m", value_parser = duration)]
    pub max_staleness: SignedDuration,
    /// What to do once the API server has been silent for longer than --max-staleness: serve from memory without learning of revocations, or deny every check with 503
    #[arg(long, env = "TOKENWARD_STALE_POLICY", default_value = "serve")]
    pub stale_policy: StalePolicy,
    /// Maximum number of open connections. At the maximum, a new connection replaces the one that was idle longest; the limit of open files may lower it. An idle connection takes about 12 KiB (23 with TLS), one with a large request head up to 64 [default: as many as fit into a third of the container's memory limit, at most 10000]
    #[arg(long, env = "TOKENWARD_MAX_CONNECTIONS")]
    pub max_connections: Option<usize>,
    /// Folder for a checkpoint of all tokens, about 200 bytes each and twice that while it is written: a container that is started again, with the same folder, is ready in seconds instead of after a list of all ApiTokens [default: none]
    #[arg(long, env = "TOKENWARD_CHECKPOINT_DIR", value_name = "FOLDER")]
    pub checkpoint_dir: Option<PathBuf>,
    /// Fewer tokens than that are listed all the same, which is faster: with a checkpoint the API server takes 1 to 2 s to say that nothing is missing
    #[arg(long, env = "TOKENWARD_CHECKPOINT_MIN_TOKENS", value_name = "TOKENS", default_value_t = 10_000)]
    pub checkpoint_min_tokens: u64,
    /// TLS files, or plain HTTP.
    #[command(flatten)]
    pub transport: TransportArgs,
}

/// What a verifier does when its watches are older than `--max-staleness`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StalePolicy {
    /// Serve checks from memory; revocations since then are unknown
    Serve,
    /// Respond to every check with 503
    Deny,
}

/// TLS or plain HTTP. There is no default, so that tokens are never sent in the clear by omission.
#[derive(Clone, Debug, Args)]
pub struct TransportArgs {
    /// Serve HTTPS with this certificate chain: PEM, leaf first. Reloaded when the file changes
    #[arg(long, env = "TOKENWARD_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert: PEM
    #[arg(long, env = "TOKENWARD_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Serve plain HTTP: only where the gateway is in the same pod, or the network encrypts
    #[arg(long, env = "TOKENWARD_PLAIN_HTTP")]
    plain_http: bool,
}

/// Missing or contradictory flags for TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TransportError {
    /// Neither TLS nor plain HTTP was chosen.
    #[error(
        "choose how checks are answered: --tls-cert FILE and --tls-key FILE for HTTPS, or --plain-http where the \
         gateway is in the same pod or the network encrypts, because tokens are then sent in the clear"
    )]
    None,
    /// Both TLS and plain HTTP were chosen.
    #[error("--plain-http excludes --tls-cert and --tls-key; leave one out")]
    Both,
    /// A certificate without its key, or the other way round.
    #[error("--tls-cert and --tls-key go together; give both")]
    Half,
}

impl TransportArgs {
    /// The files for TLS. `None` is plain HTTP.
    pub fn tls(&self) -> Result<Option<Files>, TransportError> {
        match (&self.tls_cert, &self.tls_key, self.plain_http) {
            (Some(certificate), Some(key), false) => {
                Ok(Some(Files { certificate: certificate.clone(), key: key.clone() }))
            }
            (None, None, true) => Ok(None),
            (None, None, false) => Err(TransportError::None),
            (_, _, true) => Err(TransportError::Both),
            (_, _, false) => Err(TransportError::Half),
        }
    }
}
