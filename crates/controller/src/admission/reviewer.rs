//! Gathers what [`super::judge`] asks for, and answers reviews.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::SubjectAccessReviewSpec;
use k8s_openapi::api::core::v1::Secret;
use kube::core::DeserializeGuard;
use kube::core::admission::{AdmissionRequest, AdmissionResponse};
use kube::runtime::reflector::Store;
use kube::{Api, Client, Resource, ResourceExt};
use tracing::warn;

use super::metrics::{Metrics, Verdict};
use tokenward_core::admission::grants;
use tokenward_core::admission::rules::{Questions, Refusal, destination, questions};
use tokenward_core::crd::{ApiToken, TokenWebhook};
use tokenward_core::lifecycle::has_labels_of;
use tokenward_core::outbox::destination::AddressPolicy;
use tokenward_runtime::cluster::access;
use tokenward_runtime::cluster::error::message;

/// An ApiToken as the controller's watch keeps it.
pub(crate) type Token = DeserializeGuard<ApiToken>;

/// SubjectAccessReviews that one review may have under way.
const GRANTS_AT_ONCE: usize = 8;

/// Answers reviews.
pub(crate) struct Reviewer {
    client: Client,
    /// The controller's own view: a token that is not in it yet is found by the controller instead.
    tokens: Vec<Store<Token>>,
    addresses: Arc<AddressPolicy>,
    enforce_scope_grants: bool,
    metrics: Metrics,
}

/// Why a review has no answer of its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    /// It was refused.
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

    /// Answers the question whether an ApiToken may be stored.
    pub(crate) async fn api_token(&self, request: &AdmissionRequest<ApiToken>) -> AdmissionResponse {
        let answer = AdmissionResponse::from(request);
        // A deletion shows no object, and is nobody's to refuse here.
        let Some(new) = &request.object else { return answer };
        let judged = match questions(new, request.old_object.as_ref()) {
            Ok(questions) => self.look_around(new, &request.user_info, questions).await,
            Err(refusal) => Err(refusal.into()),
        };
        self.answer("ApiToken", answer, judged)
    }

    /// Answers the question whether a TokenWebhook may be stored.
    pub(crate) fn token_webhook(&self, request: &AdmissionRequest<TokenWebhook>) -> AdmissionResponse {
        let answer = AdmissionResponse::from(request);
        let Some(new) = &request.object else { return answer };
        let judged = destination(new, request.old_object.as_ref(), &self.addresses);
        self.answer("TokenWebhook", answer, judged.map(|()| None).map_err(Into::into))
    }

    fn answer(
        &self,
        kind: &'static str,
        mut answer: AdmissionResponse,
        judged: Result<Option<String>, Unanswered>,
    ) -> AdmissionResponse {
        let (verdict, code, reason) = match &judged {
            Ok(_) => (Verdict::Admitted, 200, ""),
            Err(Unanswered::Refused(Refusal::ScopesNotGranted { .. })) => {
                (Verdict::Refused, 403, "Forbidden")
            }
            Err(Unanswered::Refused(_)) => (Verdict::Refused, 422, "Invalid"),
            Err(error @ Unanswered::Grants { .. }) => {
                warn!(%error, kind, "an object was refused");
                (Verdict::Failed, 503, "ServiceUnavailable")
            }
        };
        self.metrics.reviewed(kind, verdict);
        match judged {
            Ok(warning) => answer.warnings = warning.map(|warning| vec![warning]),
            Err(why) => {
                answer = answer.deny(why);
                answer.result.code = code;
                answer.result.reason = reason.to_owned();
            }
        }
        answer
    }

    async fn look_around(
        &self,
        token: &ApiToken,
        user: &UserInfo,
        questions: Questions,
    ) -> Result<Option<String>, Unanswered> {
        let namespace = token.namespace().unwrap_or_default();
        if self.enforce_scope_grants && !questions.gained_scopes.is_empty() {
            self.may_grant(user, &namespace, &questions.gained_scopes).await?;
        }
        if let Some(secret) = questions.secret {
            self.is_free(&namespace, &token.name_any(), secret).await?;
        }
        Ok(questions.warning)
    }

    /// Whether a user may hand out scopes. What can't be found out is refused.
    async fn may_grant(&self, user: &UserInfo, namespace: &str, scopes: &[String]) -> Result<(), Unanswered> {
        let unanswered =
            |source| Unanswered::Grants { user: user.username.clone().unwrap_or_default(), source };
        if self.is_allowed(user, namespace, None).await.map_err(unanswered)? {
            return Ok(());
        }
        let refused: Vec<Option<String>> = stream::iter(scopes.to_vec())
            .map(|scope| async move {
                let allowed = self.is_allowed_by_name(user, namespace, &scope).await?;
                Ok((!allowed).then_some(scope))
            })
            .buffered(GRANTS_AT_ONCE)
            .try_collect()
            .await
            .map_err(unanswered)?;
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

    /// Whether nobody else has a Secret of this name. What can't be found out is left to the controller, which never
    /// writes a Secret that is not its own.
    async fn is_free(&self, namespace: &str, name: &str, secret: String) -> Result<(), Refusal> {
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
