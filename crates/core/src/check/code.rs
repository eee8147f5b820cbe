//! Why a check is denied.

use serde::Serialize;

/// Why a check is denied, for callers that may know. Public endpoints merge most of these into one response, so that
/// a client can't distinguish a revoked token from one that never existed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// No version has this key id and hash.
    NotFound,
    /// The token is revoked, or a lock with the action Revoke stops it.
    Revoked,
    /// The token is past its `expiresAt`.
    Expired,
    /// The token is suspended, until `spec.suspend` is false again, or the lock is deleted that stops it.
    Suspended,
    /// This secret of the token has been replaced, or cut by `rotation.notBefore`.
    Retired,
    /// The client's address is in none of the token's networks.
    IpNotAllowed,
    /// The token is not meant for this audience.
    AudienceMismatch,
    /// The token lacks a required scope.
    InsufficientScope,
}

impl Code {
    /// Every code, in the order in which they are declared.
    pub const ALL: [Self; 8] = [
        Self::NotFound,
        Self::Revoked,
        Self::Expired,
        Self::Suspended,
        Self::Retired,
        Self::IpNotAllowed,
        Self::AudienceMismatch,
        Self::InsufficientScope,
    ];

    /// The name in responses and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "NOT_FOUND",
            Self::Revoked => "REVOKED",
            Self::Expired => "EXPIRED",
            Self::Suspended => "SUSPENDED",
            Self::Retired => "RETIRED",
            Self::IpNotAllowed => "IP_NOT_ALLOWED",
            Self::AudienceMismatch => "AUDIENCE_MISMATCH",
            Self::InsufficientScope => "INSUFFICIENT_SCOPE",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_listed_once_and_spelt_the_same_everywhere() {
        for (index, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, index, "{code:?}");
            assert_eq!(serde_json::to_value(code).expect("JSON"), code.as_str());
        }
    }
}
