//! What is typed, and what it means. After this file nobody parses or defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::SignedDuration;

use crate::crd::DurationString;
use crate::telemetry::log;
use crate::tls::files::Files;

/// API tokens as Kubernetes objects: minted, delivered, checked, rotated and revoked.
#[derive(Debug, Parser)]
#[command(name = "tokenward", version, about, propagate_version = true)]
pub struct Cli {
    /// What to run.
    #[command(subcommand)]
    pub role: Role,
}

/// The roles, one a process.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Mints, delivers, rotates and revokes: reconciles ApiTokens. The only role that reads or writes Secrets
    Controller(ControllerArgs),
    /// Answers whether a presented token is valid, from memory. Any number of replicas
    Verifier(VerifierArgs),
    /// Prints the CustomResourceDefinitions
    Crds(CrdsArgs),
    /// Prints the OpenAPI document of the verifier's HTTP doors
    Openapi,
}

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

/// What the controller takes.
#[derive(Clone, Debug, Args)]
pub struct ControllerArgs {
    /// What both servers take.
    #[command(flatten)]
    pub common: CommonArgs,
    /// The Lease by which one of several replicas is chosen to write
    #[arg(long, env = "TOKENWARD_LEASE_NAME", default_value = "tokenward-controller")]
    pub lease_name: String,
    /// How long a silent replica keeps the lease, at least 1s
    #[arg(long, env = "TOKENWARD_LEASE_DURATION", default_value = "15s", value_parser = duration)]
    pub lease_duration: SignedDuration,
    /// This replica's name among its like [default: $HOSTNAME and the process id]
    #[arg(long, env = "TOKENWARD_IDENTITY")]
    pub identity: Option<String>,
    /// How long verifiers are given to learn of a new secret before it is put into the Secret
    #[arg(long, env = "TOKENWARD_PROPAGATION", default_value = "1s", value_parser = duration)]
    pub propagation: SignedDuration,
    /// What the API server asks before it stores an object.
    #[command(flatten)]
    pub admission: AdmissionArgs,
    /// How long before its expiresAt a token is told to expire, by an Event and to TokenWebhooks
    #[arg(long, env = "TOKENWARD_EXPIRY_NOTICE", default_value = "168h", value_parser = duration)]
    pub expiry_notice: SignedDuration,
    /// How webhooks are delivered.
    #[command(flatten)]
    pub webhooks: WebhookArgs,
}

/// What admission takes.
#[derive(Clone, Debug, Args)]
pub struct AdmissionArgs {
    /// Where the API server asks over HTTPS whether an object may be stored, such as 0.0.0.0:9443 [default: nowhere]
    #[arg(long, env = "TOKENWARD_ADMISSION_LISTEN")]
    pub admission_listen: Option<SocketAddr>,
    /// The Service by which the API server reaches that, in the operator's namespace: certificates are made for it
    #[arg(long, env = "TOKENWARD_ADMISSION_SERVICE", default_value = "tokenward-admission")]
    pub admission_service: String,
    /// The ValidatingWebhookConfiguration that is told which certificates to trust
    #[arg(long, env = "TOKENWARD_ADMISSION_CONFIGURATION", default_value = "tokenward")]
    pub admission_configuration: String,
    /// How long a certificate that is made lives. It is replaced after two thirds of that
    #[arg(long, env = "TOKENWARD_ADMISSION_CERTIFICATE_LIFETIME", default_value = "2160h", value_parser = duration)]
    pub admission_certificate_lifetime: SignedDuration,
    /// Serve with this certificate instead, such as cert-manager's, which also tells the API server to trust it: PEM. Read again when it changes
    #[arg(long, env = "TOKENWARD_ADMISSION_TLS_CERT", value_name = "FILE", requires = "admission_tls_key")]
    admission_tls_cert: Option<PathBuf>,
    /// Its private key: PEM
    #[arg(long, env = "TOKENWARD_ADMISSION_TLS_KEY", value_name = "FILE", requires = "admission_tls_cert")]
    admission_tls_key: Option<PathBuf>,
    /// Refuse scopes that whoever applies an ApiToken may not hand out: it takes the verb `grant` on `scopes.tokenward.dev` with the scope as resource name
    #[arg(long, env = "TOKENWARD_ENFORCE_SCOPE_GRANTS", requires = "admission_listen")]
    pub enforce_scope_grants: bool,
}

/// How webhooks are delivered.
#[derive(Clone, Debug, Args)]
pub struct WebhookArgs {
    /// Let TokenWebhooks name addresses of private networks: Services and pods of the cluster have such. Whoever may write TokenWebhooks can then have the controller ask those
    #[arg(long, env = "TOKENWARD_WEBHOOK_ALLOW_PRIVATE")]
    pub webhook_allow_private: bool,
    /// Networks to which webhooks may go whatever they are, even loopback, in CIDR notation, separated by commas [default: none]
    #[arg(long, env = "TOKENWARD_WEBHOOK_ALLOW_CIDRS", value_delimiter = ',')]
    pub webhook_allow_cidrs: Vec<ipnet::IpNet>,
    /// For tests: the waits between attempts, and the age at which events are given up, are divided by this
    #[arg(long, env = "TOKENWARD_WEBHOOK_TIME_SCALE", default_value_t = 1.0, hide = true)]
    pub webhook_time_scale: f64,
}

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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

/// What `crds` takes.
#[derive(Clone, Debug, Args)]
pub struct CrdsArgs {
    /// Write one file a kind into this directory, instead of printing all
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

impl CommonArgs {
    /// The namespaces to watch. `None` is all of them.
    pub fn namespaces(&self) -> Option<Vec<String>> {
        let named: Vec<_> = self.watch_namespaces.iter().filter(|name| !name.is_empty()).cloned().collect();
        (!named.is_empty()).then_some(named)
    }
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

impl AdmissionArgs {
    /// The files to serve with. `None`: certificates are made.
    pub fn files(&self) -> Option<Files> {
        let (certificate, key) = (self.admission_tls_cert.clone()?, self.admission_tls_key.clone()?);
        Some(Files { certificate, key })
    }
}

impl ControllerArgs {
    /// This replica's name among its like.
    pub fn identity(&self) -> String {
        self.identity.clone().unwrap_or_else(|| {
            let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "tokenward".to_owned());
            format!("{host}-{}-{:08x}", std::process::id(), rand::random::<u32>())
        })
    }

    /// How long a silent replica keeps the lease.
    pub fn lease_duration(&self) -> Duration {
        self.lease_duration.unsigned_abs().max(Duration::from_secs(1))
    }
}

fn duration(text: &str) -> Result<SignedDuration, String> {
    DurationString::new(text).parse().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn documented_defaults_hold() {
        let Role::Verifier(verifier) = Cli::parse_from(["tokenward", "verifier"]).role else {
            panic!("verifier")
        };
        assert_eq!(verifier.listen.to_string(), "[::]:8080");
        assert_eq!(verifier.common.telemetry_listen.to_string(), "[::]:9090");
        assert_eq!(verifier.grpc_listen, None);
        assert_eq!(verifier.common.namespaces(), None);
        assert_eq!(verifier.max_connections, 10_000);
    }

    #[test]
    fn the_transport_of_tokens_is_chosen() {
        let transport = |flags: &[&str]| {
            let Role::Verifier(args) = Cli::parse_from([&["tokenward", "verifier"], flags].concat()).role
            else {
                panic!("verifier")
            };
            args.transport.tls()
        };
        let files = Files { certificate: "c".into(), key: "k".into() };
        assert_eq!(transport(&["--tls-cert", "c", "--tls-key", "k"]), Ok(Some(files)));
        assert_eq!(transport(&["--plain-http"]), Ok(None));
        assert_eq!(transport(&[]), Err(TransportError::None));
        assert_eq!(transport(&["--tls-cert", "c"]), Err(TransportError::Half));
        assert_eq!(transport(&["--tls-key", "k"]), Err(TransportError::Half));
        assert_eq!(transport(&["--tls-cert", "c", "--plain-http"]), Err(TransportError::Both));
    }

    #[test]
    fn a_duration_without_a_unit_is_refused_with_advice() {
        let error = Cli::try_parse_from(["tokenward", "controller", "--propagation", "30"])
            .expect_err("no unit")
            .to_string();
        assert!(error.contains("unit h, m or s"), "{error}");
    }
}
