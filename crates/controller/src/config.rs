//! Flags and environment variables of the controller.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use jiff::SignedDuration;
use tokenward_runtime::config::{CommonArgs, duration};
use tokenward_runtime::tls::files::Files;

/// The flags of `tokenward controller`.
#[derive(Clone, Debug, Args)]
pub struct ControllerArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Lease used for leader election, in the operator's namespace
    #[arg(long, env = "TOKENWARD_LEASE_NAME", default_value = "tokenward-controller")]
    pub lease_name: String,
    /// How long a lease is valid without a renewal, at least 1s
    #[arg(long, env = "TOKENWARD_LEASE_DURATION", default_value = "15s", value_parser = duration)]
    pub lease_duration: SignedDuration,
    /// Identity used in leader election [default: made of $HOSTNAME and the process id]
    #[arg(long, env = "TOKENWARD_IDENTITY")]
    pub identity: Option<String>,
    /// How long to wait between publishing the hash of a new token and writing the token to its Secret, so that verifiers know it
    #[arg(long, env = "TOKENWARD_PROPAGATION", default_value = "1s", value_parser = duration)]
    pub propagation: SignedDuration,
    #[command(flatten)]
    pub admission: AdmissionArgs,
    /// How long before its expiresAt an ApiToken gets an Event and TokenWebhooks get token.expiring
    #[arg(long, env = "TOKENWARD_EXPIRY_NOTICE", default_value = "168h", value_parser = duration)]
    pub expiry_notice: SignedDuration,
    #[command(flatten)]
    pub webhooks: WebhookArgs,
    #[command(flatten)]
    pub verifiers: VerifierArgs,
}

/// Flags of the proof that revocations are in force.
#[derive(Clone, Debug, Args)]
pub struct VerifierArgs {
    /// Service of the verifiers, in the operator's namespace: each of its endpoints is asked to confirm a revocation before it is called enforced [default: none is asked]
    #[arg(long, env = "TOKENWARD_VERIFIER_SERVICE")]
    pub verifier_service: Option<String>,
    /// Port of /watermark on the endpoints of --verifier-service: that of the verifiers' --telemetry-listen
    #[arg(long, env = "TOKENWARD_VERIFIER_TELEMETRY_PORT", default_value_t = 9090)]
    pub verifier_telemetry_port: u16,
    /// Telemetry addresses of verifiers that are behind no Service, such as those outside of the cluster, separated by commas [default: none]
    #[arg(long, env = "TOKENWARD_VERIFIERS", value_delimiter = ',')]
    pub verifiers: Vec<SocketAddr>,
}

/// Flags of the admission webhook.
#[derive(Clone, Debug, Args)]
pub struct AdmissionArgs {
    /// Address of the admission webhook, HTTPS, such as 0.0.0.0:9443 [default: disabled]
    #[arg(long, env = "TOKENWARD_ADMISSION_LISTEN")]
    pub admission_listen: Option<SocketAddr>,
    /// Service of the admission webhook, in the operator's namespace: certificates are made for its name
    #[arg(long, env = "TOKENWARD_ADMISSION_SERVICE", default_value = "tokenward-admission")]
    pub admission_service: String,
    /// ValidatingWebhookConfiguration whose caBundle is filled in
    #[arg(long, env = "TOKENWARD_ADMISSION_CONFIGURATION", default_value = "tokenward")]
    pub admission_configuration: String,
    /// Validity of generated certificates. One is replaced after two thirds of it
    #[arg(long, env = "TOKENWARD_ADMISSION_CERTIFICATE_LIFETIME", default_value = "2160h", value_parser = duration)]
    pub admission_certificate_lifetime: SignedDuration,
    /// Serve with this certificate (PEM) instead of a generated one, such as cert-manager's, which also fills in the caBundle. Reloaded when it changes
    #[arg(long, env = "TOKENWARD_ADMISSION_TLS_CERT", value_name = "FILE", requires = "admission_tls_key")]
    admission_tls_cert: Option<PathBuf>,
    /// Private key of --admission-tls-cert (PEM)
    #[arg(long, env = "TOKENWARD_ADMISSION_TLS_KEY", value_name = "FILE", requires = "admission_tls_cert")]
    admission_tls_key: Option<PathBuf>,
    /// Accept only clients with a certificate that these authorities (PEM) have signed. The API server presents one if its AdmissionConfiguration names it. Read at the start [default: accept every client]
    #[arg(long, env = "TOKENWARD_ADMISSION_CLIENT_CA", value_name = "FILE", requires = "admission_listen")]
    pub admission_client_ca: Option<PathBuf>,
    /// Deny ApiTokens with scopes that the user who applies them may not grant: that needs the verb `grant` on `scopes.tokenward.dev` with the scope as resource name
    #[arg(long, env = "TOKENWARD_ENFORCE_SCOPE_GRANTS", requires = "admission_listen")]
    pub enforce_scope_grants: bool,
}

/// Flags of webhook delivery.
#[derive(Clone, Debug, Args)]
pub struct WebhookArgs {
    /// Allow webhook URLs in private networks, which include the cluster's Services and pods. Whoever may write TokenWebhooks can then make the controller send requests to them
    #[arg(long, env = "TOKENWARD_WEBHOOK_ALLOW_PRIVATE")]
    pub webhook_allow_private: bool,
    /// Networks that webhooks may always be sent to, even loopback, in CIDR notation, separated by commas [default: none]
    #[arg(long, env = "TOKENWARD_WEBHOOK_ALLOW_CIDRS", value_delimiter = ',')]
    pub webhook_allow_cidrs: Vec<ipnet::IpNet>,
    /// For tests: divides the waits between attempts and the maximum age of events
    #[arg(long, env = "TOKENWARD_WEBHOOK_TIME_SCALE", default_value_t = 1.0, hide = true)]
    pub webhook_time_scale: f64,
}

impl ControllerArgs {
    /// The identity in leader election. Without the flag it differs with each call: part of it is random.
    pub fn identity(&self) -> String {
        self.identity.clone().unwrap_or_else(|| {
            let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "tokenward".to_owned());
            format!("{host}-{}-{:08x}", std::process::id(), rand::random::<u32>())
        })
    }

    /// How long a lease is valid without a renewal, at least 1 s.
    pub fn lease_duration(&self) -> Duration {
        self.lease_duration.unsigned_abs().max(Duration::from_secs(1))
    }
}

impl AdmissionArgs {
    /// The certificate to serve with. `None`: certificates are generated.
    pub fn files(&self) -> Option<Files> {
        let (certificate, key) = (self.admission_tls_cert.clone()?, self.admission_tls_key.clone()?);
        Some(Files { certificate, key })
    }
}
