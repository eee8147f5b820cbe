//! What a TokenWebhook can subscribe to.

use serde_json::Value;

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

/// All of them.
const ALL: [EventType; 10] = [
    EventType::Created,
    EventType::Rotated,
    EventType::KeyRetired,
    EventType::Revoked,
    EventType::Suspended,
    EventType::Resumed,
    EventType::Expiring,
    EventType::Expired,
    EventType::Deleted,
    EventType::Ping,
];
/// The patterns that match more than one.
const WILDCARDS: [&str; 3] = ["*", "token.*", "webhook.*"];

impl EventType {
    /// What `spec.events` of a TokenWebhook may contain: listed in the CRD, so that a name with a typing error, which would
    /// never match, is rejected.
    pub(super) fn patterns() -> Vec<Value> {
        WILDCARDS.into_iter().chain(ALL.map(Self::as_str)).map(Value::from).collect()
    }

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_type_is_listed_once() {
        let names: BTreeSet<_> = ALL.map(EventType::as_str).into();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn a_wildcard_matches_a_type() {
        for wildcard in WILDCARDS {
            let prefix = wildcard.trim_end_matches('*');
            assert!(ALL.iter().any(|type_| type_.as_str().starts_with(prefix)), "{wildcard}");
        }
    }
}
