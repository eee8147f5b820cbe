//! The outcome of a check, as every endpoint reports it to the metrics.

use tokenward_core::check::{Code, Decision};

/// The outcome of one check, or of a request that led to none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The token is valid for what the check requires.
    Allowed,
    Denied(Code),
    /// No token was presented.
    NoToken,
    /// The request broke the endpoint's protocol.
    Malformed,
    /// The caller of the endpoint is not authenticated, or not authorized.
    CallerDenied,
    /// This replica can't decide now: it lacks the tokens, the pepper, or the API server's word on the caller.
    Unavailable,
}

impl Outcome {
    /// The value of the label `code`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "ALLOWED",
            Self::Denied(code) => code.as_str(),
            Self::NoToken => "NO_TOKEN",
            Self::Malformed => "MALFORMED",
            Self::CallerDenied => "CALLER_DENIED",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}

impl From<&Decision<'_>> for Outcome {
    fn from(decision: &Decision<'_>) -> Self {
        match decision {
            Decision::Allow(_) => Self::Allowed,
            Decision::Deny(code) => Self::Denied(*code),
        }
    }
}
