//! Why an authenticated endpoint returns no decision, and the HTTP response to it but for its body, which has the
//! protocol's own form.

use std::borrow::Cow;

use http::StatusCode;
use http::header::{ALLOW, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};

use super::RETRY_AFTER_SECONDS;
use crate::at_least::{Behind, Unmet};
use crate::caller_auth::CallerError;
use crate::outcome::Outcome;
use crate::snapshot::Unavailable;

/// Why an authenticated endpoint returns no decision.
#[derive(Clone, Debug)]
pub(super) enum RequestError {
    /// The body breaks the protocol; the text says how.
    Malformed(Cow<'static, str>),
    /// The method is not POST.
    Method,
    /// The body is not of this media type.
    MediaType(&'static str),
    /// The body has more than this number of bytes.
    TooLarge(usize),
    /// The body ended early, or took too long.
    Incomplete,
    Caller(CallerError),
    Unavailable(Unavailable),
    /// The request asks for something that is not known yet.
    Behind(Behind),
}

impl RequestError {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::MediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Incomplete => StatusCode::REQUEST_TIMEOUT,
            Self::Caller(CallerError::Unauthenticated(_)) => StatusCode::UNAUTHORIZED,
            Self::Caller(CallerError::Forbidden(_)) => StatusCode::FORBIDDEN,
            Self::Caller(CallerError::Unavailable(_)) | Self::Unavailable(_) | Self::Behind(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// The error code, for programs.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Method | Self::MediaType(_) | Self::TooLarge(_) | Self::Incomplete => {
                "invalid_request"
            }
            Self::Caller(CallerError::Unauthenticated(_)) => "unauthenticated",
            Self::Caller(CallerError::Forbidden(_)) => "forbidden",
            Self::Caller(CallerError::Unavailable(_)) => "caller_unknown",
            Self::Unavailable(why) => why.code(),
            // As the API server calls it (`ResourceVersionTooLarge`).
            Self::Behind(_) => "resource_version_too_large",
        }
    }

    /// The explanation, for people.
    pub(super) fn message(&self) -> Cow<'static, str> {
        match self {
            Self::Malformed(how) => how.clone(),
            Self::Method => "only POST is allowed here".into(),
            Self::MediaType(expected) => format!("the Content-Type must be {expected}").into(),
            Self::TooLarge(limit) => format!("the body is larger than {limit} bytes").into(),
            Self::Incomplete => "the body was not complete in time".into(),
            Self::Caller(
                CallerError::Unauthenticated(why)
                | CallerError::Forbidden(why)
                | CallerError::Unavailable(why),
            ) => why.clone(),
            Self::Unavailable(why) => why.message().into(),
            Self::Behind(behind) => behind.to_string().into(),
        }
    }

    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Caller(CallerError::Unavailable(_)) | Self::Unavailable(_) | Self::Behind(_) => {
                Outcome::Unavailable
            }
            Self::Caller(_) => Outcome::CallerDenied,
            _ => Outcome::Malformed,
        }
    }

    /// The header that belongs to the status (RFC 9110 sections 10.2.1, 10.2.3 and 11.6.1).
    pub(super) fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        match self.status() {
            StatusCode::METHOD_NOT_ALLOWED => Some((ALLOW, HeaderValue::from_static("POST"))),
            StatusCode::UNAUTHORIZED => {
                Some((WWW_AUTHENTICATE, HeaderValue::from_static(r#"Bearer realm="tokenward""#)))
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                Some((RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS)))
            }
            _ => None,
        }
    }
}

impl From<CallerError> for RequestError {
    fn from(error: CallerError) -> Self {
        Self::Caller(error)
    }
}

impl From<Unavailable> for RequestError {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable)
    }
}

impl From<Unmet> for RequestError {
    fn from(unmet: Unmet) -> Self {
        match unmet {
            Unmet::NotFollowed => Self::Malformed(unmet.to_string().into()),
            Unmet::Behind(behind) => Self::Behind(behind),
        }
    }
}
