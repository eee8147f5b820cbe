/// A type of event to which TokenWebhooks can subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// The Secret contains the first token.
    Created,
    /// The Secret contains a new token.
    Rotated,
    /// A replaced version no longer works.
    KeyRetired,
    /// The token is revoked for good.
    Revoked,
    /// The token is rejected until it is resumed.
    Suspended,
    /// The token is accepted again.
    Resumed,
    /// The token expires soon.
    Expiring,
    /// The token has expired.
    Expired,
    /// The ApiToken is deleted, and with it the token revoked.
    Deleted,
    /// A test event, on creation of the TokenWebhook and on demand.
    Ping,
}

impl EventType {
    /// The `type` in the request body.
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
