//! `POST /tokenreview`: `authentication.k8s.io/v1` TokenReview, so that kube-apiserver itself accepts a token.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#webhook-token-authentication>. A token
//! authenticates the user `tokenward:<namespace>:<name>` of the groups `tokenward:apitokens` and
//! `tokenward:apitokens:<namespace>`, named like those of ServiceAccounts. RBAC decides what that user may do. Every such user
//! is also of the group `system:authenticated`, so a token needs the scope `tokens:login`. A TokenReview does not contain the
//! client's address, so a token with `constraints.cidrs` is not accepted.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::HttpResponse;
use super::authenticated::Handler;
use super::json::{self, json, parse};
use super::request_error::RequestError;
use super::routes::Route;
use crate::outcome::Outcome;
use crate::snapshot::{Snapshot, TokenCheck};
use tokenward_core::check::{Audience, Code, Decision, Identity};
use tokenward_core::crd::labels::{KEY_ID_EXTRA, SCOPES_EXTRA};

const API_VERSION: &str = "authentication.k8s.io/v1";
const KIND: &str = "TokenReview";
/// The scope without which a token is no user of kube-apiserver. Like all that begin with `tokens:` it takes a grant.
const SCOPE: &str = "tokens:login";

pub(super) struct TokenReviews;

/// A TokenReview as a client creates it. Other fields, such as `metadata`, are ignored.
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

/// The token to review.
#[derive(Deserialize, ToSchema)]
struct TokenReviewSpec<'a> {
    /// What a client presented. Any text is accepted; one that is no token is not authenticated.
    #[serde(borrow)]
    #[schema(value_type = String, example = "tw_…")]
    token: Cow<'a, str>,
    /// The services for which it was presented; the response lists those for which it is meant.
    #[serde(default)]
    audiences: Vec<String>,
}

/// A TokenReview with its status.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct TokenReview {
    #[schema(value_type = String)]
    api_version: &'static str,
    #[schema(value_type = String)]
    kind: &'static str,
    /// Empty, but required by the schema of Kubernetes, as is `spec`.
    #[schema(ignore)]
    metadata: Empty,
    #[schema(ignore)]
    spec: Empty,
    status: TokenReviewStatus,
}

/// The result of a TokenReview.
#[derive(Serialize, ToSchema)]
struct TokenReviewStatus {
    /// Whether the token is valid.
    authenticated: bool,
    /// Those of the requested audiences for which the token is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    audiences: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    user: Option<UserInfo>,
}

/// The user that a token authenticates.
#[derive(Serialize, ToSchema)]
struct UserInfo {
    /// `tokenward:<namespace>:<name>`.
    username: String,
    /// `status.tokenId` of the ApiToken.
    uid: String,
    /// `tokenward:apitokens` and `tokenward:apitokens:<namespace>`.
    groups: Vec<String>,
    /// `tokenward.dev/scopes` and `tokenward.dev/key-id`.
    #[schema(value_type = BTreeMap<String, Vec<String>>)]
    extra: BTreeMap<&'static str, Vec<String>>,
}

/// A `Status` of the Kubernetes API.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    #[schema(value_type = String)]
    api_version: &'static str,
    #[schema(value_type = String)]
    kind: &'static str,
    #[schema(ignore)]
    metadata: Empty,
    #[schema(value_type = String)]
    status: &'static str,
    #[schema(value_type = String)]
    message: Cow<'static, str>,
    #[schema(value_type = String)]
    reason: &'static str,
    code: u16,
}

/// An empty object.
#[derive(Serialize)]
struct Empty {}

impl Handler for TokenReviews {
    const NAME: &'static str = "tokenreview";
    const ROUTE: Route = Route::TokenReview;
    const MEDIA_TYPE: &'static str = json::MEDIA_TYPE;
    const MAX_BODY_BYTES: usize = 64 * 1024;

    type Request = TokenReviewRequest<'static>;
    type Response = TokenReview;
    type Error = Status;

    fn respond(
        snapshot: &Snapshot,
        body: &[u8],
        report: &mut dyn FnMut(Outcome),
    ) -> Result<HttpResponse, RequestError> {
        let review: TokenReviewRequest<'_> = parse(body)?;
        validate(&review)?;
        let TokenReviewSpec { token, audiences } = review.spec;
        let check = TokenCheck {
            presented: token.as_bytes(),
            scopes: &[SCOPE],
            audience: Audience::LeftToCaller,
            client: None,
        };
        let status = snapshot.decide(&check, |decision| {
            let reviewed = match decision {
                Decision::Allow(identity) => authenticated(identity, &audiences),
                Decision::Deny(code) => Err(code),
            };
            report(reviewed.as_ref().err().map_or(Outcome::Allowed, |code| Outcome::Denied(*code)));
            // No `error`: kube-apiserver would take it for a failure of the webhook.
            reviewed.unwrap_or(TokenReviewStatus { authenticated: false, audiences: None, user: None })
        })?;
        Ok(json(&TokenReview {
            api_version: API_VERSION,
            kind: KIND,
            metadata: Empty {},
            spec: Empty {},
            status,
        }))
    }

    fn error_body(error: &RequestError) -> Status {
        let code = error.status().as_u16();
        let reason = match code {
            400 | 408 | 413 | 415 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            405 => "MethodNotAllowed",
            _ => "ServiceUnavailable",
        };
        Status {
            api_version: "v1",
            kind: "Status",
            metadata: Empty {},
            status: "Failure",
            message: error.message(),
            reason,
            code,
        }
    }
}

/// Rejects `v1beta1`, which kube-apiserver sends unless configured otherwise.
fn validate(review: &TokenReviewRequest<'_>) -> Result<(), RequestError> {
    if (&*review.api_version, &*review.kind) == (API_VERSION, KIND) {
        return Ok(());
    }
    Err(RequestError::Malformed(
        format!(
            "not a {KIND} of {API_VERSION}; is kube-apiserver started with \
             --authentication-token-webhook-version=v1?"
        )
        .into(),
    ))
}

/// The status of a valid token, if it is meant for one of the requested audiences. If none is requested, the audience is
/// the API server itself, for which a token with audiences is not meant.
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
        (SCOPES_EXTRA, identity.each_scope().map(str::to_owned).collect()),
        (KEY_ID_EXTRA, vec![identity.key_id.to_string()]),
    ]);
    Ok(TokenReviewStatus {
        authenticated: true,
        audiences: (!shared.is_empty()).then_some(shared),
        user: Some(UserInfo {
            username: format!("tokenward:{}:{}", entry.namespace(), entry.name()),
            uid: entry.token_id().to_owned(),
            groups: vec![
                "tokenward:apitokens".to_owned(),
                format!("tokenward:apitokens:{}", entry.namespace()),
            ],
            extra,
        }),
    })
}
