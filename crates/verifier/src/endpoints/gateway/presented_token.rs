//! The token that a request presents in its headers: by the scheme Bearer (RFC 6750 section 2.1), as the password of Basic
//! (RFC 7617), which is all that docker, pip or git can send, or in `X-API-Key`.
//!
//! A request may have credentials of the service behind the gateway beside it, such as a JWT. What has not the form of our
//! tokens is not ours, as long as something else is. Never in the query, which ends up in logs.

use std::ops::Deref;
use std::str;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::header::{HeaderMap, HeaderName};
use zeroize::Zeroizing;

use crate::authorization::{Authorization, AuthorizationError, RepeatedHeader, Scheme, single_header};
use tokenward_core::token::Token;

pub(super) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The bytes that a request presents as its token. They may be empty or not UTF-8; such a token is unknown.
#[derive(Debug)]
pub(super) enum PresentedToken<'h> {
    Header(&'h [u8]),
    /// A password, which is encoded in its header.
    Password(Zeroizing<Vec<u8>>),
}

/// Why a request presents no token, or not exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PresentedTokenError {
    Missing,
    /// More than one candidate; the text names them.
    Ambiguous(&'static str),
}

impl Deref for PresentedToken<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Header(bytes) => bytes,
            Self::Password(bytes) => bytes,
        }
    }
}

/// The token that a request presents.
pub(super) fn presented_token(headers: &HeaderMap) -> Result<PresentedToken<'_>, PresentedTokenError> {
    let authorization = authorization(headers)?;
    let api_key = single_header(headers, API_KEY)
        .map_err(|RepeatedHeader| PresentedTokenError::Ambiguous("more than one X-API-Key header"))?
        .map(HeaderValue::as_bytes)
        .map(<[u8]>::trim_ascii)
        .map(PresentedToken::Header);
    match (authorization, api_key) {
        (None, None) => Err(PresentedTokenError::Missing),
        (Some(token), None) | (None, Some(token)) => Ok(token),
        (Some(authorization), Some(api_key)) => match (is_token(&authorization), is_token(&api_key)) {
            // RFC 6750 section 2: a client must not use more than one way in a request.
            (true, true) if *authorization != *api_key => {
                Err(PresentedTokenError::Ambiguous("Authorization and X-API-Key present different tokens"))
            }
            (_, true) => Ok(api_key),
            (_, false) => Ok(authorization),
        },
    }
}

/// The candidate in `Authorization`. Another scheme, and a password that is no token, is meant for the service behind the
/// gateway.
fn authorization(headers: &HeaderMap) -> Result<Option<PresentedToken<'_>>, PresentedTokenError> {
    match Authorization::parse(headers, &[Scheme::Bearer, Scheme::Basic]) {
        Ok(Authorization { scheme: Scheme::Bearer, credentials }) => {
            Ok(Some(PresentedToken::Header(credentials)))
        }
        Ok(Authorization { scheme: Scheme::Basic, credentials }) => {
            Ok(password(credentials).map(PresentedToken::Password).filter(|password| is_token(password)))
        }
        Err(AuthorizationError::Missing | AuthorizationError::UnacceptedScheme) => Ok(None),
        Err(AuthorizationError::Repeated) => {
            Err(PresentedTokenError::Ambiguous("more than one Authorization header"))
        }
    }
}

/// The password in the credentials of Basic: what follows the first colon (RFC 7617 section 2).
fn password(credentials: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let decoded = Zeroizing::new(STANDARD.decode(credentials).ok()?);
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some(Zeroizing::new(decoded[colon + 1..].to_vec()))
}

/// Whether this has the form of our tokens, whether or not there is such a token.
fn is_token(presented: &[u8]) -> bool {
    str::from_utf8(presented).is_ok_and(|text| Token::parse(text).is_some())
}
