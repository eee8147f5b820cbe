//! `TokenWebhook`: where events about tokens are to be sent.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube_derive::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{DurationString, EventType};

/// An HTTP endpoint that receives the events of the ApiTokens of its namespace, in signed requests as Standard
/// Webhooks 1.0 defines them.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "tokenward.dev",
    version = "v1alpha1",
    kind = "TokenWebhook",
    plural = "tokenwebhooks",
    shortname = "twh",
    category = "tokenward",
    namespaced,
    status = "TokenWebhookStatus",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("the name of a TokenWebhook is a label value on its Secret: at most 63 characters"),
    doc = "TokenWebhook is an HTTP endpoint that receives the events of the ApiTokens of its namespace.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Healthy",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Healthy\")].status"
    ),
    printcolumn(name = "Pending", type_ = "integer", json_path = ".status.pending"),
    printcolumn(name = "Dead", type_ = "integer", json_path = ".status.deadLettered"),
    printcolumn(name = "Last-Success", type_ = "date", json_path = ".status.lastSuccess"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Healthy\")].reason"
    ),
    printcolumn(name = "Url", type_ = "string", json_path = ".spec.url", priority = 1),
    printcolumn(name = "Secret", type_ = "string", json_path = ".status.signingSecretRef.name", priority = 1),
    printcolumn(name = "Lost", type_ = "integer", json_path = ".status.lost", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.url) != has(self.urlFrom)").message("set exactly one of url and urlFrom"))]
pub struct TokenWebhookSpec {
    /// Where to send the events: an http or https URL. Exactly one of `url` and `urlFrom` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 2048))]
    #[x_kube(validation = Rule::new("isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != '' && !self.matches('^[^/?#]*//[^/?#]*@')")
        .message("url must be an absolute http or https URL without user name or password"))]
    pub url: Option<String>,

    /// Where to read the URL from, for a URL that is itself a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_from: Option<UrlFrom>,

    /// Which events to send: an exact name, such as `token.revoked`, or all of a kind, such as `token.*`. 1 to 32.
    #[schemars(length(min = 1, max = 32), schema_with = "events", extend("x-kubernetes-list-type" = "set"))]
    pub events: Vec<String>,

    /// Only tokens of this namespace whose labels match. Unset: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,

    /// How requests are signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<Signing>,

    /// How requests are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<Delivery>,

    /// Pauses delivery until this is false again. Events are stored meanwhile, for `delivery.maxAge` at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
}

/// The schema of `spec.events`.
fn events(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {"type": "string", "minLength": 1, "maxLength": 64, "enum": EventType::patterns()},
    })
}

/// Where to read the URL from.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UrlFrom {
    /// A key of a Secret in the same namespace.
    pub secret_key_ref: SecretKeyRef,
}

/// A key of a Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// How requests are signed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Signing {
    /// The Secret with the signing key: `whsec_` and 24 to 64 bytes in base64 (HMAC-SHA256), or `whsk_` and an
    /// ed25519 key in base64. More than one, separated by blanks, sign every request. Unset: a key is generated into
    /// the Secret NAME-signing, key `signing-key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretKeyRef>,
    /// The kind of key that is generated if `secretRef` is unset. Default HmacSha256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<SigningAlgorithm>,
    /// When a generated key is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<SigningRotation>,
}

/// The kind of a signing key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum SigningAlgorithm {
    /// One key for both sides, `whsec_…`; signatures `v1`. Every library of Standard Webhooks verifies it.
    #[default]
    HmacSha256,
    /// A private key, `whsk_…`, of which receivers need the public one only; signatures `v1a`.
    Ed25519,
}

/// When a generated signing key is replaced.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SigningRotation {
    /// Any change of this text replaces the key once. At most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub trigger: Option<String>,
    /// How long requests carry the signatures of both keys. Default 24h; 0s ends the old key at once. A rotation
    /// that is requested meanwhile waits for its end, as only two keys sign at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<DurationString>,
}

/// How requests are sent.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// How long one attempt may take. Default 15s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<DurationString>,
    /// How long delivery of an event is retried before it is dead-lettered. Default 75h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<DurationString>,
    /// CA certificates, in PEM, that the endpoint's certificate is verified against instead of the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub ca_bundle: Option<String>,
}

/// The observed state of a TokenWebhook.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenWebhookStatus {
    /// The `metadata.generation` that this status reflects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Healthy, Disabled and Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// When the endpoint last accepted an event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<Timestamp>,
    /// When an attempt last failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Timestamp>,
    /// How many events wait to be delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<i64>,
    /// How many events were dead-lettered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_lettered: Option<i64>,
    /// How many events were dropped because the outbox of their ApiToken was full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<i64>,
    /// Events that wait here and not in an ApiToken: pings, replays, and those of deleted ApiTokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub outbox: Vec<StoredEvent>,
    /// The last dead-lettered events, for a replay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub dead_letters: Vec<DeadLetter>,
    /// The annotation `tokenward.dev/ping` as it was last handled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub handled_ping: Option<String>,
    /// The annotation `tokenward.dev/replay` as it was last handled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub handled_replay: Option<String>,
    /// The public part of an ed25519 signing key, `whpk_…`, with which receivers verify.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub public_key: Option<String>,
    /// The Secret with the signing key in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_secret_ref: Option<SecretKeyRef>,
}

/// An event in the outbox of the TokenWebhook itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoredEvent {
    /// The `webhook-id` of every delivery of this event.
    #[schemars(length(max = 64))]
    pub id: String,
    /// The type, such as `token.deleted`.
    #[serde(rename = "type")]
    #[schemars(length(max = 64))]
    pub type_: String,
    /// When the transition happened.
    pub time: Timestamp,
    /// Since when it is stored here, from which `delivery.maxAge` is counted.
    pub since: Timestamp,
    /// The ApiToken concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenHandle>,
    /// The version concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// The reason of the rotation or revocation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
    /// The scopes with which that version was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(max = 128)))]
    pub scopes: Option<Vec<String>>,
}

/// A reference to an ApiToken of this namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenHandle {
    /// The name of the ApiToken.
    #[schemars(length(max = 63))]
    pub name: String,
    /// `status.tokenId` of the ApiToken.
    #[schemars(length(max = 64))]
    pub token_id: String,
}

/// A dead-lettered event.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// The event as it was stored.
    pub event: StoredEvent,
    /// When it was dead-lettered.
    pub at: Timestamp,
    /// The number of attempts by the controller replica that dead-lettered it.
    pub attempts: i64,
    /// Why, in one word.
    #[schemars(length(max = 64))]
    pub cause: String,
}
