//! The validating admission webhook for ApiTokens and TokenWebhooks.
//!
//! Rules that need the object alone are CEL in the CRDs, and apply even if every process is down. Here are those that
//! need more: whether another token names the same Secret, whether the Secret is somebody else's, whether a webhook
//! points into a private network, and whether the user may grant these scopes (`--enforce-scope-grants`). Everything but
//! the last is checked again by the controller, since a webhook can be bypassed; the user is known here only.
//!
//! [`tokenward_core::admission`] decides, `reviewer` makes the checks that need the cluster, `server` serves the API server
//! (<https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>). `cert::state` decides
//! when the serving certificate is replaced, `cert::rotator` does it.

mod cert;
mod metrics;
mod reviewer;
mod server;

use std::sync::Arc;

use anyhow::{Context, bail};
use kube::Client;
use kube::runtime::reflector::Store;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::cert::rotator::CertificateRotator;
use self::cert::state::Names;
use self::metrics::Metrics;
use self::reviewer::Reviewer;
use crate::config::AdmissionArgs;
use crate::objects::Token;
use tokenward_core::outbox::destination::AddressPolicy;
use tokenward_runtime::cluster::lease::Claim;
use tokenward_runtime::listen::listen_on;
use tokenward_runtime::telemetry::probes::{Part, Readiness};
use tokenward_runtime::tls::files::Certificates;
use tokenward_runtime::tls::{Clients, ServingCertificate};

/// The admission webhook, bound to its port and not serving yet.
pub struct Admission {
    listener: tokio::net::TcpListener,
    certificate: Certificate,
    clients: Clients,
    enforce_scope_grants: bool,
    metrics: Metrics,
    ready: Part,
}

/// The source of the serving certificate.
enum Certificate {
    /// Files, from a tool that also fills in the `caBundle`.
    Files(Arc<Certificates>),
    /// The controller, which generates it and fills in the `caBundle`.
    Own { namespace: String, names: Names, configuration: String, lifetime: jiff::SignedDuration },
}

impl Admission {
    /// Binds to the port, if the webhook is enabled. `namespace` is the operator's own.
    pub async fn new(
        args: &AdmissionArgs,
        namespace: &str,
        registry: &mut Registry,
        readiness: &Readiness,
    ) -> anyhow::Result<Option<Self>> {
        let Some(listen) = args.admission_listen else { return Ok(None) };
        let metrics = Metrics::register(registry);
        let certificate = match args.files() {
            Some(files) => {
                let loaded = Certificates::load(files, metrics.certificate_expiry.clone());
                Certificate::Files(Arc::new(loaded.context("--admission-tls-cert and --admission-tls-key")?))
            }
            None => Certificate::Own {
                namespace: namespace.to_owned(),
                names: Names::of_service(namespace, &args.admission_service),
                configuration: args.admission_configuration.clone(),
                lifetime: args.admission_certificate_lifetime,
            },
        };
        let clients = clients(args)?;
        let listener = listen_on("--admission-listen", listen)?;
        let ready = readiness.part("certificate of the admission webhook");
        let enforce_scope_grants = args.enforce_scope_grants;
        Ok(Some(Self { listener, certificate, clients, enforce_scope_grants, metrics, ready }))
    }

    /// Serves until `stop`. Every replica serves; only the leader writes certificates.
    pub async fn run(
        self,
        client: Client,
        claim: watch::Receiver<Claim>,
        tokens: Vec<Store<Token>>,
        addresses: Arc<AddressPolicy>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let Self { listener, certificate, clients, enforce_scope_grants, metrics, ready } = self;
        let reviewer =
            Reviewer::new(client.clone(), tokens, addresses, enforce_scope_grants, metrics.clone());
        match certificate {
            Certificate::Files(files) => {
                let acceptor = files.acceptor(&[b"http/1.1"], &clients)?;
                ready.set(true);
                tokio::select! {
                    () = server::serve(listener, acceptor, reviewer, stop) => Ok(()),
                    () = files.follow() => bail!("the certificate of the admission webhook is no longer watched"),
                }
            }
            Certificate::Own { namespace, names, configuration, lifetime } => {
                let presented = ServingCertificate::default();
                let acceptor = presented.acceptor(&[b"http/1.1"], &clients)?;
                let rotator = CertificateRotator {
                    client,
                    namespace,
                    names,
                    configuration,
                    lifetime,
                    enforces_grants: enforce_scope_grants,
                    claim,
                    presented,
                    metrics,
                    ready,
                };
                tokio::select! {
                    () = server::serve(listener, acceptor, reviewer, stop) => Ok(()),
                    () = rotator.run() => bail!("the certificate of the admission webhook is no longer rotated"),
                }
            }
        }
    }
}

/// Who may ask: the API server alone, if its certificate can be verified.
fn clients(args: &AdmissionArgs) -> anyhow::Result<Clients> {
    let Some(path) = &args.admission_client_ca else { return Ok(Clients::anybody()) };
    let context = || format!("--admission-client-ca: {} can't be used", path.display());
    let authorities = std::fs::read(path).with_context(context)?;
    Clients::signed_by(&authorities).with_context(context)
}
