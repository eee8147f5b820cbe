//! The token that a request presents in its headers: by the scheme Bearer (RFC 6750 section 2.1), or in `X-API-Key`.
//!
//! Never in the query, which ends up in logs.

use http::HeaderValue;
use http::header::{HeaderMap, HeaderName};

use crate::authorization::{Authorization, AuthorizationError, RepeatedHeader, Scheme, single_header};

pub(super) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Why a request presents no token, or not exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PresentedTokenError {
    Missing,
    /// More than one candidate; the text names them.
    Ambiguous(&'static str),
}

/// The bytes that a request presents as its token. They may be empty or not UTF-8; such a token is unknown.
pub(super) fn presented_token(headers: &HeaderMap) -> Result<&[u8], PresentedTokenError> {
    let bearer = match Authorization::parse(headers, &[Scheme::Bearer]) {
        Ok(authorization) => Some(authorization.credentials),
        // Another scheme is meant for the service behind the gateway.
        Err(AuthorizationError::Missing | AuthorizationError::UnacceptedScheme) => None,
        Err(AuthorizationError::Repeated) => {
            return Err(PresentedTokenError::Ambiguous("more than one Authorization header"));
        }
    };
    let api_key = single_header(headers, API_KEY)
        .map_err(|RepeatedHeader| PresentedTokenError::Ambiguous("more than one X-API-Key header"))?
        .map(HeaderValue::as_bytes)
        .map(<[u8]>::trim_ascii);
    match (bearer, api_key) {
        (None, None) => Err(PresentedTokenError::Missing),
        (Some(token), None) | (None, Some(token)) => Ok(token),
        (Some(bearer), Some(api_key)) if bearer == api_key => Ok(bearer),
        // RFC 6750 section 2: a client must not use more than one way in a request.
        (Some(_), Some(_)) => {
            Err(PresentedTokenError::Ambiguous("Authorization and X-API-Key present different tokens"))
        }
    }
}
