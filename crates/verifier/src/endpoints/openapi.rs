//! The OpenAPI 3.1 document of the HTTP endpoints, from the types that they read and write.
//!
//! Served at `/openapi.json`, printed by `tokenward openapi`, and stored as `openapi.json` in the repository.

use utoipa::openapi::schema::Type;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Content, Header, Object, Ref, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::introspection::{IntrospectionRequest, IntrospectionResponse, OAuthError};
use super::schema::Scope;
use super::token_review::TokenReviewRequest;
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
    components(schemas(VerifyError, OAuthError, Status)),
    modifiers(&CallerAuthenticator, &Failures),
)]
struct Document;

/// How callers show who they are.
struct CallerAuthenticator;

impl Modify for CallerAuthenticator {
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
            scheme(HttpAuthScheme::Basic, "The same as the password; the user name is ignored."),
        );
        components
            .add_security_scheme("presented", scheme(HttpAuthScheme::Bearer, "The token that is checked."));
        let header = ApiKeyValue::with_description("X-API-Key", "The token that is checked.");
        components.add_security_scheme("presented_as_key", SecurityScheme::ApiKey(ApiKey::Header(header)));
    }
}

/// The authenticated endpoints fail alike, each in its protocol's form.
struct Failures;

impl Failures {
    const FORMS: [(&str, &str); 4] = [
        ("/v1/verify", "VerifyError"),
        ("/v1/verify:batch", "VerifyError"),
        ("/oauth2/introspect", "OAuthError"),
        ("/tokenreview", "Status"),
    ];
    /// The status, what it says, and the header that comes with it.
    const STATUSES: [(&str, &str, Option<&str>); 7] = [
        ("400", "The request is malformed.", None),
        ("401", "The caller did not show who it is.", Some("WWW-Authenticate")),
        ("403", "The caller may not ask.", None),
        ("408", "The body did not come to its end in time.", None),
        ("413", "The body is too large.", None),
        ("415", "The body is of another media type.", None),
        ("503", "This replica does not know the tokens, or the caller.", Some("Retry-After")),
    ];
}

impl Modify for Failures {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for (path, form) in Self::FORMS {
            let Some(operation) = document.paths.paths.get_mut(path).and_then(|item| item.post.as_mut())
            else {
                continue;
            };
            for (status, description, header) in Self::STATUSES {
                let response = ResponseBuilder::new()
                    .description(description)
                    .content("application/json", Content::new(Some(Ref::from_schema_name(form))));
                let response = match header {
                    Some(name) => response.header(name, Header::new(Object::with_type(Type::String))),
                    None => response,
                };
                operation.responses.responses.insert(status.to_owned(), response.build().into());
            }
        }
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
        ("scope" = Option<Vec<Scope>>, Query, max_items = 64,
         description = "A scope that is needed. Repeated: all of them."),
        ("audience" = Option<String>, Query, description = "The service for which the token is presented."),
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
    security(("presented" = []), ("presented_as_key" = [])),
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
    request_body = TokenReviewRequest,
    responses(
        (status = 200, description = "The review with its status.", body = TokenReview),
    ),
    security(("bearer" = []), ("basic" = [])),
)]
#[expect(dead_code, reason = "documentation")]
fn token_review() {}
