//! Why a gateway gets no decision on a token.

use std::borrow::Cow;

use super::presented_token::PresentedTokenError;
use super::requirements::Challenge;
use crate::outcome::Outcome;
use crate::snapshot::Unavailable;
use tokenward_core::token::scope::ScopesError;

/// Why a gateway's request leads to no check.
pub(super) enum GatewayError {
    /// 400: the request breaks the protocol; the text says how.
    Malformed(Cow<'static, str>),
    /// 401: the request presents no token, and is asked for one by this scheme.
    NoToken(Challenge),
    /// 503: this replica can't decide now.
    Unavailable(Unavailable),
}

impl GatewayError {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Malformed(_) => Outcome::Malformed,
            Self::NoToken(_) => Outcome::NoToken,
            Self::Unavailable(_) => Outcome::Unavailable,
        }
    }
}

impl GatewayError {
    /// Why a request presents no token at a route with this challenge.
    pub(super) fn of_presented(error: PresentedTokenError, challenge: Challenge) -> Self {
        match error {
            PresentedTokenError::Missing => Self::NoToken(challenge),
            PresentedTokenError::Ambiguous(candidates) => Self::Malformed(candidates.into()),
        }
    }
}

impl From<ScopesError> for GatewayError {
    fn from(error: ScopesError) -> Self {
        Self::Malformed(error.to_string().into())
    }
}

impl From<Unavailable> for GatewayError {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable)
    }
}
