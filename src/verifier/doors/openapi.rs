//! The OpenAPI 3.1 document of the HTTP doors, from the types that they read and write.
//!
//! Served at `/openapi.json`, printed by `tokenward openapi`, and kept as `openapi.json` in the repository.

use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::introspection::{IntrospectionRequest, IntrospectionResponse, OAuthError};
use super::token_review::schema::{Status, TokenReview};
use super::verify::{VerifyBatchRequest, VerifyBatchResponse, VerifyError, VerifyRequest, VerifyResponse};

/// The document, as indented JSON.
pub fn json() -> String {
    let mut document = Document::openapi().to_pretty_json().unwrap_or_default();
    document.push('\n');
    document
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "tokenward verifier",
        description = "Is this presented token valid, and for these scopes?",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(auth, verify, verify_batch, introspect, token_review),
    modifiers(&Callers),
)]
struct Document;

/// How callers show who they are.
struct Callers;

impl Modify for Callers {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = |scheme, description: &str| {
            let mut http = Http::new(scheme);
            http.description = Some(description.to_owned());
            SecurityScheme::Http(http)
        };
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(
            "bearer",
            scheme(
                HttpAuthScheme::Bearer,
                "The caller's: a ServiceAccount token of the audience tokenward, or a tokenward token with the scope \
                 tokens:verify.",
            ),
        );
        components.add_security_scheme(
            "basic",
            scheme(HttpAuthScheme::Basic, "The same as the password; the user name is not looked at."),
        );
        components.add_security_scheme(
            "presented",
            scheme(HttpAuthScheme::Bearer, "The token that is checked. X-API-Key holds it as well."),
        );
    }
}

// What follows is read by the macro alone: an operation's text, parameters and answers.

/// Forward-auth: may this request pass?
///
/// Asked by gateways: nginx `auth_request`, Traefik ForwardAuth, Caddy `forward_auth`, HAProxy, Envoy. Any method
/// will do, and below `/auth/` any path.
#[utoipa::path(
    get,
    path = "/auth",
    tag = "gateways",
    params(
        ("scope" = Option<Vec<String>>, Query, description = "A scope that is needed. Repeated: all of them."),
        ("audience" = Option<String>, Query, description = "The service for which the token is presented."),
        ("X-API-Key" = Option<String>, Header, description = "The token, instead of Authorization: Bearer."),
    ),
    responses(
        (status = 200, description = "Valid, with all the scopes.", headers(
            ("X-Tokenward-Id" = String, description = "`status.tokenId` of the ApiToken"),
            ("X-Tokenward-Subject" = String, description = "The ApiToken, as `namespace/name`"),
            ("X-Tokenward-Scopes" = String, description = "Its scopes, separated by spaces"),
        )),
        (status = 400, description = "The request is malformed.", body = VerifyError),
        (status = 401, description = "No token, or not a valid one.", body = VerifyError),
        (status = 403, description = "Valid, but without a scope, or not from this address.", body = VerifyError),
        (status = 503, description = "This replica does not know the tokens.", body = VerifyError),
    ),
    security(("presented" = [])),
)]
#[expect(dead_code, reason = "documentation")]
fn auth() {}

/// Checks a token, and says why it is not valid.
#[utoipa::path(
    post,
    path = "/v1/verify",
    tag = "services",
    request_body = VerifyRequest,
    responses(
        (status = 200, description = "The answer: valid or not.", body = VerifyResponse),
        (status = 400, description = "The request is malformed.", body = VerifyError),
        (status = 401, description = "The caller did not show who it is.", body = VerifyError),
        (status = 403, description = "The caller may not ask.", body = VerifyError),
        (status = 408, description = "The body did not come to its end in time.", body = VerifyError),
        (status = 413, description = "The body is too large.", body = VerifyError),
        (status = 415, description = "The body is not JSON.", body = VerifyError),
        (status = 503, description = "This replica does not know the tokens, or the caller.", body = VerifyError),
    ),
    security(("bearer" = []), ("basic" = [])),
)]
#[expect(dead_code, reason = "documentation")]
fn verify() {}

/// Checks up to 100 tokens.
#[utoipa::path(
    post,
    path = "/v1/verify:batch",
    tag = "services",
    request_body = VerifyBatchRequest,
    responses(
        (status = 200, description = "The answers, in the order of the checks.", body = VerifyBatchResponse),
        (status = 400, description = "The request is malformed.", body = VerifyError),
        (status = 401, description = "The caller did not show who it is.", body = VerifyError),
        (status = 403, description = "The caller may not ask.", body = VerifyError),
        (status = 408, description = "The body did not come to its end in time.", body = VerifyError),
        (status = 413, description = "The body is too large.", body = VerifyError),
        (status = 415, description = "The body is not JSON.", body = VerifyError),
        (status = 503, description = "This replica does not know the tokens, or the caller.", body = VerifyError),
    ),
    security(("bearer" = []), ("basic" = [])),
)]
#[expect(dead_code, reason = "documentation")]
fn verify_batch() {}

/// OAuth 2.0 Token Introspection, RFC 7662.
#[utoipa::path(
    post,
    path = "/oauth2/introspect",
    tag = "services",
    request_body(content = IntrospectionRequest, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, description = "What the token is; `active: false` alone if it is not valid.",
         body = IntrospectionResponse),
        (status = 400, description = "The request is malformed.", body = OAuthError),
        (status = 401, description = "The caller did not show who it is.", body = OAuthError),
        (status = 403, description = "The caller may not ask.", body = OAuthError),
        (status = 408, description = "The body did not come to its end in time.", body = OAuthError),
        (status = 413, description = "The body is too large.", body = OAuthError),
        (status = 415, description = "The body is not a form.", body = OAuthError),
        (status = 503, description = "This replica does not know the tokens, or the caller.", body = OAuthError),
    ),
    security(("bearer" = []), ("basic" = [])),
)]
#[expect(dead_code, reason = "documentation")]
fn introspect() {}

/// Kubernetes TokenReview, for kube-apiserver's `--authentication-token-webhook-config-file`.
///
/// <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/>
#[utoipa::path(
    post,
    path = "/tokenreview",
    tag = "kubernetes",
    request_body = TokenReview,
    responses(
        (status = 200, description = "The review with its status.", body = TokenReview),
        (status = 400, description = "The request is malformed.", body = Status),
        (status = 401, description = "The caller did not show who it is.", body = Status),
        (status = 403, description = "The caller may not ask.", body = Status),
        (status = 408, description = "The body did not come to its end in time.", body = Status),
        (status = 413, description = "The body is too large.", body = Status),
        (status = 415, description = "The body is not JSON.", body = Status),
        (status = 503, description = "This replica does not know the tokens, or the caller.", body = Status),
    ),
    security(("bearer" = []), ("basic" = [])),
)]
#[expect(dead_code, reason = "documentation")]
fn token_review() {}
