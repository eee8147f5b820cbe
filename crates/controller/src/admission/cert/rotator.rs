//! Rotates the certificates: watches their Secret, presents what it contains, and fills in the `caBundle`.
//!
//! Every replica presents; only the leader writes. A write that lost a race is not repeated: what was written instead
//! arrives by the watch, and is handled like any change.

use std::time::Duration;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{ValidatingWebhook, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::generate::generate;
use super::state::{CertificateState, Names, SECRET, Step};
use crate::admission::metrics::Metrics;
use crate::objects::FIELD_MANAGER;
use tokenward_core::crd::labels::{PART_OF, PART_OF_VALUE};
use tokenward_runtime::cluster::error::{ErrorClass, classify, message};
use tokenward_runtime::cluster::lease::Claim;
use tokenward_runtime::cluster::watch::follow;
use tokenward_runtime::telemetry::probes::Part;
use tokenward_runtime::tls::ServingCertificate;

/// The wait after a write that failed.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// The webhook for ApiTokens in the configuration.
const APITOKENS_WEBHOOK: &str = "apitokens.tokenward.dev";
/// The longest wait between two steps, since the clock may be set meanwhile.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Rotates the certificates of the admission webhook.
pub(crate) struct CertificateRotator {
    pub(crate) client: Client,
    /// The operator's own namespace.
    pub(crate) namespace: String,
    pub(crate) names: Names,
    /// The ValidatingWebhookConfiguration whose `caBundle`s to fill in.
    pub(crate) configuration: String,
    pub(crate) lifetime: SignedDuration,
    /// Whether the API server must call the webhook for ApiTokens, since nothing else checks who grants scopes.
    pub(crate) enforces_grants: bool,
    pub(crate) claim: watch::Receiver<Claim>,
    pub(crate) presented: ServingCertificate,
    pub(crate) metrics: Metrics,
    pub(crate) ready: Part,
}

/// The Secret as last delivered by the watch.
#[derive(Default)]
struct Seen {
    state: CertificateState,
    /// `None`: there is no Secret.
    resource_version: Option<String>,
}

impl CertificateRotator {
    /// Runs for as long as it is polled. Ends if a watch does.
    pub(crate) async fn run(mut self) {
        let secrets = Api::<Secret>::namespaced(self.client.clone(), &self.namespace);
        let configurations = Api::<ValidatingWebhookConfiguration>::all(self.client.clone());
        let mut secret_events = std::pin::pin!(follow(secrets.clone(), SECRET, SECRET));
        let mut configuration_events =
            std::pin::pin!(follow(configurations.clone(), &self.configuration, &self.configuration));
        let (mut seen, mut configuration) = (None, None);
        let mut presenting = None;
        loop {
            let wait = match &seen {
                Some(seen) => {
                    self.present(seen, &mut presenting);
                    let claim = *self.claim.borrow();
                    match claim.is_valid() {
                        true => self.make_step(seen, configuration.as_ref(), &secrets, &configurations).await,
                        false => MAX_WAIT,
                    }
                }
                None => MAX_WAIT,
            };
            tokio::select! {
                event = secret_events.next() => match event {
                    Some(secret) => seen = Some(Seen::of(secret)),
                    None => return,
                },
                event = configuration_events.next() => match event {
                    Some(found) => {
                        self.check_failure_policy(found.as_ref());
                        configuration = found;
                    }
                    None => return,
                },
                changed = self.claim.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Says so if scopes may be granted by anybody while no controller responds.
    fn check_failure_policy(&self, found: Option<&ValidatingWebhookConfiguration>) {
        let webhooks = found.and_then(|found| found.webhooks.as_deref()).unwrap_or_default();
        let fails = |webhook: &ValidatingWebhook| {
            webhook.name == APITOKENS_WEBHOOK && webhook.failure_policy.as_deref() == Some("Fail")
        };
        if self.enforces_grants && !webhooks.iter().any(fails) {
            error!(
                "ValidatingWebhookConfiguration {} has no webhook {APITOKENS_WEBHOOK} with failurePolicy Fail, so anybody \
                 may grant any scope while no controller responds; set it, or remove --enforce-scope-grants",
                self.configuration
            );
        }
    }

    /// Presents the current certificate, if it is not the one that is presented.
    fn present(&self, seen: &Seen, presenting: &mut Option<Vec<u8>>) {
        let Some(pair) = &seen.state.current else { return };
        if presenting.as_ref() == Some(&pair.certificate) {
            return;
        }
        match self.presented.present(&pair.certificate, &pair.key) {
            Ok(()) => {
                let end = self.presented.ends_at();
                info!(end = end.map(tracing::field::display), "presenting a certificate to the API server");
                self.metrics.certificate_expiry.set(end.map_or(0, Timestamp::as_second));
                *presenting = Some(pair.certificate.clone());
                self.ready.set(true);
            }
            Err(error) => warn!(%error, "Secret {SECRET} can't be used"),
        }
    }

    /// Makes the step that is due. Returns when the next one is.
    async fn make_step(
        &self,
        seen: &Seen,
        configuration: Option<&ValidatingWebhookConfiguration>,
        secrets: &Api<Secret>,
        configurations: &Api<ValidatingWebhookConfiguration>,
    ) -> Duration {
        let now = Timestamp::now();
        let step = seen.state.next_step(&self.names, self.lifetime, now);
        let done = match step {
            Step::Wait(until) => match configuration {
                Some(found) => self
                    .inject(found, &seen.state.bundle(), configurations)
                    .await
                    .map(|()| until.duration_since(now).try_into().unwrap_or(MAX_WAIT).min(MAX_WAIT)),
                None => Ok(MAX_WAIT),
            },
            _ => self.write(seen, step, now, secrets).await.map(|()| MAX_WAIT),
        };
        done.unwrap_or_else(|error| match classify(&error) {
            // Another replica was faster. The watch will deliver what it wrote.
            ErrorClass::Conflict => MAX_WAIT,
            _ => {
                warn!(
                    error = message(&error),
                    ?step,
                    "the admission webhook's certificate could not be written; trying again"
                );
                RETRY_AFTER
            }
        })
    }

    async fn write(
        &self,
        seen: &Seen,
        step: Step,
        now: Timestamp,
        secrets: &Api<Secret>,
    ) -> kube::Result<()> {
        let generated = match step {
            Step::Generate | Step::Announce => match generate(&self.names, now, self.lifetime) {
                Ok(pair) => Some(pair),
                Err(error) => {
                    error!(%error, "no certificate could be generated");
                    return Ok(());
                }
            },
            _ => None,
        };
        let state = seen.state.clone().after(step, generated);
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(SECRET.to_owned()),
                labels: Some([(PART_OF.to_owned(), PART_OF_VALUE.to_owned())].into()),
                resource_version: seen.resource_version.clone(),
                ..Default::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(state.to_data()),
            ..Default::default()
        };
        match &seen.resource_version {
            Some(_) => secrets.replace(SECRET, &PostParams::default(), &secret).await?,
            None => secrets.create(&PostParams::default(), &secret).await?,
        };
        info!(?step, "changed the certificates in Secret {SECRET}");
        Ok(())
    }

    /// Writes the bundle to those webhooks that lack it. A webhook with a URL, and not a Service, is left alone.
    async fn inject(
        &self,
        found: &ValidatingWebhookConfiguration,
        bundle: &[u8],
        configurations: &Api<ValidatingWebhookConfiguration>,
    ) -> kube::Result<()> {
        let bundle = ByteString(bundle.to_vec());
        let lacks = |webhook: &&ValidatingWebhook| {
            webhook.client_config.service.is_some()
                && webhook.client_config.ca_bundle.as_ref() != Some(&bundle)
        };
        let webhooks: Vec<_> = found.webhooks.iter().flatten().filter(lacks).collect();
        if webhooks.is_empty() {
            return Ok(());
        }
        let webhooks: Vec<_> = webhooks
            .iter()
            .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        let patch = json!({
            // The write fails if the object was changed since.
            "metadata": {"resourceVersion": found.metadata.resource_version},
            "webhooks": webhooks,
        });
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
        configurations.patch(&self.configuration, &params, &Patch::Strategic(patch)).await?;
        info!(configuration = self.configuration, "filled in the caBundle");
        Ok(())
    }
}

impl Seen {
    fn of(secret: Option<Secret>) -> Self {
        let Some(secret) = secret else { return Self::default() };
        Self {
            state: CertificateState::read(secret.data.unwrap_or_default()),
            resource_version: secret.metadata.resource_version,
        }
    }
}
