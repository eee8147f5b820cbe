//! The fields of an ApiToken that checks need, deserialized directly. All others are skipped without being allocated.
//!
//! It is a tolerant reader: a value that only a newer CRD admits invalidates at most the version that contains it. Any
//! other invalid value is an error, and a token that can't be parsed is denied.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::crd::{Owner, VersionState};

/// An ApiToken, as far as checks need it.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct WireToken {
    /// The metadata that checks need.
    pub metadata: Metadata,
    pub(in crate::check) spec: Spec,
    pub(in crate::check) status: Option<Status>,
}

/// The metadata of any Kubernetes object, as far as checks need it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The namespace. Empty in an object that has none.
    #[serde(default)]
    pub namespace: String,
    /// The name of the object.
    pub name: String,
    #[serde(default)]
    pub(in crate::check) uid: String,
    /// The resourceVersion, from which a watch can continue.
    pub resource_version: Option<String>,
    pub(in crate::check) creation_timestamp: Option<Timestamp>,
    pub(in crate::check) labels: Option<BTreeMap<String, String>>,
    pub(in crate::check) deletion_timestamp: Option<IgnoredAny>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::check) struct Spec {
    pub(in crate::check) owner: Option<Owner>,
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
    pub(in crate::check) rotation: Option<Rotation>,
    #[serde(default)]
    pub(in crate::check) versions: Vec<WireVersion>,
    /// Its presence alone revokes the token, whatever it contains.
    pub(in crate::check) revocation: Option<IgnoredAny>,
}

/// Strings are parsed later, so that an invalid one invalidates this version only.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::check) struct WireVersion {
    pub(in crate::check) version: i64,
    pub(in crate::check) key_id: String,
    pub(in crate::check) hash: String,
    pub(in crate::check) state: State,
    pub(in crate::check) scopes: Vec<String>,
    pub(in crate::check) issued_at: String,
    pub(in crate::check) retire_at: Option<Timestamp>,
    pub(in crate::check) mac: String,
}

/// The state of a version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(in crate::check) enum State {
    Pending,
    Active,
    Retiring,
    Retired,
    Revoked,
    /// A state of a newer controller. Whether the version works is unknown, so it does not.
    #[default]
    #[serde(other)]
    Unknown,
}

impl State {
    /// `None`: it is not known, so the version does not work.
    pub(in crate::check) fn known(self) -> Option<VersionState> {
        match self {
            Self::Pending => Some(VersionState::Pending),
            Self::Active => Some(VersionState::Active),
            Self::Retiring => Some(VersionState::Retiring),
            Self::Retired => Some(VersionState::Retired),
            Self::Revoked => Some(VersionState::Revoked),
            Self::Unknown => None,
        }
    }
}

/// Tests have whole objects. They take the same route as objects of the API server: through JSON.
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
    fn unknown_fields_are_skipped() {
        let token = read(r#"{"phase":"Dreaming","conditions":[7],"revocation":{"reason":"Unheard"}}"#);
        let token = token.expect("a token");
        assert_eq!((&*token.metadata.namespace, &*token.metadata.name), ("ns", "n"));
        assert!(token.status.is_some_and(|status| status.revocation.is_some()));
    }

    #[test]
    fn an_unknown_state_is_parsed_as_unknown() {
        let token =
            read(r#"{"versions":[{"state":"Dreaming","keyId":"k"},{"state":"Active","issuedAt":"?"}]}"#);
        let versions = token.expect("a token").status.expect("a status").versions;
        assert_eq!(versions.iter().map(|v| v.state).collect::<Vec<_>>(), [State::Unknown, State::Active]);
    }

    #[test]
    fn an_invalid_limit_is_an_error() {
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
