//! The events by name.

/// What a webhook can be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// The first secret is in the Secret.
    Created,
    /// A new secret is in the Secret.
    Rotated,
    /// A replaced secret no longer works.
    KeyRetired,
    /// The token is dead for good.
    Revoked,
    /// The token is refused until it is resumed.
    Suspended,
    /// The token is accepted again.
    Resumed,
    /// The token expires soon.
    Expiring,
    /// The token has expired.
    Expired,
    /// The ApiToken is deleted, and with it the token revoked.
    Deleted,
    /// A sign of life, on creation and on demand.
    Ping,
}

impl EventType {
    /// Its name in `type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "token.created",
            Self::Rotated => "token.rotated",
            Self::KeyRetired => "token.key_retired",
            Self::Revoked => "token.revoked",
            Self::Suspended => "token.suspended",
            Self::Resumed => "token.resumed",
            Self::Expiring => "token.expiring",
            Self::Expired => "token.expired",
            Self::Deleted => "token.deleted",
            Self::Ping => "webhook.ping",
        }
    }
}
