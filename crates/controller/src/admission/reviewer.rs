//! Gathers what [`tokenward_core::admission::rules`] needs, and responds to reviews.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::SubjectAccessReviewSpec;
use k8s_openapi::api::core::v1::Secret;
use kube::core::admission::{AdmissionRequest, AdmissionResponse};
use kube::runtime::reflector::Store;
use kube::{Api, Client, Resource, ResourceExt};
use tracing::warn;

use super::metrics::{Metrics, Verdict};
use crate::objects::Token;
use tokenward_core::admission::grants;
use tokenward_core::admission::rules::{Questions, Refusal, destination, questions};
use tokenward_core::crd::{ApiToken, TokenWebhook};
use tokenward_core::lifecycle::has_labels_of;
use tokenward_core::outbox::destination::AddressPolicy;
use tokenward_runtime::cluster::access;
use tokenward_runtime::cluster::error::message;

/// SubjectAccessReviews in flight for one admission review.
const MAX_CONCURRENT_GRANT_CHECKS: usize = 8;

/// Responds to admission reviews.
pub(crate) struct Reviewer {
    client: Client,
    /// The controller's caches. What a token that is not in them yet breaks, the controller reports.
    tokens: Vec<Store<Token>>,
    addresses: Arc<AddressPolicy>,
    enforce_scope_grants: bool,
    metrics: Metrics,
}

/// Why an object is not admitted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Denied {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The API server did not say what the user may do.
    #[error("whether {user} may grant these scopes can't be found out: {}", message(.source))]
    Grants {
        /// Who asked.
        user: String,
        /// What the API server said.
        source: kube::Error,
    },
}

impl Reviewer {
    pub(crate) fn new(
        client: Client,
        tokens: Vec<Store<Token>>,
        addresses: Arc<AddressPolicy>,
        enforce_scope_grants: bool,
        metrics: Metrics,
    ) -> Self {
        Self { client, tokens, addresses, enforce_scope_grants, metrics }
    }

    /// Reviews an ApiToken.
    pub(crate) async fn api_token(&self, request: &AdmissionRequest<ApiToken>) -> AdmissionResponse {
        let response = AdmissionResponse::from(request);
        // A deletion comes without an object, and is always admitted.
        let Some(new) = &request.object else { return response };
        let judged = match questions(new, request.old_object.as_ref()) {
            Ok(questions) => self.check_cluster(new, &request.user_info, questions).await,
            Err(refusal) => Err(refusal.into()),
        };
        self.respond("ApiToken", response, judged)
    }

    /// Reviews a TokenWebhook.
    pub(crate) fn token_webhook(&self, request: &AdmissionRequest<TokenWebhook>) -> AdmissionResponse {
        let response = AdmissionResponse::from(request);
        let Some(new) = &request.object else { return response };
        let judged = destination(new, request.old_object.as_ref(), &self.addresses);
        self.respond("TokenWebhook", response, judged.map(|()| None).map_err(Into::into))
    }

    fn respond(
        &self,
        kind: &'static str,
        mut response: AdmissionResponse,
        judged: Result<Option<String>, Denied>,
    ) -> AdmissionResponse {
        let (verdict, code, reason) = match &judged {
            Ok(_) => (Verdict::Admitted, 200, ""),
            Err(Denied::Refused(Refusal::ScopesNotGranted { .. })) => (Verdict::Refused, 403, "Forbidden"),
            Err(Denied::Refused(_)) => (Verdict::Refused, 422, "Invalid"),
            Err(error @ Denied::Grants { .. }) => {
                warn!(%error, kind, "an object was denied");
                (Verdict::Failed, 503, "ServiceUnavailable")
            }
        };
        self.metrics.reviewed(kind, verdict);
        match judged {
            Ok(warning) => response.warnings = warning.map(|warning| vec![warning]),
            Err(why) => {
                response = response.deny(why);
                response.result.code = code;
                response.result.reason = reason.to_owned();
            }
        }
        response
    }

    async fn check_cluster(
        &self,
        token: &ApiToken,
        user: &UserInfo,
        questions: Questions,
    ) -> Result<Option<String>, Denied> {
        let namespace = token.namespace().unwrap_or_default();
        if self.enforce_scope_grants && !questions.gained_scopes.is_empty() {
            self.check_grants(user, &namespace, &questions.gained_scopes).await?;
        }
        if let Some(secret) = questions.secret {
            self.check_secret(&namespace, &token.name_any(), secret).await?;
        }
        Ok(questions.warning)
    }

    /// Checks that a user may grant scopes. If that can't be found out, the object is denied.
    async fn check_grants(&self, user: &UserInfo, namespace: &str, scopes: &[String]) -> Result<(), Denied> {
        let failed = |source| Denied::Grants { user: user.username.clone().unwrap_or_default(), source };
        if self.is_allowed(user, namespace, None).await.map_err(failed)? {
            return Ok(());
        }
        let refused: Vec<Option<String>> = stream::iter(scopes.to_vec())
            .map(|scope| async move {
                let allowed = self.is_allowed_by_name(user, namespace, &scope).await?;
                Ok((!allowed).then_some(scope))
            })
            .buffered(MAX_CONCURRENT_GRANT_CHECKS)
            .try_collect()
            .await
            .map_err(failed)?;
        let scopes: Vec<String> = refused.into_iter().flatten().collect();
        if scopes.is_empty() {
            return Ok(());
        }
        let user = user.username.clone().unwrap_or_default();
        Err(Refusal::ScopesNotGranted { user, namespace: namespace.to_owned(), scopes }.into())
    }

    async fn is_allowed_by_name(&self, user: &UserInfo, namespace: &str, scope: &str) -> kube::Result<bool> {
        for name in grants::names(scope) {
            if self.is_allowed(user, namespace, Some(name)).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn is_allowed(&self, user: &UserInfo, namespace: &str, name: Option<String>) -> kube::Result<bool> {
        let right = Some(grants::right(namespace, name));
        let question = SubjectAccessReviewSpec { resource_attributes: right, ..access::about(user.clone()) };
        access::is_allowed(&self.client, question).await
    }

    /// Checks that the Secret is free or labelled as this token's. Labels prove nothing, and errors are ignored: this is for
    /// early advice, and the controller never writes a Secret that is not its own.
    async fn check_secret(&self, namespace: &str, name: &str, secret: String) -> Result<(), Refusal> {
        if let Some(token) = self.token_of(namespace, name, &secret) {
            return Err(Refusal::SecretOfAnother { secret, token });
        }
        let found = Api::<Secret>::namespaced(self.client.clone(), namespace).get_metadata_opt(&secret).await;
        match found {
            Ok(Some(found)) if !has_labels_of(&found.metadata, name) => {
                Err(Refusal::ForeignSecret { secret })
            }
            _ => Ok(()),
        }
    }

    /// Another ApiToken that names this Secret.
    fn token_of(&self, namespace: &str, name: &str, secret: &str) -> Option<String> {
        let names_it = |other: &Token| {
            let metadata = other.meta();
            let Some(other_name) = metadata.name.as_deref() else { return false };
            if metadata.namespace.as_deref() != Some(namespace) || other_name == name {
                return false;
            }
            let named = match &other.0 {
                Ok(other) => other.spec.secret.as_ref().and_then(|secret| secret.name.as_deref()),
                Err(_) => None,
            };
            named.unwrap_or(other_name) == secret
        };
        self.tokens.iter().find_map(|store| store.find(names_it)).map(|other| other.name_any())
    }
}
