//! Responses of the public endpoints, in HTTP's terms: the identity in headers, or a refusal as RFC 6750
//! section 3 has it, with a body for people.

use std::borrow::Cow;

use http::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, StatusCode};
use hyper::body::Bytes;

use super::Answer;
use super::refusal::Refusal;
use super::requirements::Requirements;
use super::verify::VerifyError;
use tokenward_core::check::{Code, Identity};

const ID: HeaderName = HeaderName::from_static("x-tokenward-id");
const SUBJECT: HeaderName = HeaderName::from_static("x-tokenward-subject");
const SCOPES: HeaderName = HeaderName::from_static("x-tokenward-scopes");

/// Identifies the token to the service behind the gateway.
pub(super) fn insert_identity(headers: &mut HeaderMap, identity: Identity<'_>) {
    let entry = identity.entry;
    for (name, value) in [(ID, entry.token_id()), (SUBJECT, entry.subject()), (SCOPES, identity.scopes())] {
        // Names, ids and scopes are ASCII by the API server's rules; a value that is not is left out.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
}

/// The response to a token that is not valid for the route.
pub(super) fn denial(code: Code, needs: &Requirements<'_>) -> Answer {
    match code {
        Code::InsufficientScope => {
            let scopes = needs.scopes.join(" ");
            let challenge =
                format!(r#"Bearer realm="tokenward", error="insufficient_scope", scope="{scopes}""#);
            answer(
                StatusCode::FORBIDDEN,
                Some(&challenge),
                "insufficient_scope",
                "the token lacks a scope that this needs",
            )
        }
        Code::IpNotAllowed => answer(
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
        | Code::AudienceMismatch => answer_with(
            StatusCode::UNAUTHORIZED,
            Some(HeaderValue::from_static(r#"Bearer realm="tokenward", error="invalid_token""#)),
            Bytes::from_static(br#"{"error":"invalid_token","message":"the token is not valid"}"#),
        ),
    }
}

/// The response to a request on which there is no decision.
pub(super) fn refused(refusal: &Refusal) -> Answer {
    match refusal {
        Refusal::Malformed(what) => answer(
            StatusCode::BAD_REQUEST,
            Some(r#"Bearer realm="tokenward", error="invalid_request""#),
            "invalid_request",
            what.clone(),
        ),
        Refusal::NoToken => answer(
            StatusCode::UNAUTHORIZED,
            Some(r#"Bearer realm="tokenward""#),
            "no_token",
            "present a token as Authorization: Bearer, or as X-API-Key",
        ),
        Refusal::Unavailable(why) => {
            let mut answer = answer(StatusCode::SERVICE_UNAVAILABLE, None, why.error(), why.message());
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            answer
        }
    }
}

fn answer(
    status: StatusCode,
    challenge: Option<&str>,
    error: &'static str,
    message: impl Into<Cow<'static, str>>,
) -> Answer {
    let body = serde_json::to_vec(&VerifyError { error, message: message.into() }).unwrap_or_default();
    answer_with(status, challenge.and_then(|text| HeaderValue::from_str(text).ok()), body.into())
}

fn answer_with(status: StatusCode, challenge: Option<HeaderValue>, body: Bytes) -> Answer {
    let mut answer = super::body(status, "application/json", body);
    if let Some(challenge) = challenge {
        answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    answer
}
