//! `POST /tokenreview`: `authentication.k8s.io/v1` TokenReview, so that kube-apiserver itself accepts a token.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#webhook-token-authentication>. The
//! token is known to Kubernetes as the user `tokenward:<namespace>:<name>`, of the groups `tokenward:apitokens`
//! and `tokenward:apitokens:<namespace>`, formed as those of service accounts are. What it may do is RBAC's
//! affair. The client's address is unknown here, so a token with `constraints.cidrs` is not accepted.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewStatus, UserInfo};
use serde::Deserialize;
use utoipa::ToSchema;

use super::Answer;
use super::authenticated::{Failure, Handler};
use super::json::{json, parse};
use crate::metrics::Outcome;
use crate::snapshot::{Snapshot, TokenCheck};
use tokenward_core::check::{Code, Decision, Identity};
use tokenward_core::crd::labels::{KEY_ID_EXTRA, SCOPES_EXTRA};

const API_VERSION: &str = <TokenReview as k8s_openapi::Resource>::API_VERSION;
const KIND: &str = <TokenReview as k8s_openapi::Resource>::KIND;

/// The endpoint.
pub(super) struct TokenReviews;

/// A TokenReview as it is asked. Other fields, such as `metadata`, do not matter.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct TokenReviewRequest<'a> {
    #[serde(borrow)]
    #[schema(value_type = String, pattern = r"^authentication\.k8s\.io/v1$")]
    api_version: Cow<'a, str>,
    #[serde(borrow)]
    #[schema(value_type = String, pattern = "^TokenReview$")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    spec: TokenReviewSpec<'a>,
}

/// What is asked.
#[derive(Deserialize, ToSchema)]
struct TokenReviewSpec<'a> {
    /// What a client presented. Junk is a token that is not authenticated.
    #[serde(borrow)]
    #[schema(value_type = String, example = "tw_…")]
    token: Cow<'a, str>,
    /// The services for which it was presented; the response lists those for which it is meant.
    #[serde(default)]
    audiences: Vec<String>,
}

impl Handler for TokenReviews {
    const NAME: &'static str = "tokenreview";
    const NON_RESOURCE_URL: &'static str = "/tokenreview";
    const MEDIA_TYPE: &'static str = "application/json";
    const MAX_BODY: usize = 64 * 1024;

    fn answer(
        snapshot: &Snapshot,
        body: &[u8],
        outcomes: &mut dyn FnMut(Outcome),
    ) -> Result<Answer, Failure> {
        let review: TokenReviewRequest<'_> = parse(body)?;
        validate(&review)?;
        let TokenReviewSpec { token, audiences } = review.spec;
        let check = TokenCheck { presented: token.as_bytes(), scopes: &[], audience: None, client: None };
        let status = snapshot.decide(&check, |decision| {
            let reviewed = match decision {
                Decision::Allow(identity) => authenticated(identity, &audiences),
                Decision::Deny(code) => Err(code),
            };
            outcomes(reviewed.as_ref().err().map_or(Outcome::Allowed, |code| Outcome::Denied(*code)));
            // No `error`: kube-apiserver would take it for a failure of ours.
            reviewed.unwrap_or(TokenReviewStatus { authenticated: Some(false), ..Default::default() })
        });
        Ok(json(&TokenReview { status: Some(status?), ..Default::default() }))
    }

    /// A `Status` of the Kubernetes API conventions.
    fn failure(failure: &Failure) -> Answer {
        let code = failure.status().as_u16();
        let reason = match code {
            400 | 408 | 413 | 415 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            405 => "MethodNotAllowed",
            _ => "ServiceUnavailable",
        };
        json(&serde_json::json!({
            "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
            "message": failure.message(), "reason": reason, "code": code,
        }))
    }
}

/// Refuses another version, which kube-apiserver uses unless configured otherwise.
fn validate(review: &TokenReviewRequest<'_>) -> Result<(), Failure> {
    if (&*review.api_version, &*review.kind) == (API_VERSION, KIND) {
        return Ok(());
    }
    Err(Failure::Malformed(
        format!(
            "not a {KIND} of {API_VERSION}; is kube-apiserver started with \
             --authentication-token-webhook-version=v1?"
        )
        .into(),
    ))
}

/// The user, if the token is meant for one of the audiences. No audience stands for the API server itself, which a
/// token that is bound to others is not meant for.
fn authenticated(identity: Identity<'_>, audiences: &[String]) -> Result<TokenReviewStatus, Code> {
    let bound = identity.audiences();
    let shared: Vec<String> = audiences
        .iter()
        .filter(|audience| bound.is_empty() || bound.iter().any(|own| **own == **audience))
        .cloned()
        .collect();
    if shared.is_empty() && !bound.is_empty() {
        return Err(Code::AudienceMismatch);
    }
    let entry = identity.entry;
    let extra = BTreeMap::from([
        (SCOPES_EXTRA.to_owned(), identity.each_scope().map(str::to_owned).collect()),
        (KEY_ID_EXTRA.to_owned(), vec![identity.key_id.to_string()]),
    ]);
    Ok(TokenReviewStatus {
        authenticated: Some(true),
        audiences: (!shared.is_empty()).then_some(shared),
        user: Some(UserInfo {
            username: Some(format!("tokenward:{}:{}", entry.namespace(), entry.name())),
            uid: Some(entry.token_id().to_owned()),
            groups: Some(vec![
                "tokenward:apitokens".to_owned(),
                format!("tokenward:apitokens:{}", entry.namespace()),
            ]),
            extra: Some(extra),
        }),
        error: None,
    })
}

/// The part of Kubernetes' types that the OpenAPI document describes. Responses are made from k8s-openapi's types.
pub(super) mod schema {
    #![expect(dead_code, reason = "read by the macro alone")]

    use std::collections::BTreeMap;

    use utoipa::ToSchema;

    /// A TokenReview with its answer.
    #[derive(ToSchema)]
    #[schema(rename_all = "camelCase")]
    pub(in super::super) struct TokenReview {
        api_version: String,
        kind: String,
        status: TokenReviewStatus,
    }

    /// What the token is.
    #[derive(ToSchema)]
    struct TokenReviewStatus {
        /// Whether the token is valid.
        authenticated: bool,
        /// Those of the audiences for which it is meant.
        #[schema(nullable = false)]
        audiences: Option<Vec<String>>,
        #[schema(nullable = false)]
        user: Option<UserInfo>,
    }

    /// Whose it is.
    #[derive(ToSchema)]
    struct UserInfo {
        /// `tokenward:<namespace>:<name>`.
        username: String,
        /// `status.tokenId` of the ApiToken.
        uid: String,
        /// `tokenward:apitokens` and `tokenward:apitokens:<namespace>`.
        groups: Vec<String>,
        /// `tokenward.dev/scopes` and `tokenward.dev/key-id`.
        extra: BTreeMap<String, Vec<String>>,
    }

    /// A `Status` of the Kubernetes API.
    #[derive(ToSchema)]
    #[schema(rename_all = "camelCase")]
    pub(in super::super) struct Status {
        api_version: String,
        kind: String,
        status: String,
        message: String,
        reason: String,
        code: u16,
    }
}
