//! Flags and environment variables of the controller.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use jiff::SignedDuration;
use tokenward_runtime::config::{CommonArgs, duration};
use tokenward_runtime::tls::files::Files;

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

impl AdmissionArgs {
    /// The files to serve with. `None`: certificates are made.
    pub fn files(&self) -> Option<Files> {
        let (certificate, key) = (self.admission_tls_cert.clone()?, self.admission_tls_key.clone()?);
        Some(Files { certificate, key })
    }
}
