//! An ApiToken as it comes over the wire, as far as checks need it. What they don't need is skipped, not built.
//!
//! It reads more than today's CRD admits: what a newer controller may have written costs at most the version that
//! it stands in. What can't be read at all is an error, and a token that can't be read is denied.

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// An ApiToken, as far as checks need it.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct WireToken {
    /// Whose it is.
    pub metadata: Metadata,
    pub(in crate::check) spec: Spec,
    pub(in crate::check) status: Option<Status>,
}

/// What every object has, whatever else it holds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The namespace.
    #[serde(default)]
    pub namespace: String,
    /// The name.
    pub name: String,
    /// Up to which change it has been seen.
    pub resource_version: Option<String>,
    pub(in crate::check) deletion_timestamp: Option<IgnoredAny>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::check) struct Spec {
    pub(in crate::check) scopes: Vec<String>,
    pub(in crate::check) audiences: Option<Vec<String>>,
    pub(in crate::check) constraints: Option<Constraints>,
    pub(in crate::check) expires_at: Option<Timestamp>,
    pub(in crate::check) suspend: Option<bool>,
    pub(in crate::check) revoked: Option<bool>,
    pub(in crate::check) rotation: Option<Rotation>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(in crate::check) struct Constraints {
    pub(in crate::check) cidrs: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::check) struct Rotation {
    pub(in crate::check) not_before: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::check) struct Status {
    pub(in crate::check) token_id: Option<String>,
    #[serde(default)]
    pub(in crate::check) versions: Vec<WireVersion>,
    /// That there is a record of a revocation is what counts, not what it says.
    pub(in crate::check) revocation: Option<IgnoredAny>,
}

/// Texts are read later, so that one that can't be read costs this version only.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::check) struct WireVersion {
    pub(in crate::check) key_id: String,
    pub(in crate::check) hash: String,
    pub(in crate::check) state: State,
    pub(in crate::check) scopes: Vec<String>,
    pub(in crate::check) issued_at: String,
    pub(in crate::check) retire_at: Option<Timestamp>,
}

/// Where a version stands in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(in crate::check) enum State {
    Pending,
    Active,
    Retiring,
    Retired,
    Revoked,
    /// Of a controller that knows more states: whether it means a version that works can't be told.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Tests have whole objects; they go the way that the API server's go.
#[cfg(test)]
impl From<&crate::crd::ApiToken> for WireToken {
    fn from(token: &crate::crd::ApiToken) -> Self {
        let text = serde_json::to_string(token).expect("JSON");
        serde_json::from_str(&text).expect("an ApiToken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: &str) -> Result<WireToken, serde_json::Error> {
        let metadata = r#"{"name":"n","namespace":"ns","managedFields":[{"f:spec":{}}]}"#;
        let spec = r#"{"scopes":["a:b"],"displayName":"x","tomorrow":{"never":["seen"]}}"#;
        serde_json::from_str(&format!(r#"{{"metadata":{metadata},"spec":{spec},"status":{status}}}"#))
    }

    #[test]
    fn what_is_not_known_is_skipped() {
        let token = read(r#"{"phase":"Dreaming","conditions":[7],"revocation":{"reason":"Unheard"}}"#);
        let token = token.expect("a token");
        assert_eq!((&*token.metadata.namespace, &*token.metadata.name), ("ns", "n"));
        assert!(token.status.is_some_and(|status| status.revocation.is_some()));
    }

    #[test]
    fn an_unknown_state_is_told_apart() {
        let token =
            read(r#"{"versions":[{"state":"Dreaming","keyId":"k"},{"state":"Active","issuedAt":"?"}]}"#);
        let versions = token.expect("a token").status.expect("a status").versions;
        assert_eq!(versions.iter().map(|v| v.state).collect::<Vec<_>>(), [State::Unknown, State::Active]);
    }

    #[test]
    fn a_limit_that_cannot_be_read_is_an_error() {
        for spec in [
            r#""expiresAt":"soon""#,
            r#""revoked":"yes""#,
            r#""rotation":{"notBefore":1}"#,
            r#""scopes":null"#,
        ] {
            let object = format!(r#"{{"metadata":{{"name":"n"}},"spec":{{"scopes":["a:b"],{spec}}}}}"#);
            assert!(serde_json::from_str::<WireToken>(&object).is_err(), "{spec}");
        }
        assert!(serde_json::from_str::<WireToken>(r#"{"metadata":{"name":"n"},"spec":{}}"#).is_err());
    }
}
