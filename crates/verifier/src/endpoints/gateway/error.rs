//! Why a gateway gets no decision on a token.

use std::borrow::Cow;

use super::presented_token::PresentedTokenError;
use crate::outcome::Outcome;
use crate::snapshot::Unavailable;
use tokenward_core::token::scope::ScopesError;

/// Why a gateway's request leads to no check.
pub(super) enum GatewayError {
    /// 400: the request breaks the protocol; the text says how.
    Malformed(Cow<'static, str>),
    /// 401: the request presents no token.
    NoToken,
    /// 503: this replica can't decide now.
    Unavailable(Unavailable),
}

impl GatewayError {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Malformed(_) => Outcome::Malformed,
            Self::NoToken => Outcome::NoToken,
            Self::Unavailable(_) => Outcome::Unavailable,
        }
    }
}

impl From<PresentedTokenError> for GatewayError {
    fn from(error: PresentedTokenError) -> Self {
        match error {
            PresentedTokenError::Missing => Self::NoToken,
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
