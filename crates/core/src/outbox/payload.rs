//! The body of a request. It is thin, and never contains a secret or a hash: a receiver that needs more reads the ApiToken.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use crate::crd::{OutboxEvent, StoredEvent};

/// An event, with everything that the request body contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The `webhook-id` header.
    pub id: Arc<str>,
    /// The type, such as `token.rotated`.
    pub type_: String,
    /// When the transition happened.
    pub time: Timestamp,
    /// When it was recorded, or stored again for a replay. Its age is counted from here.
    pub since: Timestamp,
    /// `status.tokenId` of the ApiToken. `None`: the event concerns no token.
    pub token_id: Option<String>,
    /// The name of the ApiToken.
    pub name: Option<String>,
    /// The version concerned. `None`: the event concerns no single version.
    pub version: Option<i64>,
    /// The reason of a rotation or revocation.
    pub reason: Option<String>,
    /// The scopes with which that version was issued, while the ApiToken's status has it; at most 2 KiB.
    pub scopes: Option<Vec<String>>,
}

/// Up to how many bytes scopes are included. Longer lists are left out, because many events may have to fit into one
/// status.
const MAX_SCOPES_BYTES: usize = 2048;

fn fits(scopes: &[String]) -> bool {
    scopes.iter().map(String::len).sum::<usize>() <= MAX_SCOPES_BYTES
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    type_: &'a str,
    timestamp: Timestamp,
    data: Data<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    token_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    namespace: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<&'a [String]>,
}

impl Message {
    /// An event from an ApiToken's outbox.
    pub fn of_token(
        event: &OutboxEvent,
        name: &str,
        token_id: Option<&str>,
        scopes: Option<&[String]>,
    ) -> Self {
        Self {
            id: event.id.as_str().into(),
            type_: event.type_.clone(),
            time: event.time,
            since: event.time,
            token_id: token_id.map(str::to_owned),
            name: Some(name.to_owned()),
            version: event.version,
            reason: event.reason.clone(),
            scopes: scopes.filter(|scopes| fits(scopes)).map(<[String]>::to_vec),
        }
    }

    /// An event from a TokenWebhook's outbox.
    pub fn of_stored(event: &StoredEvent) -> Self {
        Self {
            id: event.id.as_str().into(),
            type_: event.type_.clone(),
            time: event.time,
            since: event.since,
            token_id: event.token.as_ref().map(|token| token.token_id.clone()),
            name: event.token.as_ref().map(|token| token.name.clone()),
            version: event.version,
            reason: event.reason.clone(),
            scopes: event.scopes.clone(),
        }
    }

    /// The request body, over which the signature is computed.
    pub fn body(&self, namespace: &str) -> Vec<u8> {
        let body = Body {
            type_: &self.type_,
            timestamp: self.time,
            data: Data {
                token_id: self.token_id.as_deref(),
                name: self.name.as_deref(),
                namespace,
                version: self.version,
                reason: self.reason.as_deref(),
                scopes: self.scopes.as_deref(),
            },
        };
        let mut bytes = Vec::with_capacity(384);
        // Texts and numbers always serialize.
        let _ = serde_json::to_writer(&mut bytes, &body);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_thin() {
        let event = OutboxEvent {
            id: "evt_1".to_owned(),
            type_: "token.revoked".to_owned(),
            time: "2026-11-21T12:00:00Z".parse().expect("an instant"),
            version: Some(3),
            reason: Some("KeyCompromise".to_owned()),
            webhooks: vec!["audit".to_owned()],
        };
        let message = Message::of_token(&event, "backend", Some("tok_1"), Some(&["a:b".to_owned()]));
        let body = String::from_utf8(message.body("demo")).expect("text");
        assert_eq!(
            body,
            r#"{"type":"token.revoked","timestamp":"2026-11-21T12:00:00Z","data":{"tokenId":"tok_1","name":"backend","namespace":"demo","version":3,"reason":"KeyCompromise","scopes":["a:b"]}}"#
        );
    }

    #[test]
    fn a_ping_names_no_token() {
        let time: Timestamp = "2026-11-21T12:00:00Z".parse().expect("an instant");
        let stored = StoredEvent {
            id: "evt_1".to_owned(),
            type_: "webhook.ping".to_owned(),
            time,
            since: time,
            token: None,
            version: None,
            reason: None,
            scopes: None,
        };
        let body = String::from_utf8(Message::of_stored(&stored).body("demo")).expect("text");
        assert_eq!(
            body,
            r#"{"type":"webhook.ping","timestamp":"2026-11-21T12:00:00Z","data":{"namespace":"demo"}}"#
        );
    }
}
