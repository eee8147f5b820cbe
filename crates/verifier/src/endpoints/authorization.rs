//! The token that a request presents in its headers: as RFC 6750 section 2.1 has it, or in `X-API-Key`.
//!
//! Never in the query, which ends up in logs.

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

const BEARER: &[u8] = b"Bearer";
pub(super) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Why a request has no one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenError {
    /// It presents nothing.
    Missing,
    /// It presents too much; says what.
    Ambiguous(&'static str),
}

/// What a request presents as its token. It may be no text at all: that is junk like any other.
pub(super) fn presented(headers: &HeaderMap) -> Result<&[u8], TokenError> {
    let bearer = single(headers, AUTHORIZATION, "more than one Authorization header")?;
    // Another scheme is for somebody behind the gateway.
    let bearer = bearer.and_then(|value| bearer_credentials(value.as_bytes()));
    let api_key = single(headers, API_KEY, "more than one X-API-Key header")?;
    let api_key = api_key.map(|value| value.as_bytes().trim_ascii());
    match (bearer, api_key) {
        (None, None) => Err(TokenError::Missing),
        (Some(token), None) | (None, Some(token)) => Ok(token),
        (Some(bearer), Some(api_key)) if bearer == api_key => Ok(bearer),
        // RFC 6750 section 2: a client must not use more than one way in a request.
        (Some(_), Some(_)) => {
            Err(TokenError::Ambiguous("Authorization and X-API-Key present different tokens"))
        }
    }
}

fn single<'h>(
    headers: &'h HeaderMap,
    name: HeaderName,
    otherwise: &'static str,
) -> Result<Option<&'h HeaderValue>, TokenError> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(TokenError::Ambiguous(otherwise)) } else { Ok(first) }
}

/// The credentials of the Bearer scheme, whose name is not case-sensitive (RFC 9110 section 11.1).
fn bearer_credentials(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.trim_ascii().split_at_checked(BEARER.len())?;
    let bearer = scheme.eq_ignore_ascii_case(BEARER) && rest.first().is_none_or(|byte| *byte == b' ');
    bearer.then(|| rest.trim_ascii())
}
