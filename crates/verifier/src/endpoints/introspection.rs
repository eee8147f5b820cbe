//! `POST /oauth2/introspect`: OAuth 2.0 Token Introspection, RFC 7662.
//!
//! An inactive token is reported as `{"active":false}` and nothing else (section 2.2). The context that section 2.1
//! lets a server ask for is taken as `scope`, `audience` and `client_ip`: a token that lacks what they name is
//! not active for this question. Unknown parameters are ignored, repeated ones refused (RFC 6749 section 3.1).

use std::borrow::Cow;
use std::net::IpAddr;

use serde::Serialize;
use utoipa::ToSchema;

use super::Answer;
use super::authenticated::{Failure, Handler};
use super::json::json;
use super::schema::{IpAddress, Scopes};
use crate::metrics::Outcome;
use crate::snapshot::{Snapshot, TokenCheck};
use tokenward_core::check::{Decision, Identity};
use tokenward_core::token::scope;

/// The endpoint.
pub(super) struct Introspection;

/// The form that is posted.
#[derive(Default, ToSchema)]
pub(super) struct IntrospectionRequest<'a> {
    /// What a client presented. Junk is a token that is not active.
    #[schema(value_type = String)]
    token: Option<Cow<'a, str>>,
    /// The scopes that are needed, all of them.
    #[schema(value_type = Option<Scopes>, nullable = false)]
    scope: Option<Cow<'a, str>>,
    /// The service for which the token is presented.
    #[schema(value_type = Option<String>, nullable = false)]
    audience: Option<Cow<'a, str>>,
    /// The client's address. Without it a token with `constraints.cidrs` is not active.
    #[schema(value_type = Option<IpAddress>, nullable = false)]
    client_ip: Option<Cow<'a, str>>,
}

/// What a token is, as RFC 7662 section 2.2 has it.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct IntrospectionResponse<'e> {
    /// Whether the token is valid for what was asked. If not, the response contains nothing else.
    active: bool,
    /// Its scopes, separated by spaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    scope: Option<&'e str>,
    /// The token's lasting id, `status.tokenId` of the ApiToken.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    client_id: Option<&'e str>,
    /// `Bearer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    token_type: Option<&'static str>,
    /// When it ends as things stand, in seconds since the epoch.
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
    /// The services that it is meant for; absent: any.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Vec<String>)]
    aud: &'e [Box<str>],
    /// The id of this secret of the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    jti: Option<String>,
}

/// Why there is no answer (RFC 6749 section 5.2).
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OAuthError {
    /// A word for machines.
    #[schema(value_type = String, example = "invalid_request")]
    error: &'static str,
    /// A sentence for people.
    #[schema(value_type = String)]
    error_description: Cow<'static, str>,
}

impl Handler for Introspection {
    const NAME: &'static str = "introspect";
    const NON_RESOURCE_URL: &'static str = "/oauth2/introspect";
    const MEDIA_TYPE: &'static str = "application/x-www-form-urlencoded";
    const MAX_BODY: usize = 16 * 1024;

    fn answer(
        snapshot: &Snapshot,
        body: &[u8],
        outcomes: &mut dyn FnMut(Outcome),
    ) -> Result<Answer, Failure> {
        let form = IntrospectionRequest::parse(body)?;
        let Some(token) = &form.token else {
            return Err(Failure::Malformed("the parameter token is missing".into()));
        };
        let scopes = form.scopes()?;
        let client = form.client_ip.as_deref().map(client_ip).transpose()?;
        let check = TokenCheck {
            presented: token.as_bytes(),
            scopes: &scopes,
            audience: form.audience.as_deref(),
            client,
        };
        Ok(snapshot.decide(&check, |decision| {
            outcomes(Outcome::from(&decision));
            json(&match decision {
                Decision::Allow(identity) => IntrospectionResponse::active(identity),
                Decision::Deny(_) => IntrospectionResponse::default(),
            })
        })?)
    }

    fn failure(failure: &Failure) -> Answer {
        json(&OAuthError { error: failure.error(), error_description: failure.message() })
    }
}

impl<'a> IntrospectionRequest<'a> {
    fn parse(body: &'a [u8]) -> Result<Self, Failure> {
        let mut form = Self::default();
        for (name, value) in form_urlencoded::parse(body) {
            let field = match &*name {
                "token" => &mut form.token,
                "scope" => &mut form.scope,
                "audience" => &mut form.audience,
                "client_ip" => &mut form.client_ip,
                _ => continue,
            };
            if field.replace(value).is_some() {
                return Err(Failure::Malformed(
                    format!("the parameter {name} is given more than once").into(),
                ));
            }
        }
        Ok(form)
    }

    /// The scopes that are needed. To name none is a client's mistake, and one that would ask for nothing.
    fn scopes(&self) -> Result<Vec<&str>, Failure> {
        let Some(scope) = &self.scope else { return Ok(Vec::new()) };
        let scopes: Vec<&str> = scope.split_ascii_whitespace().collect();
        if scopes.is_empty() {
            return Err(Failure::Malformed("scope is empty: leave it out, or name one".into()));
        }
        scope::validate(&scopes).map_err(|error| Failure::Malformed(error.to_string().into()))?;
        Ok(scopes)
    }
}

fn client_ip(text: &str) -> Result<IpAddr, Failure> {
    let address: Result<IpAddr, _> = text.parse();
    address
        .map(|address| address.to_canonical())
        .map_err(|_| Failure::Malformed("client_ip is not an IP address".into()))
}

impl<'e> IntrospectionResponse<'e> {
    fn active(identity: Identity<'e>) -> Self {
        Self {
            active: true,
            scope: Some(identity.scopes()),
            client_id: Some(identity.entry.token_id()),
            token_type: Some("Bearer"),
            // Rounded down: a token must not seem to live on after its end.
            exp: identity.ends_at().map(|end| end.as_second()),
            iat: identity.issued_at().map(|issued| issued.as_second()),
            sub: Some(identity.entry.subject()),
            aud: identity.audiences(),
            jti: Some(identity.key_id.to_string()),
        }
    }
}
