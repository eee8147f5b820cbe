//! `TokenWebhook`: where events about tokens are to be sent.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::DurationString;

/// An HTTP endpoint that is told what happens to the ApiTokens of its namespace, in signed requests as
/// Standard Webhooks 1.0 defines them.
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
    doc = "TokenWebhook is an HTTP endpoint that is told what happens to the ApiTokens of its namespace.",
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
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.url) != has(self.urlFrom)").message("set exactly one of url and urlFrom"))]
pub struct TokenWebhookSpec {
    /// Where to send the events: an http or https URL. Exactly one of `url` and `urlFrom` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 2048))]
    #[x_kube(validation = Rule::new("isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != '' && !self.contains('@')")
        .message("url must be an absolute http or https URL without user name or password"))]
    pub url: Option<String>,

    /// Where to read the URL from, for a URL that is itself a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_from: Option<UrlFrom>,

    /// Which events to send: an exact name, such as `token.revoked`, or a prefix with a trailing wildcard, such
    /// as `token.*`. 1 to 32.
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 64)), extend("x-kubernetes-list-type" = "set"))]
    #[x_kube(validation = Rule::new("self.all(e, e.matches('^([a-z_]+[.])*([a-z_]+|[*])$'))")
        .message("each event must be a name such as token.revoked, or a prefix such as token.*"))]
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

    /// Holds events back until this is false again. They are kept, up to `delivery.maxAge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
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
    /// The Secret's name.
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
    /// The Secret with the signing key, `whsec_…` or `whsk_…`. Unset: one is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretKeyRef>,
    /// When the signing key is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<SigningRotation>,
}

/// When a signing key is replaced.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SigningRotation {
    /// Any change of this text replaces the key once. At most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub trigger: Option<String>,
    /// How long requests carry the signatures of both keys. Default 24h.
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
    /// How long an event is tried before it is set aside as dead. Default 75h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<DurationString>,
}

/// What the controller recorded of a TokenWebhook.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenWebhookStatus {
    /// The `metadata.generation` that this status answers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Healthy and Disabled.
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
    /// How many events were given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_lettered: Option<i64>,
    /// The Secret with the signing key in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_secret_ref: Option<SecretKeyRef>,
}
