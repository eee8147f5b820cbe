//! `POST /tokenreview`: `authentication.k8s.io/v1` TokenReview, so that kube-apiserver itself accepts a token.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#webhook-token-authentication>. The
//! token is known to Kubernetes as the user `tokenward:<namespace>:<name>`, of the groups `tokenward:apitokens`
//! and `tokenward:apitokens:<namespace>`, formed as those of service accounts are. What it may do is RBAC's
//! affair. A client's address is not told here, so a token with `constraints.cidrs` is not accepted.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewStatus, UserInfo};
use kube::core::TypeMeta;
use zeroize::Zeroize;

use super::super::metrics::Outcome;
use super::super::view::{Question, View};
use super::Answer;
use super::guarded::{Door, Failure, json};
use crate::check::{Code, Decision, Identity};

const API_VERSION: &str = <TokenReview as k8s_openapi::Resource>::API_VERSION;
const KIND: &str = <TokenReview as k8s_openapi::Resource>::KIND;

/// The door.
pub(super) struct TokenReviews {
    view: Arc<View>,
}

impl TokenReviews {
    pub(super) fn new(view: Arc<View>) -> Self {
        Self { view }
    }
}

impl Door for TokenReviews {
    const NAME: &'static str = "tokenreview";
    const RIGHT: &'static str = "/tokenreview";
    const MEDIA_TYPE: &'static str = "application/json";
    const MAX_BODY: usize = 64 * 1024;

    fn answer(&self, body: &[u8], outcomes: &mut dyn FnMut(Outcome)) -> Result<Answer, Failure> {
        let mut review = parse(body)?;
        let mut token = review.spec.token.take().unwrap_or_default();
        let audiences = review.spec.audiences.take().unwrap_or_default();
        let question = Question { presented: token.as_bytes(), scopes: &[], audience: None, client: None };
        let status = self.view.decide(&question, |decision| {
            let reviewed = match decision {
                Decision::Allow(identity) => authenticated(identity, &audiences),
                Decision::Deny(code) => Err(code),
            };
            outcomes(reviewed.as_ref().err().map_or(Outcome::Allowed, |code| Outcome::Denied(*code)));
            // No `error`: kube-apiserver would take it for a failure of ours.
            reviewed.unwrap_or(TokenReviewStatus { authenticated: Some(false), ..Default::default() })
        });
        token.zeroize();
        Ok(json(&TokenReview { status: Some(status?), ..Default::default() }))
    }

    /// A `Status` of the Kubernetes API conventions.
    fn failure(&self, failure: &Failure) -> Answer {
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

/// Reads a review. The message tells no value, which may be a token.
fn parse(body: &[u8]) -> Result<TokenReview, Failure> {
    let malformed = |error: serde_json::Error| {
        let (line, column) = (error.line(), error.column());
        Failure::Malformed(format!("not a {KIND} of {API_VERSION}: line {line}, column {column}").into())
    };
    let TypeMeta { api_version, kind } = serde_json::from_slice(body).map_err(malformed)?;
    if (api_version.as_str(), kind.as_str()) != (API_VERSION, KIND) {
        return Err(Failure::Malformed(
            format!(
                "not a {KIND} of {API_VERSION}; is kube-apiserver started with \
                 --authentication-token-webhook-version=v1?"
            )
            .into(),
        ));
    }
    serde_json::from_slice(body).map_err(malformed)
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
        ("tokenward.dev/scopes".to_owned(), identity.scopes().split(' ').map(str::to_owned).collect()),
        ("tokenward.dev/key-id".to_owned(), vec![identity.key_id.to_string()]),
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

/// What of Kubernetes' types the OpenAPI document tells. The types themselves are k8s-openapi's.
pub(super) mod schema {
    #![expect(dead_code, reason = "read by the macro alone")]

    use std::collections::BTreeMap;

    use utoipa::ToSchema;

    /// A TokenReview of `authentication.k8s.io/v1`.
    #[derive(ToSchema)]
    #[schema(rename_all = "camelCase")]
    pub(in super::super) struct TokenReview {
        #[schema(pattern = "^authentication\\.k8s\\.io/v1$")]
        api_version: String,
        #[schema(pattern = "^TokenReview$")]
        kind: String,
        spec: TokenReviewSpec,
        status: Option<TokenReviewStatus>,
    }

    /// What is asked.
    #[derive(ToSchema)]
    struct TokenReviewSpec {
        /// What a client presented.
        token: Option<String>,
        /// The services for which it was presented; the answer tells those for which it is meant.
        audiences: Option<Vec<String>>,
    }

    /// What the token is.
    #[derive(ToSchema)]
    struct TokenReviewStatus {
        /// Whether the token is valid.
        authenticated: Option<bool>,
        audiences: Option<Vec<String>>,
        user: Option<UserInfo>,
    }

    /// Whose it is.
    #[derive(ToSchema)]
    struct UserInfo {
        /// `tokenward:<namespace>:<name>`.
        username: Option<String>,
        /// `status.tokenId` of the ApiToken.
        uid: Option<String>,
        groups: Option<Vec<String>>,
        /// `tokenward.dev/scopes` and `tokenward.dev/key-id`.
        extra: Option<BTreeMap<String, Vec<String>>>,
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
