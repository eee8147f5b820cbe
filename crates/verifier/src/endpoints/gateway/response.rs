//! Responses to gateways in HTTP's terms: the identity in headers, or an error with a challenge as in RFC 6750
//! section 3.

use std::borrow::Cow;

use http::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, StatusCode};
use hyper::body::Bytes;

use super::error::GatewayError;
use super::requirements::{Challenge, Requirements};
use crate::endpoints::verify::VerifyError;
use crate::endpoints::{HttpResponse, RETRY_AFTER_SECONDS, response};
use tokenward_core::check::{Code, Identity};

const ID: HeaderName = HeaderName::from_static("x-tokenward-id");
const SUBJECT: HeaderName = HeaderName::from_static("x-tokenward-subject");
const SCOPES: HeaderName = HeaderName::from_static("x-tokenward-scopes");

/// RFC 7617 section 2.
const BASIC: &str = r#"Basic realm="tokenward""#;

/// Identifies the token to the service behind the gateway.
pub(super) fn insert_identity(headers: &mut HeaderMap, identity: Identity<'_>) {
    let entry = identity.entry;
    for (name, value) in [(ID, entry.token_id()), (SUBJECT, entry.subject()), (SCOPES, identity.scopes())] {
        // The API server admits ASCII only in names, ids and scopes; another value is left out.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
}

/// The response to a token that is not valid for the route.
pub(super) fn deny_response(code: Code, requirements: &Requirements<'_>) -> HttpResponse {
    match code {
        Code::InsufficientScope => {
            let scopes = requirements.scopes.join(" ");
            let challenge =
                format!(r#"Bearer realm="tokenward", error="insufficient_scope", scope="{scopes}""#);
            json_error(
                StatusCode::FORBIDDEN,
                (requirements.challenge == Challenge::Bearer).then_some(&*challenge),
                "insufficient_scope",
                "the token lacks a scope that this needs",
            )
        }
        Code::IpNotAllowed => json_error(
            StatusCode::FORBIDDEN,
            None,
            "ip_not_allowed",
            "the token may not be used from this address",
        ),
        // One response for all of these: it does not reveal whether a token was revoked or never existed.
        Code::NotFound
        | Code::Revoked
        | Code::Expired
        | Code::Suspended
        | Code::Retired
        | Code::AudienceMismatch => with_challenge(
            StatusCode::UNAUTHORIZED,
            Some(HeaderValue::from_static(match requirements.challenge {
                Challenge::Bearer => r#"Bearer realm="tokenward", error="invalid_token""#,
                Challenge::Basic => BASIC,
            })),
            Bytes::from_static(br#"{"error":"invalid_token","message":"the token is not valid"}"#),
        ),
    }
}

/// The response to a request that led to no check.
pub(super) fn error_response(error: &GatewayError) -> HttpResponse {
    match error {
        GatewayError::Malformed(how) => json_error(
            StatusCode::BAD_REQUEST,
            Some(r#"Bearer realm="tokenward", error="invalid_request""#),
            "invalid_request",
            how.clone(),
        ),
        GatewayError::NoToken(Challenge::Bearer) => json_error(
            StatusCode::UNAUTHORIZED,
            Some(r#"Bearer realm="tokenward""#),
            "no_token",
            "present a token as Authorization: Bearer, or as X-API-Key",
        ),
        GatewayError::NoToken(Challenge::Basic) => json_error(
            StatusCode::UNAUTHORIZED,
            Some(BASIC),
            "no_token",
            "present a token as the password of Basic, with any user name",
        ),
        GatewayError::Unavailable(why) => {
            let mut response = json_error(StatusCode::SERVICE_UNAVAILABLE, None, why.code(), why.message());
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
            response
        }
    }
}

fn json_error(
    status: StatusCode,
    challenge: Option<&str>,
    error: &'static str,
    message: impl Into<Cow<'static, str>>,
) -> HttpResponse {
    let body = serde_json::to_vec(&VerifyError { error, message: message.into() }).unwrap_or_default();
    with_challenge(status, challenge.and_then(|text| HeaderValue::from_str(text).ok()), body.into())
}

fn with_challenge(status: StatusCode, challenge: Option<HeaderValue>, body: Bytes) -> HttpResponse {
    let mut response = response(status, "application/json", body);
    if let Some(challenge) = challenge {
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    response
}
