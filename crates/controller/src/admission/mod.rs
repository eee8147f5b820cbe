//! Admission: what the API server asks before it stores an ApiToken or a TokenWebhook.
//!
//! The rules that an object can be judged by alone are CEL in the CRDs, and hold with every process down. Here is what
//! takes a look around: whether another token names the same Secret, whether the Secret is somebody else's, whether a
//! webhook points inside, and whether who asks may hand out these scopes (`--enforce-scope-grants`). Everything but the
//! last is judged again by the controller, since a webhook can be bypassed; who asked is known here only.
//!
//! [`judge`] and [`grants`] decide, `reviewer` gathers what they need, `server` speaks HTTPS with the API server
//! (<https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>). [`certificate`] says
//! when the serving certificate is to be replaced, `keeper` does it.

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
use tokenward_runtime::tls::ServingCertificate;
use tokenward_runtime::tls::files::Certificates;

/// What answers the API server, bound to its port and not serving yet.
pub struct Admission {
    listener: tokio::net::TcpListener,
    certificate: Certificate,
    enforce_scope_grants: bool,
    metrics: Metrics,
    ready: Part,
}

/// Where the serving certificate comes from.
enum Certificate {
    /// From others, who also tell the API server whom to trust.
    Files(Arc<Certificates>),
    /// Made here.
    Own { namespace: String, names: Names, configuration: String, lifetime: jiff::SignedDuration },
}

impl Admission {
    /// Prepares to answer, if that is wanted. `namespace` is the operator's own.
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
        let listener = listen_on("--admission-listen", listen)?;
        let ready = readiness.part("certificate of the admission webhook");
        let enforce_scope_grants = args.enforce_scope_grants;
        Ok(Some(Self { listener, certificate, enforce_scope_grants, metrics, ready }))
    }

    /// Answers until `stop`. Writes the certificates while the claim holds; every replica serves.
    pub async fn run(
        self,
        client: Client,
        claim: watch::Receiver<Claim>,
        tokens: Vec<Store<Token>>,
        addresses: Arc<AddressPolicy>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let Self { listener, certificate, enforce_scope_grants, metrics, ready } = self;
        let reviewer =
            Reviewer::new(client.clone(), tokens, addresses, enforce_scope_grants, metrics.clone());
        match certificate {
            Certificate::Files(files) => {
                let acceptor = files.acceptor(&[b"http/1.1"])?;
                ready.set(true);
                tokio::select! {
                    () = server::serve(listener, acceptor, reviewer, stop) => Ok(()),
                    () = files.follow() => bail!("the certificate of the admission webhook is no longer followed"),
                }
            }
            Certificate::Own { namespace, names, configuration, lifetime } => {
                let presented = ServingCertificate::default();
                let acceptor = presented.acceptor(&[b"http/1.1"])?;
                let keeper = CertificateRotator {
                    client,
                    namespace,
                    names,
                    configuration,
                    lifetime,
                    claim,
                    presented,
                    metrics,
                    ready,
                };
                tokio::select! {
                    () = server::serve(listener, acceptor, reviewer, stop) => Ok(()),
                    () = keeper.keep() => bail!("the certificate of the admission webhook is no longer looked after"),
                }
            }
        }
    }
}
