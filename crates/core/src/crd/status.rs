//! `ApiToken.status`: what the controller recorded. Only the controller writes it.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::RevocationReason;

/// The observed state of an ApiToken. It contains no secret: a version is identified by its key id and verified by a
/// keyed hash that is bound to this object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiTokenStatus {
    /// The `metadata.generation` that this status reflects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// The state in one word, for display. Conditions are the contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,

    /// The token's public id, `tok_` and 22 characters. It stays the same over all rotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub token_id: Option<String>,

    /// The token's secrets, newest first: at most four that work, and the last three that no longer do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub versions: Vec<TokenVersion>,

    /// The record of rotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationStatus>,

    /// The record of the revocation. Once here, it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<RevocationStatus>,

    /// The Secret that contains the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,

    /// The `expiresAt` for which the event that the token expires soon was sent, so that it is sent once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_expiry_notice: Option<Timestamp>,

    /// Events that TokenWebhooks have not accepted yet. Unset while there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbox: Option<Outbox>,

    /// Ready, Active, Revoked, Enforced, Rotating, Delivered, Reconciling and Stalled.
    ///
    /// Ready: the spec is realised, also where it says revoked, suspended or expired. Active: a check with the
    /// Secret's content succeeds now. Delivered: the Secret contains the current secret. Rotating: replaced
    /// secrets still work, until when. Revoked: for good. Enforced: every verifier has confirmed that. Stalled: somebody has to act; the message says how.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    // Atomic, as the other parts of the status: only the controller writes it, and the API server would note an owner of every
    // field of every condition, which was a quarter of a plain token in etcd and in each watch.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub conditions: Vec<Condition>,
}

impl ApiTokenStatus {
    /// The version of a key id.
    pub fn version_of(&self, key_id: &str) -> Option<&TokenVersion> {
        self.versions.iter().find(|version| version.key_id == key_id)
    }
}

/// A secret of the token, current or former.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenVersion {
    /// Counts from 1 and never goes back.
    #[schemars(range(min = 1))]
    pub version: i64,
    /// The public part of the secret: the 12 characters after the prefix. Safe to log.
    #[schemars(length(max = 32))]
    pub key_id: String,
    /// `hmac-sha256:<pepper id>:<base64url>`, over namespace, name and the whole token.
    #[schemars(length(max = 128))]
    pub hash: String,
    /// The state of this secret in its life cycle.
    pub state: VersionState,
    /// The scopes with which it was issued. A check must pass both these and the spec's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 128)))]
    pub scopes: Vec<String>,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// When it stops working, for a secret that another one has replaced. Compared at each check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retire_at: Option<Timestamp>,
    /// Why it was issued.
    pub reason: RotationReason,
    /// HMAC-SHA256 under the pepper of `hash`, in base64url: over the ApiToken, and every other field of this version but
    /// `reason`. A version without a valid one is refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub mac: String,
}

/// The state of a secret in its life cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum VersionState {
    /// Made known to the verifiers, on its way into the Secret. It works already.
    Pending,
    /// The Secret contains it.
    Active,
    /// Replaced, and working until `retireAt`.
    Retiring,
    /// Replaced, and no longer working.
    Retired,
    /// Ended for good: with the token, by a lock, or by `rotation.notBefore`.
    Revoked,
}

impl VersionState {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Active => "Active",
            Self::Retiring => "Retiring",
            Self::Retired => "Retired",
            Self::Revoked => "Revoked",
        }
    }

    /// Whether a secret in this state may work, by its state alone.
    pub fn is_live(self) -> bool {
        match self {
            Self::Pending | Self::Active | Self::Retiring => true,
            Self::Retired | Self::Revoked => false,
        }
    }
}

/// Why a secret was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum RotationReason {
    /// It is the first secret of the token.
    Created,
    /// Scopes, audiences, constraints or format were edited.
    SpecChange,
    /// `rotation.trigger` has a new value.
    Trigger,
    /// `rotation.interval` has passed since its predecessor was issued.
    Schedule,
    /// The Secret was gone.
    SecretMissing,
    /// The Secret contained something else than the controller had written.
    SecretTampered,
    /// `rotation.notBefore` invalidated its predecessor.
    NotBefore,
    /// One of many, rotated together.
    // No code produces it yet: it is reserved for the bulk rotation of the management API.
    Bulk,
}

impl RotationReason {
    /// The name in the API, in events and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "Created",
            Self::SpecChange => "SpecChange",
            Self::Trigger => "Trigger",
            Self::Schedule => "Schedule",
            Self::SecretMissing => "SecretMissing",
            Self::SecretTampered => "SecretTampered",
            Self::NotBefore => "NotBefore",
            Self::Bulk => "Bulk",
        }
    }
}

/// The record of rotations.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct RotationStatus {
    /// Hash of the spec's part that rotates when it changes, as of the newest secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub spec_hash: Option<String>,
    /// The `rotation.trigger` for which the newest secret was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub handled_trigger: Option<String>,
    /// When the last rotation was delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_time: Option<Timestamp>,
    /// When the next one is due, by `rotation.interval` or by a `rotation.notBefore` that is still to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_time: Option<Timestamp>,
    /// Why the last rotation happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reason: Option<RotationReason>,
    /// The `rotation.notBefore` of the spec, as last recorded. Once it has passed, it ends what was issued before it even if
    /// the spec is edited before that is recorded too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
}

/// The record of a revocation.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct RevocationStatus {
    /// When the controller saw the request. Verifiers refuse the token from the request itself on.
    pub requested_at: Timestamp,
    /// When every secret was marked revoked, the Secret was labelled or deleted, and every verifier that the controller knows had
    /// confirmed that it refuses the token. Verifiers do so as soon as they see the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced_at: Option<Timestamp>,
    /// How many verifiers have confirmed it. Unset: the controller knows of none, or has not asked yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifiers: Option<VerifierCount>,
    /// Why, as given with the request.
    pub reason: RevocationReason,
    /// Where the request came from.
    pub source: RevocationSource,
    /// Who asked, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub actor: Option<String>,
    /// The lock that asked for it, which need not exist any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<LockRef>,
}

/// How many verifiers have confirmed that something is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerifierCount {
    /// Those that may decide checks.
    pub asked: i64,
    /// Those of them that have confirmed it.
    pub confirmed: i64,
}

/// A TokenLock of the namespace, or a ClusterTokenLock.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LockRef {
    /// Its kind.
    pub kind: LockKind,
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its uid: another lock of the same name is not this one.
    #[schemars(length(max = 64))]
    pub uid: String,
}

/// The kind of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum LockKind {
    /// Of the namespace of the ApiToken.
    TokenLock,
    /// Of the cluster.
    ClusterTokenLock,
}

/// Kind and name, for people: `TokenLock incident-7`.
impl fmt::Display for LockRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            LockKind::TokenLock => "TokenLock",
            LockKind::ClusterTokenLock => "ClusterTokenLock",
        };
        write!(f, "{kind} {}", self.name)
    }
}

/// Where a revocation came from.
// Only `Spec` and `Lock` are produced today. The others are part of the stored API already, because an enum value added to a CRD
// later is one that older controllers and clients can't read: `Api` and `Bulk` wait for the management API, `Cli` for
// the kubectl plugin, `Anomaly` for the rules over usage statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum RevocationSource {
    /// `spec.revoked` was set to true.
    Spec,
    /// A TokenLock or ClusterTokenLock.
    Lock,
    /// It was revoked before: an earlier state of it was restored, and the ledger has it.
    Ledger,
    /// A request to the management API.
    Api,
    /// The kubectl plugin.
    Cli,
    /// One of many, revoked together.
    Bulk,
    /// A finding of the anomaly detection.
    Anomaly,
}

/// Events that TokenWebhooks have not accepted yet.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Outbox {
    /// In the order in which they happened, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub events: Vec<OutboxEvent>,
    /// How many events were dropped before each TokenWebhook received them, because this list was full.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256))]
    pub lost: BTreeMap<String, i64>,
}

/// An event that TokenWebhooks receive.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutboxEvent {
    /// The `webhook-id` of every delivery of this event.
    #[schemars(length(max = 64))]
    pub id: String,
    /// The type, such as `token.revoked`.
    #[serde(rename = "type")]
    #[schemars(length(max = 64))]
    pub type_: String,
    /// When the transition happened.
    pub time: Timestamp,
    /// The version concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// The reason of the rotation or revocation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
    /// The TokenWebhooks that have not accepted it yet.
    #[schemars(length(max = 256), inner(length(max = 63)))]
    pub webhooks: Vec<String>,
}

/// The Secret that contains a token.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct SecretRef {
    /// The Secret's name, in the ApiToken's namespace.
    #[schemars(length(max = 253))]
    pub name: String,
    /// The version that it contains.
    pub version: i64,
    /// The Secret's uid: another Secret of the same name is not this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
}

/// The state of a token in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum Phase {
    /// Not minted or not delivered yet.
    Pending,
    /// The token works.
    Active,
    /// The token works, and so does its previous secret.
    Rotating,
    /// Refused until `suspend` is false again.
    Suspended,
    /// The token is past its `expiresAt`.
    Expired,
    /// The token is revoked for good.
    Revoked,
    /// Somebody has to act.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_and_states_have_one_spelling() {
        use RotationReason::*;
        for reason in [Created, SpecChange, Trigger, Schedule, SecretMissing, SecretTampered, NotBefore, Bulk]
        {
            assert_eq!(serde_json::to_value(reason).expect("JSON"), reason.as_str());
        }
        use RevocationReason::*;
        for reason in [KeyCompromise, Superseded, Decommissioned, OwnerLeft, PolicyViolation, Unspecified] {
            assert_eq!(serde_json::to_value(reason).expect("JSON"), reason.as_str());
        }
        use VersionState::*;
        for state in [Pending, Active, Retiring, Retired, Revoked] {
            assert_eq!(serde_json::to_value(state).expect("JSON"), state.as_str());
        }
    }
}
