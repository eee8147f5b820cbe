//! `TokenLock` and `ClusterTokenLock`: one object that stops many tokens at once.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::apitoken::PRINTABLE;
use super::{Owner, RevocationReason, VerifierCount};

/// Stops every ApiToken of its namespace that it matches, with one write: verifiers refuse them as soon as they see it, whatever
/// their number.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "tokenward.dev",
    version = "v1alpha1",
    kind = "TokenLock",
    plural = "tokenlocks",
    shortname = "tlock",
    category = "tokenward",
    namespaced,
    status = "TokenLockStatus",
    derive = "PartialEq",
    doc = "TokenLock stops every ApiToken of its namespace that it matches, as soon as verifiers see it.",
    printcolumn(name = "Action", type_ = "string", json_path = ".spec.action"),
    printcolumn(name = "Matched", type_ = "integer", json_path = ".status.matched"),
    printcolumn(name = "Latched", type_ = "integer", json_path = ".status.latched"),
    printcolumn(
        name = "Enforced",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Enforced\")].status"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason"),
    printcolumn(name = "Message", type_ = "string", json_path = ".spec.message", priority = 1),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.requestedBy", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self == oldSelf")
        .message("a lock can't be changed, as what it has stopped would no longer be what it says: create another one"),
    validation = Rule::new("!has(self.match.namespaces)")
        .message("a TokenLock matches ApiTokens of its own namespace; for others create a ClusterTokenLock")
)]
pub struct TokenLockSpec {
    /// What a ClusterTokenLock has as well.
    #[serde(flatten)]
    pub lock: LockSpec,
}

/// Stops every ApiToken of the cluster that it matches, with one write: verifiers refuse them as soon as they see it, whatever
/// their number.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "tokenward.dev",
    version = "v1alpha1",
    kind = "ClusterTokenLock",
    plural = "clustertokenlocks",
    shortname = "ctlock",
    category = "tokenward",
    status = "TokenLockStatus",
    derive = "PartialEq",
    doc = "ClusterTokenLock stops every ApiToken of the cluster that it matches, as soon as verifiers see it.",
    printcolumn(name = "Action", type_ = "string", json_path = ".spec.action"),
    printcolumn(name = "Matched", type_ = "integer", json_path = ".status.matched"),
    printcolumn(name = "Latched", type_ = "integer", json_path = ".status.latched"),
    printcolumn(
        name = "Enforced",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Enforced\")].status"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason"),
    printcolumn(name = "Message", type_ = "string", json_path = ".spec.message", priority = 1),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.requestedBy", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self == oldSelf")
        .message("a lock can't be changed, as what it has stopped would no longer be what it says: create another one")
)]
pub struct ClusterTokenLockSpec {
    /// What a TokenLock has as well.
    #[serde(flatten)]
    pub lock: LockSpec,
}

/// Which tokens a lock stops, how, and why.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LockSpec {
    /// Which ApiTokens are stopped: those that match every field that is set. At least one is.
    ///
    /// Whoever may edit the ApiTokens can get out of a match by labels or owner. To stop somebody who may try, match by any other
    /// field.
    #[serde(rename = "match")]
    pub matches: LockMatch,

    /// Suspend: refused until the lock is deleted. Revoke: revoked for good, also once the lock is deleted.
    pub action: LockAction,

    /// Why, for the record of each token. Default Unspecified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<RevocationReason>,

    /// Why, in one line for people: an incident, a ticket. At most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), extend("x-kubernetes-validations" = [{"rule": PRINTABLE, "message": "message must be one line, without control characters"}]))]
    pub message: Option<String>,

    /// Who creates the lock, by the user name that the API server knows. It is refused if it is another's, and stands in the
    /// record of each token. At most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub requested_by: Option<String>,
}

/// Which ApiTokens a lock stops: those that match every field that is set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.all) || has(self.namespaces) || has(self.names) || has(self.namePrefix) || has(self.selector) || has(self.owner) || has(self.scopes) || has(self.tokenIds) || has(self.keyIds) || has(self.issuedBefore)")
        .message("match must say which ApiTokens: set at least one field; all: true stops every one"),
    validation = Rule::new("!has(self.all) || !(has(self.namespaces) || has(self.names) || has(self.namePrefix) || has(self.selector) || has(self.owner) || has(self.scopes) || has(self.tokenIds) || has(self.keyIds) || has(self.issuedBefore))")
        .message("match.all goes alone: with any other field, leave it out")
)]
pub struct LockMatch {
    /// Every ApiToken that exists when the lock is created. It goes alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self").message("all is true, or left out"))]
    pub all: Option<bool>,

    /// Those of these namespaces. Of a ClusterTokenLock only; a TokenLock matches in its own. 1 to 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "atomic"))]
    pub namespaces: Option<Vec<String>>,

    /// Those of these names. 1 to 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "atomic"))]
    pub names: Option<Vec<String>>,

    /// Those whose name begins so: ci- matches ci-staging.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name_prefix: Option<String>,

    /// Those with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LockSelector>,

    /// Those with this `spec.owner`: of the team, the contact, or both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("has(self.team) && self.team != '' || has(self.contact) && self.contact != ''")
        .message("match.owner must name a team or a contact"))]
    pub owner: Option<Owner>,

    /// The secrets that were issued with any of this: orders:* matches those with orders:read, and orders:read those with
    /// orders:*. What the spec has taken away since counts too. 1 to 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 3, max = 128)), extend("x-kubernetes-list-type" = "atomic"))]
    #[x_kube(validation = Rule::new("self.all(s, s.matches('^[A-Za-z0-9][A-Za-z0-9._/-]*(:[A-Za-z0-9._/-]+)*:([A-Za-z0-9._/-]+|[*])$'))")
        .message("each scope must be resource:action, such as orders:read or orders:*, of letters, digits and . _ / -"))]
    pub scopes: Option<Vec<String>>,

    /// Those of these public ids, `status.tokenId`. 1 to 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), inner(length(min = 1, max = 64)), extend("x-kubernetes-list-type" = "atomic"))]
    pub token_ids: Option<Vec<String>>,

    /// The secrets of these key ids, the 12 characters after the prefix of a token: of a leaked list, say. 1 to 4096.
    ///
    /// A token whose current secret is among them is stopped as a whole; of others only the secrets that are named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096), inner(length(min = 12, max = 12)), extend("x-kubernetes-list-type" = "atomic"))]
    #[x_kube(validation = Rule::new("self.all(k, k.matches('^[0-9A-Za-z]{12}$'))")
        .message("each key id is the 12 characters after the prefix of a token"))]
    pub key_ids: Option<Vec<String>>,

    /// The secrets that were issued before this instant, which is not in the future. What has been rotated since is not stopped.
    ///
    /// Unset: every token that exists when the lock is created, and each secret of it that is issued later. What is created
    /// later is never stopped, but what is restored is, if its secret is older than the lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= timestamp('1970-01-01T00:00:00Z') && self < timestamp('9999-12-30T00:00:00Z')")
        .message("issuedBefore must be from 1970 to before 9999-12-30"))]
    pub issued_before: Option<Timestamp>,
}

/// A label selector with bounds. It means what a Kubernetes LabelSelector means.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.matchLabels) && self.matchLabels.size() > 0 || has(self.matchExpressions) && self.matchExpressions.size() > 0")
    .message("match.selector must name a label: an empty one would match every ApiToken"))]
pub struct LockSelector {
    /// Labels with these values. At most 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    pub match_labels: Option<BTreeMap<String, String>>,
    /// What holds of a label each. At most 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub match_expressions: Option<Vec<LockSelectorRequirement>>,
}

/// What holds of a label.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)")
    .message("In and NotIn take values, Exists and DoesNotExist take none"))]
pub struct LockSelectorRequirement {
    /// The key of the label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How the label is compared.
    pub operator: LockSelectorOperator,
    /// The values of In and NotIn. At most 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(max = 63)), extend("x-kubernetes-list-type" = "atomic"))]
    pub values: Option<Vec<String>>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum LockSelectorOperator {
    /// The label has one of the values.
    In,
    /// The label has none of the values, or is not there.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

/// What a lock does to the tokens that it matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum LockAction {
    /// They are refused until the lock is deleted.
    #[default]
    Suspend,
    /// They are revoked for good. The lock can be deleted once each of them has that on its own record.
    Revoke,
}

/// The observed state of a lock.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenLockStatus {
    /// The `metadata.generation` that this status reflects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many ApiTokens it matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched: Option<i64>,
    /// How many of them have it on their own record, `status`. Verifiers need not wait for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latched: Option<i64>,
    /// When every verifier that the controller knows had confirmed that it obeys the lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced_at: Option<Timestamp>,
    /// How many verifiers have confirmed it. Unset: the controller knows of none, or has not asked yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifiers: Option<VerifierCount>,
    /// Ready: every matched ApiToken has the lock on its own record. Enforced: every verifier obeys the lock. Reconciling and Stalled as kstatus defines them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// What both kinds of lock have.
pub trait AnyLock {
    /// What it stops, how and why.
    fn lock(&self) -> &LockSpec;
    /// Its observed state.
    fn lock_status(&self) -> Option<&TokenLockStatus>;
    /// Sets its observed state.
    fn set_lock_status(&mut self, status: TokenLockStatus);
}

impl AnyLock for TokenLock {
    fn lock(&self) -> &LockSpec {
        &self.spec.lock
    }

    fn lock_status(&self) -> Option<&TokenLockStatus> {
        self.status.as_ref()
    }

    fn set_lock_status(&mut self, status: TokenLockStatus) {
        self.status = Some(status);
    }
}

impl AnyLock for ClusterTokenLock {
    fn lock(&self) -> &LockSpec {
        &self.spec.lock
    }

    fn lock_status(&self) -> Option<&TokenLockStatus> {
        self.status.as_ref()
    }

    fn set_lock_status(&mut self, status: TokenLockStatus) {
        self.status = Some(status);
    }
}
