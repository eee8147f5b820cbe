//! `POST /oauth2/introspect`: OAuth 2.0 Token Introspection, RFC 7662.
//!
//! An inactive token is reported as `{"active":false}` and nothing else (section 2.2). The context parameters that
//! section 2.1 permits are `scope`, `audience` and `client_ip`: a token that does not meet them is reported as inactive.
//! Unknown parameters are ignored unless they begin with `at_least`, and repeated ones are an error (RFC 6749 section 3.1). A
//! caller without the header `Authorization` is authenticated by the parameter `client_secret`.

use std::borrow::Cow;
use std::net::IpAddr;

use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::HttpResponse;
use super::authenticated::{Handler, SecretInBody};
use super::json::json;
use super::request_error::RequestError;
use super::resource_version::{ResourceVersion, resource_version};
use super::routes::Route;
use super::schema::{IpAddress, Scopes};
use crate::at_least::AtLeast;
use crate::outcome::Outcome;
use crate::snapshot::{Snapshot, TokenCheck};
use tokenward_core::check::{Audience, Decision, Identity};
use tokenward_core::token::scope;

/// The response to a parameter that is none of these, and begins like them.
const AT_LEAST: &str =
    "an unknown parameter: there are at_least_apitokens, at_least_tokenlocks and at_least_clustertokenlocks";

pub(super) struct Introspection;

/// The form that a client posts.
#[derive(Default, ToSchema)]
pub(super) struct IntrospectionRequest<'a> {
    /// What a client presented. Any text is accepted; one that is no token is not active.
    #[schema(value_type = String)]
    token: Option<Cow<'a, str>>,
    /// The scopes that are required, all of them.
    #[schema(value_type = Option<Scopes>, nullable = false)]
    scope: Option<Cow<'a, str>>,
    /// The service for which the token is presented.
    #[schema(value_type = Option<String>, nullable = false)]
    audience: Option<Cow<'a, str>>,
    /// The client's address. Without it a token with `constraints.cidrs` is not active.
    #[schema(value_type = Option<IpAddress>, nullable = false)]
    client_ip: Option<Cow<'a, str>>,
    /// The secret of a caller that sends no header `Authorization`.
    #[schema(value_type = Option<String>, nullable = false)]
    client_secret: Option<Cow<'a, str>>,
    /// That of an ApiToken, which the verifier must know before it decides. It waits for it up to 250 ms; the response is then
    /// 503. Without it, it decides at once, by what it knows.
    #[schema(value_type = Option<ResourceVersion>, nullable = false)]
    at_least_apitokens: Option<Cow<'a, str>>,
    /// The same for a TokenLock.
    #[schema(value_type = Option<ResourceVersion>, nullable = false)]
    at_least_tokenlocks: Option<Cow<'a, str>>,
    /// The same for a ClusterTokenLock.
    #[schema(value_type = Option<ResourceVersion>, nullable = false)]
    at_least_clustertokenlocks: Option<Cow<'a, str>>,
}

/// The metadata of a token, as in RFC 7662 section 2.2.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct IntrospectionResponse<'e> {
    /// Whether the token is valid and meets all that the request requires. If not, the response contains nothing else.
    active: bool,
    /// The token's scopes, separated by spaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    scope: Option<&'e str>,
    /// `status.tokenId` of the ApiToken: the same over all rotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    client_id: Option<&'e str>,
    /// Always `Bearer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    token_type: Option<&'static str>,
    /// When this secret stops working, in seconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    exp: Option<i64>,
    /// When this secret was issued, in seconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    iat: Option<i64>,
    /// The ApiToken, as `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    sub: Option<&'e str>,
    /// The services for which the token is meant; absent: any.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Vec<String>)]
    aud: &'e [Box<str>],
    /// The id of the secret that was presented, as in `status.versions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    jti: Option<String>,
}

/// Why there is no result (RFC 6749 section 5.2).
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OAuthError {
    /// An error code, for programs.
    #[schema(value_type = String, example = "invalid_request")]
    error: &'static str,
    /// An explanation, for people.
    #[schema(value_type = String)]
    error_description: Cow<'static, str>,
}

impl Handler for Introspection {
    const NAME: &'static str = "introspect";
    const ROUTE: Route = Route::Introspection;
    const MEDIA_TYPE: &'static str = "application/x-www-form-urlencoded";
    const MAX_BODY_BYTES: usize = 16 * 1024;

    const SECRET_IN_BODY: Option<SecretInBody> = Some(client_secret);

    type Request = IntrospectionRequest<'static>;
    type Response = IntrospectionResponse<'static>;
    type Error = OAuthError;

    fn respond(
        snapshot: &Snapshot,
        body: &[u8],
        report: &mut dyn FnMut(Outcome),
    ) -> Result<HttpResponse, RequestError> {
        let form = IntrospectionRequest::parse(body)?;
        let Some(token) = &form.token else {
            return Err(RequestError::Malformed("the parameter token is missing".into()));
        };
        let scopes = form.scopes()?;
        let client = form.client_ip.as_deref().map(client_ip).transpose()?;
        snapshot.knows(form.at_least()?, [&**token])?;
        let check = TokenCheck {
            presented: token.as_bytes(),
            scopes: &scopes,
            // Without one, the response has the token's audiences, and it is the client that compares them.
            audience: form.audience.as_deref().map_or(Audience::LeftToCaller, Audience::Is),
            client,
        };
        Ok(snapshot.decide(&check, |decision| {
            report(Outcome::from(&decision));
            json(&match decision {
                Decision::Allow(identity) => IntrospectionResponse::active(identity),
                Decision::Deny(_) => IntrospectionResponse::default(),
            })
        })?)
    }

    fn error_body(error: &RequestError) -> OAuthError {
        // RFC 6749 section 5.2 for the credentials, RFC 6750 section 3.1 for their scope, as RFC 7662 section 2.3 says.
        let code = match error.status() {
            StatusCode::UNAUTHORIZED => "invalid_client",
            StatusCode::FORBIDDEN => "insufficient_scope",
            _ => error.code(),
        };
        OAuthError { error: code, error_description: error.message() }
    }
}

impl<'a> IntrospectionRequest<'a> {
    fn parse(body: &'a [u8]) -> Result<Self, RequestError> {
        let mut form = Self::default();
        for (name, value) in form_urlencoded::parse(body) {
            let field = match &*name {
                "token" => &mut form.token,
                "scope" => &mut form.scope,
                "audience" => &mut form.audience,
                "client_ip" => &mut form.client_ip,
                "client_secret" => &mut form.client_secret,
                "at_least_apitokens" => &mut form.at_least_apitokens,
                "at_least_tokenlocks" => &mut form.at_least_tokenlocks,
                "at_least_clustertokenlocks" => &mut form.at_least_clustertokenlocks,
                // A misspelt one would require nothing.
                name if name.starts_with("at_least") => return Err(RequestError::Malformed(AT_LEAST.into())),
                _ => continue,
            };
            if field.replace(value).is_some() {
                return Err(RequestError::Malformed(
                    format!("the parameter {name} is given more than once").into(),
                ));
            }
        }
        Ok(form)
    }

    fn at_least(&self) -> Result<AtLeast, RequestError> {
        let version = |name, text: &Option<Cow<'_, str>>| resource_version(name, text.as_deref());
        Ok(AtLeast {
            api_tokens: version("at_least_apitokens", &self.at_least_apitokens)?,
            token_locks: version("at_least_tokenlocks", &self.at_least_tokenlocks)?,
            cluster_token_locks: version("at_least_clustertokenlocks", &self.at_least_clustertokenlocks)?,
        })
    }

    /// The scopes that are required. An empty list is a client's mistake, which would require nothing.
    fn scopes(&self) -> Result<Vec<&str>, RequestError> {
        let Some(scope) = &self.scope else { return Ok(Vec::new()) };
        let scopes: Vec<&str> = scope.split_ascii_whitespace().collect();
        if scopes.is_empty() {
            return Err(RequestError::Malformed("scope is empty: leave it out, or name one".into()));
        }
        scope::validate(&scopes).map_err(|error| RequestError::Malformed(error.to_string().into()))?;
        Ok(scopes)
    }
}

/// `client_secret` (RFC 6749 section 2.3.1), which some clients prefer to a header. `client_id` is ignored, because the secret
/// identifies the caller.
fn client_secret(body: &[u8]) -> Option<Zeroizing<String>> {
    let secret = form_urlencoded::parse(body).find(|(name, _)| name == "client_secret");
    secret.map(|(_, secret)| Zeroizing::new(secret.into_owned()))
}

fn client_ip(text: &str) -> Result<IpAddr, RequestError> {
    let address: Result<IpAddr, _> = text.parse();
    address
        .map(|address| address.to_canonical())
        .map_err(|_| RequestError::Malformed("client_ip is not an IP address".into()))
}

impl<'e> IntrospectionResponse<'e> {
    fn active(identity: Identity<'e>) -> Self {
        Self {
            active: true,
            scope: Some(identity.scopes()),
            client_id: Some(identity.entry.token_id()),
            token_type: Some("Bearer"),
            // Rounded down: no client may take a token for valid after its end.
            exp: identity.ends_at().map(|end| end.as_second()),
            iat: identity.issued_at().map(|issued| issued.as_second()),
            sub: Some(identity.entry.subject()),
            aud: identity.audiences(),
            jti: Some(identity.key_id.to_string()),
        }
    }
}
