//! Checks with the API server what [`tokenward_core::admission::rules`] can't, and responds to reviews.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, future, stream};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::SubjectAccessReviewSpec;
use k8s_openapi::api::core::v1::Secret;
use kube::core::admission::{AdmissionRequest, AdmissionResponse};
use kube::runtime::reflector::Store;
use kube::{Api, Client, Resource, ResourceExt};
use tracing::warn;

use super::metrics::{Metrics, Verdict};
use crate::objects::Token;
use crate::tokenlock::candidate;
use tokenward_core::admission::grants;
use tokenward_core::admission::preview::Preview;
use tokenward_core::admission::rules::{ClusterChecks, Violation, validate_destination, validate_token};
use tokenward_core::crd::CreationPolicy;
use tokenward_core::crd::{AnyLock, ApiToken, TokenWebhook};
use tokenward_core::lifecycle::{consents, has_labels_of};
use tokenward_core::lock::{Lock, Progress};
use tokenward_core::outbox::destination::AddressPolicy;
use tokenward_runtime::cluster::access;
use tokenward_runtime::cluster::error::message;

/// SubjectAccessReviews in flight for one admission review.
const MAX_CONCURRENT_GRANT_CHECKS: usize = 8;
/// Names of grants that are checked for one admission review: 64 scopes of four parts each, with no wildcard in common. By one
/// request anybody who may edit an ApiToken could otherwise make the API server handle thousands.
const MAX_GRANT_CHECKS: usize = 256;

/// Responds to admission reviews.
pub(crate) struct Reviewer {
    client: Client,
    /// The controller's caches. They lag, so a violation may be missed here; then the controller reports it.
    tokens: Vec<Store<Token>>,
    addresses: Arc<AddressPolicy>,
    enforce_scope_grants: bool,
    metrics: Metrics,
}

/// Why an object is denied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Denied {
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error(
        "these scopes and the wildcards that cover them have {names} names, and at most {MAX_GRANT_CHECKS} are checked: \
         use fewer scopes, or fewer parts in each"
    )]
    TooManyNames { names: usize },
    /// The API server did not respond to a SubjectAccessReview.
    #[error("whether {user} may grant these scopes can't be checked: {}", message(.source))]
    GrantsUnchecked { user: String, source: kube::Error },
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

    /// Responds to the review of an ApiToken.
    pub(crate) async fn api_token(&self, request: &AdmissionRequest<ApiToken>) -> AdmissionResponse {
        let response = AdmissionResponse::from(request);
        // A deletion comes without an object, and is always admitted.
        let Some(new) = &request.object else { return response };
        let result = match validate_token(new, request.old_object.as_ref(), Timestamp::now()) {
            Ok(checks) => self.check_cluster(new, &request.user_info, checks).await,
            Err(violation) => Err(violation.into()),
        };
        self.respond("ApiToken", response, result)
    }

    /// Responds to the review of a TokenWebhook.
    pub(crate) fn token_webhook(&self, request: &AdmissionRequest<TokenWebhook>) -> AdmissionResponse {
        let response = AdmissionResponse::from(request);
        let Some(new) = &request.object else { return response };
        let result = validate_destination(new, request.old_object.as_ref(), &self.addresses);
        self.respond("TokenWebhook", response, result.map(|()| Vec::new()).map_err(Into::into))
    }

    /// Responds to the review of a lock: with a warning that says what it will stop, which `--dry-run=server` shows too.
    pub(crate) fn lock<K>(&self, kind: &'static str, request: &AdmissionRequest<K>) -> AdmissionResponse
    where
        K: AnyLock + Resource<DynamicType = ()>,
    {
        let response = AdmissionResponse::from(request);
        let is_new = request.old_object.is_none();
        let Some(new) = request.object.as_ref().filter(|_| is_new) else { return response };
        let lock = Lock::of(new);
        let mut preview = Preview::default();
        for token in self.tokens.iter().flat_map(Store::state) {
            if candidate(&token).is_some_and(|candidate| candidate.progress(&lock) == Progress::Outstanding) {
                preview.add(&token.namespace().unwrap_or_default(), &token.name_any());
            }
        }
        self.respond(kind, response, Ok(vec![preview.message(lock.action())]))
    }

    /// The response to a review, whose result is warnings for the user, or why the object is denied.
    fn respond(
        &self,
        kind: &'static str,
        mut response: AdmissionResponse,
        result: Result<Vec<String>, Denied>,
    ) -> AdmissionResponse {
        let (verdict, code, reason) = match &result {
            Ok(_) => (Verdict::Admitted, 200, ""),
            Err(Denied::Violation(Violation::ScopesNotGranted { .. })) => (Verdict::Denied, 403, "Forbidden"),
            Err(Denied::Violation(_) | Denied::TooManyNames { .. }) => (Verdict::Denied, 422, "Invalid"),
            Err(error @ Denied::GrantsUnchecked { .. }) => {
                warn!(%error, kind, "an object was denied");
                (Verdict::Failed, 503, "ServiceUnavailable")
            }
        };
        self.metrics.reviewed(kind, verdict);
        match result {
            Ok(warnings) => response.warnings = Some(warnings).filter(|warnings| !warnings.is_empty()),
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
        checks: ClusterChecks,
    ) -> Result<Vec<String>, Denied> {
        let namespace = token.namespace().unwrap_or_default();
        if self.enforce_scope_grants && !checks.gained_scopes.is_empty() {
            self.check_grants(user, &namespace, &checks.gained_scopes).await?;
        }
        if let Some(secret) = checks.secret {
            self.check_secret(&namespace, &token.name_any(), secret).await?;
        }
        Ok(checks.warnings)
    }

    /// Checks that a user may grant scopes. If that can't be checked, the object is denied.
    async fn check_grants(&self, user: &UserInfo, namespace: &str, scopes: &[String]) -> Result<(), Denied> {
        let failed =
            |source| Denied::GrantsUnchecked { user: user.username.clone().unwrap_or_default(), source };
        if self.is_allowed(user, namespace, None).await.map_err(failed)? {
            return Ok(());
        }
        // Each name once: scopes share the wildcards that cover them.
        let names: BTreeSet<String> = scopes.iter().flat_map(|scope| grants::names(scope)).collect();
        if names.len() > MAX_GRANT_CHECKS {
            return Err(Denied::TooManyNames { names: names.len() });
        }
        let granted: BTreeSet<String> = stream::iter(names)
            .map(|name| async move {
                let allowed = self.is_allowed(user, namespace, Some(name.clone())).await?;
                Ok(allowed.then_some(name))
            })
            .buffer_unordered(MAX_CONCURRENT_GRANT_CHECKS)
            .try_filter_map(future::ok)
            .try_collect()
            .await
            .map_err(failed)?;
        let is_granted = |scope: &String| grants::names(scope).any(|name| granted.contains(&name));
        let scopes: Vec<String> = scopes.iter().filter(|scope| !is_granted(scope)).cloned().collect();
        if scopes.is_empty() {
            return Ok(());
        }
        let user = user.username.clone().unwrap_or_default();
        Err(Violation::ScopesNotGranted { user, namespace: namespace.to_owned(), scopes }.into())
    }

    async fn is_allowed(&self, user: &UserInfo, namespace: &str, name: Option<String>) -> kube::Result<bool> {
        let resource_attributes = Some(grants::attributes(namespace, name));
        let review = SubjectAccessReviewSpec { resource_attributes, ..access::about(user.clone()) };
        access::is_allowed(&self.client, review).await
    }

    /// Checks that the Secret does not exist, is labelled as this token's, or has its owner's consent. Labels prove nothing, and errors are ignored:
    /// this is early advice, and the controller never writes a Secret that is not its own.
    async fn check_secret(
        &self,
        namespace: &str,
        name: &str,
        (secret, policy): (String, CreationPolicy),
    ) -> Result<(), Violation> {
        if let Some(token) = self.other_token_with(namespace, name, &secret) {
            return Err(Violation::SecretOfAnother { secret, token });
        }
        let found = Api::<Secret>::namespaced(self.client.clone(), namespace).get_metadata_opt(&secret).await;
        let Ok(Some(found)) = found else { return Ok(()) };
        match policy {
            CreationPolicy::Owner if !has_labels_of(&found.metadata, name) => {
                Err(Violation::ForeignSecret { secret })
            }
            CreationPolicy::Merge if !consents(&found.metadata, name) => {
                Err(Violation::NoConsent { secret, token: name.to_owned() })
            }
            CreationPolicy::Owner | CreationPolicy::Merge => Ok(()),
        }
    }

    /// The name of another ApiToken that names this Secret.
    fn other_token_with(&self, namespace: &str, name: &str, secret: &str) -> Option<String> {
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
