//! Why a gateway's request is refused without a decision on a token.

use std::borrow::Cow;

use super::authorization::TokenError;
use crate::metrics::Outcome;
use crate::snapshot::Unavailable;
use tokenward_core::token::scope::ScopesError;

/// Why a gateway's request gets no decision.
pub(super) enum Refusal {
    /// 400: the request breaks the protocol in this way.
    Malformed(Cow<'static, str>),
    /// 401: the request presents no token.
    NoToken,
    /// 503: this replica can't decide now.
    Unavailable(Unavailable),
}

impl From<TokenError> for Refusal {
    fn from(no_token: TokenError) -> Self {
        match no_token {
            TokenError::Missing => Self::NoToken,
            TokenError::Ambiguous(what) => Self::Malformed(what.into()),
        }
    }
}

impl From<Unavailable> for Refusal {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable)
    }
}

impl Refusal {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Malformed(_) => Outcome::Malformed,
            Self::NoToken => Outcome::NoToken,
            Self::Unavailable(_) => Outcome::Unavailable,
        }
    }
}

impl From<ScopesError> for Refusal {
    fn from(error: ScopesError) -> Self {
        Self::Malformed(error.to_string().into())
    }
}
