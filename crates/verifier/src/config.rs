//! Flags and environment variables of the verifier.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use jiff::SignedDuration;
use thiserror::Error;
use tokenward_runtime::config::{CommonArgs, duration};
use tokenward_runtime::tls::files::Files;

/// What the verifier takes.
#[derive(Clone, Debug, Args)]
pub struct VerifierArgs {
    /// What both servers take.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Where checks are answered
    #[arg(long, env = "TOKENWARD_LISTEN", default_value = "[::]:8080")]
    pub listen: SocketAddr,
    /// Where Envoy's ext_authz is answered over gRPC, such as 0.0.0.0:8081 [default: nowhere]
    #[arg(long, env = "TOKENWARD_GRPC_LISTEN")]
    pub grpc_listen: Option<SocketAddr>,
    /// The networks of proxies that are believed when they say who the client is (X-Forwarded-For; the source that Envoy tells over gRPC), in CIDR notation, separated by commas [default: none]
    #[arg(long, env = "TOKENWARD_TRUSTED_PROXIES", value_delimiter = ',')]
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// How long the API server may be silent before this replica is no longer ready. It is heard at least once a minute, so less than 2m makes a quiet cluster seem gone
    #[arg(long, env = "TOKENWARD_MAX_STALENESS", default_value = "2m", value_parser = duration)]
    pub max_staleness: SignedDuration,
    /// What to do then: go on from memory without learning of revocations, or answer every check with 503
    #[arg(long, env = "TOKENWARD_STALE_POLICY", default_value = "serve")]
    pub stale_policy: StalePolicy,
    /// The most connections at a time. At that many, a new one takes the place of the one that was quiet longest; the limit of open files may lower it. An idle one takes about 12 KiB (23 with TLS), one with a large head up to 40
    #[arg(long, env = "TOKENWARD_MAX_CONNECTIONS", default_value_t = 10_000)]
    pub max_connections: usize,
    /// How checks are transported.
    #[command(flatten)]
    pub transport: TransportArgs,
}

/// What a verifier does whose view is too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StalePolicy {
    /// It answers from memory.
    Serve,
    /// It answers nothing.
    Deny,
}

/// How the verifier's doors are reached. One of the two must be chosen, as a token in the clear is everybody's on the way.
#[derive(Clone, Debug, Args)]
pub struct TransportArgs {
    /// The certificate with which checks are answered over HTTPS: PEM, followed by those of the authorities between. Read again when it changes
    #[arg(long, env = "TOKENWARD_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its private key: PEM
    #[arg(long, env = "TOKENWARD_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Answer checks over plain HTTP: where the gateway is in the same pod, or the network encrypts
    #[arg(long, env = "TOKENWARD_PLAIN_HTTP")]
    plain_http: bool,
}

/// Flags that don't say how checks are transported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TransportError {
    /// Neither is chosen.
    #[error(
        "choose how checks are answered: --tls-cert FILE and --tls-key FILE for HTTPS, or --plain-http where the \
         gateway is in the same pod or the network encrypts, as tokens pass in the clear then"
    )]
    None,
    /// Both are.
    #[error("--plain-http excludes --tls-cert and --tls-key; leave out what is not meant")]
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
