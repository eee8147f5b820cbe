//! `ApiToken`: what a team writes. The doc comments below are what `kubectl explain` prints.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ApiTokenStatus, DurationString};

/// Text that is shown to people contains nothing that a terminal would act upon.
pub(super) const PRINTABLE: &str = r"!self.matches('\\p{Cc}')";

/// An API token: who it is for, what it may do, how long it lives and how it rotates.
///
/// tokenward mints the secret into a Kubernetes Secret that pods mount, and checks whether a presented token is
/// valid. An edit of scopes, audiences, constraints or format rotates the secret; `revoked: true`
/// ends the token for good.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "tokenward.dev",
    version = "v1alpha1",
    kind = "ApiToken",
    plural = "apitokens",
    shortname = "atok",
    category = "tokenward",
    namespaced,
    status = "ApiTokenStatus",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("the name of an ApiToken is a label value on its Secret: at most 63 characters"),
    // CEL knows no present time, and needs none. To an earlier instant: if every recorded version is older than that, it ends
    // what the former one would have ended. To a later one: the former is on record, so what it has ended stays ended.
    validation = Rule::new("!has(oldSelf.spec.rotation) || !has(oldSelf.spec.rotation.notBefore) || (has(self.spec.rotation) && has(self.spec.rotation.notBefore) && (self.spec.rotation.notBefore == oldSelf.spec.rotation.notBefore || (has(oldSelf.status) && (self.spec.rotation.notBefore > oldSelf.spec.rotation.notBefore ? (has(oldSelf.status.rotation) && has(oldSelf.status.rotation.notBefore) && oldSelf.status.rotation.notBefore == oldSelf.spec.rotation.notBefore) : (has(oldSelf.status.versions) && oldSelf.status.versions.size() > 0 && oldSelf.status.versions.all(v, v.issuedAt < self.spec.rotation.notBefore))))))")
        .message("rotation.notBefore can't be removed, moves back only to an instant after every secret was issued, such as now, and forward only once the controller has recorded the present one in status.rotation.notBefore: else dead secrets could come back; to end what is issued now, change rotation.trigger and set rotation.overlap to 0s"),
    doc = "ApiToken is an API token as a Kubernetes object: its secret is minted into a Secret, rotated without an outage, and revoked for good.",
    printcolumn(name = "Status", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "Active",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Active\")].status"
    ),
    printcolumn(name = "Version", type_ = "integer", json_path = ".status.secretRef.version"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".spec.expiresAt"),
    printcolumn(
        name = "Next-Rotation",
        type_ = "string",
        json_path = ".status.rotation.nextTime",
        priority = 1
    ),
    printcolumn(name = "Secret", type_ = "string", json_path = ".status.secretRef.name", priority = 1),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(oldSelf.revoked) && oldSelf.revoked) || (has(self.revoked) && self.revoked)")
        .message("revocation is permanent: revoked can't go back to false or be removed; create a new ApiToken under another name, or delete this one and create it again, for a new secret"),
    validation = Rule::new("!has(self.revocationReason) || (has(self.revoked) && self.revoked)")
        .message("revocationReason goes with revoked: true"),
    validation = Rule::new("(has(self.secret) && has(self.secret.name) ? self.secret.name : '') == (has(oldSelf.secret) && has(oldSelf.secret.name) ? oldSelf.secret.name : '')")
        .message("secret.name is immutable: pods mount the Secret by its name; create a new ApiToken for another Secret"),
    validation = Rule::new("(has(self.secret) && has(self.secret.creationPolicy) ? self.secret.creationPolicy : 'Owner') == (has(oldSelf.secret) && has(oldSelf.secret.creationPolicy) ? oldSelf.secret.creationPolicy : 'Owner')")
        .message("secret.creationPolicy is immutable: it says whose the Secret is; create a new ApiToken"),
    validation = Rule::new("(has(self.secret) && has(self.secret.template) && has(self.secret.template.type) ? self.secret.template.type : 'Opaque') == (has(oldSelf.secret) && has(oldSelf.secret.template) && has(oldSelf.secret.template.type) ? oldSelf.secret.template.type : 'Opaque')")
        .message("secret.template.type is immutable, as the type of every Secret is"),
    validation = Rule::new("(has(self.format) && has(self.format.prefix) ? self.format.prefix : '') == (has(oldSelf.format) && has(oldSelf.format.prefix) ? oldSelf.format.prefix : '')")
        .message("format.prefix is immutable: scanners and gateways know the token by it; create a new ApiToken for another prefix")
)]
pub struct ApiTokenSpec {
    /// A name for people, in any language. At most 128 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    #[x_kube(validation = Rule::new(PRINTABLE).message("displayName must be one line, without control characters"))]
    pub display_name: Option<String>,

    /// Who is responsible for this token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,

    /// What the token may do, as `resource:action`: `orders:read`, `audit:read`. A last part of `*` covers
    /// everything below it: `orders:*` covers `orders:read` and `orders:items:read`. 1 to 64 scopes.
    ///
    /// Removing a scope takes effect at once, for the current and the previous secret. Adding one rotates the
    /// secret, and only the new secret has it: an old copy that leaked gains no scope that it was not issued with.
    #[schemars(length(min = 1, max = 64), inner(length(min = 3, max = 128)), extend("x-kubernetes-list-type" = "atomic"))]
    #[x_kube(validation = Rule::new("self.all(s, s.matches('^[A-Za-z0-9][A-Za-z0-9._/-]*(:[A-Za-z0-9._/-]+)*:([A-Za-z0-9._/-]+|[*])$'))")
        .message("each scope must be resource:action, such as orders:read or orders:*, of letters, digits and . _ / -"))]
    // Not a set, whose items would be owned by whoever added them: GitOps has to remove items that were added by hand.
    #[x_kube(validation = Rule::new("self.all(s, self.exists_one(t, t == s))").message("name each scope once"))]
    pub scopes: Vec<String>,

    /// The services that the token is for. A check passes only if it names one of them. Empty or unset: any service.
    /// At most 16, of 1 to 256 characters each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)), extend("x-kubernetes-list-type" = "atomic"))]
    pub audiences: Option<Vec<String>>,

    /// Where the token may be used from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraints: Option<Constraints>,

    /// The instant from which the token is no longer valid, such as 2027-01-01T00:00:00Z. Unset: never.
    ///
    /// It is an absolute time on purpose: a lifetime would start anew each time the object is created again
    /// from Git or from a backup. It is enforced to the millisecond at every check, also while the controller or
    /// the API server is down. It may be changed, before and after it has passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= timestamp('1970-01-01T00:00:00Z') && self < timestamp('9999-12-30T00:00:00Z')")
        .message("expiresAt must be from 1970 to before 9999-12-30; for a token that never expires leave it out"))]
    pub expires_at: Option<Timestamp>,

    /// Stops the token from being accepted until this is false again. Reversible, unlike `revoked`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,

    /// Ends the token for good. It can't be undone: not by an edit, not by removing this field.
    ///
    /// The object stays as the record. To delete the record too, delete the object, which also revokes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<bool>,

    /// Why the token was revoked, for the record. Only together with `revoked: true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation_reason: Option<RevocationReason>,

    /// When and how the secret is replaced by a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,

    /// The Kubernetes Secret that receives the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretSpec>,

    /// The format of the token's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
}

/// Who is responsible for a token.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// The team. At most 128 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    #[x_kube(validation = Rule::new(PRINTABLE).message("team must be one line, without control characters"))]
    pub team: Option<String>,
    /// How to reach them: an address, a channel, a rota. At most 128 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    #[x_kube(validation = Rule::new(PRINTABLE).message("contact must be one line, without control characters"))]
    pub contact: Option<String>,
}

/// Where a token may be used from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Constraints {
    /// The networks from which the token is accepted, in CIDR notation: 10.0.0.0/8, 2001:db8::/32. Empty or
    /// unset: any. At most 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), inner(length(min = 3, max = 64)), extend("x-kubernetes-list-type" = "atomic"))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))")
        .message("each entry must be a network in CIDR notation, such as 10.0.0.0/8 or 2001:db8::/32"))]
    pub cidrs: Option<Vec<String>>,
}

/// When and how a secret is replaced by a new one. The token keeps its identity (`status.tokenId`) and its scopes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.interval) || !self.interval.matches('^[0-9]{1,6}(s|m|h)([0-9]{1,5}(s|m|h)){0,2}$') || duration(self.interval) >= duration('10s')")
        .message("interval must be at least 10s: each rotation costs writes and makes pods read the Secret again"),
    validation = Rule::new("!has(self.interval) || !self.interval.matches('^[0-9]{1,6}(s|m|h)([0-9]{1,5}(s|m|h)){0,2}$') || (has(self.overlap) && !self.overlap.matches('^[0-9]{1,6}(s|m|h)([0-9]{1,5}(s|m|h)){0,2}$')) || duration(has(self.overlap) ? self.overlap : '1h') < duration(self.interval)")
        .message("overlap must be shorter than interval, so that a schedule leaves one previous secret valid (unset, overlap is 1h: set a shorter one for an interval of up to 1h)")
)]
pub struct Rotation {
    /// Any change of this text rotates once. Use a date or a ticket: "2026-11-21", "INC-4711". The one that is
    /// there when the token is created is only remembered. At most 256 characters.
    ///
    /// Don't template it with the current time: each render would rotate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub trigger: Option<String>,

    /// Rotate when the current secret is this old, such as 720h for 30 days. Unset: no schedule. At least 10s,
    /// and longer than `overlap`. Each secret is replaced a little earlier, by up to 5% of it and an hour at most, so
    /// that tokens that were made together don't rotate together; `status.rotation.nextTime` says when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<DurationString>,

    /// How long the previous secret stays valid after the new one is in the Secret. Default 1h.
    ///
    /// A mounted Secret reaches a pod's files after 1 to 2 minutes, and environment variables only when the pod
    /// restarts, so choose it longer than that. A rotation waits for no overlap: each replaced secret keeps its own, and
    /// up to 4 secrets work at once; one more ends the oldest early. 0s ends every earlier secret at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<DurationString>,

    /// Whether an edit of the spec rotates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_spec_change: Option<OnSpecChange>,

    /// Every secret issued before this instant is dead from then on, without overlap, and a new one is minted.
    /// The answer to a leak: set it to now. One in the future ends nothing before its time. It can't be removed, and moves
    /// back only to an instant after every secret was issued, such as now, and forward only once the controller has recorded
    /// the present one: what it has ended stays ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= timestamp('1970-01-01T00:00:00Z') && self < timestamp('9999-12-30T00:00:00Z')")
        .message("rotation.notBefore must be from 1970 to before 9999-12-30; after a leak set it to now"))]
    pub not_before: Option<Timestamp>,
}

/// The Secret that receives the token, in the ApiToken's namespace.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.template) || !has(self.template.data) || self.template.data.all(key, key != (has(self.keys) && has(self.keys.token) ? self.keys.token : 'token') && (!has(self.keys) || !has(self.keys.previous) || key != self.keys.previous))")
        .message("template.data must name other keys than keys.token and keys.previous, which hold tokens"),
    validation = Rule::new("!has(self.creationPolicy) || self.creationPolicy != 'Merge' || (!has(self.onRevoke) || self.onRevoke == 'Keep') && !has(self.onDelete) && (!has(self.template) || !has(self.template.type))")
        .message("with creationPolicy Merge the Secret is somebody else's: leave out onDelete, template.type and onRevoke: Delete")
)]
pub struct SecretSpec {
    /// The Secret's name. Default: the ApiToken's name. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: Option<String>,

    /// Who makes the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_policy: Option<CreationPolicy>,

    /// The names of the data keys in the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<SecretKeys>,

    /// What else the Secret carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<SecretTemplate>,

    /// What happens to the Secret when the token is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_revoke: Option<OnRevoke>,

    /// What happens to the Secret when the ApiToken is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_delete: Option<OnDelete>,
}

/// The names of the data keys in the Secret.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.token) ? self.token : '', has(self.previous) ? self.previous : ''].all(key, key != '.' && !key.startsWith('..'))")
    .message("a key must not be . or begin with .., as in every Secret"))]
#[x_kube(validation = Rule::new("!has(self.previous) || self.previous == '' || self.previous != (has(self.token) ? self.token : 'token')")
    .message("previous must name another key than token"))]
pub struct SecretKeys {
    /// The key of the current token. Default `token`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub token: Option<String>,
    /// The key under which the replaced token stays until the next rotation; it works until its overlap ends. Default:
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = r"^[-._a-zA-Z0-9]*$"))]
    pub previous: Option<String>,
}

/// What the Secret carries beside the token.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretTemplate {
    /// The Secret's type. Default Opaque. Immutable. Types from which Kubernetes itself makes credentials
    /// (service account and bootstrap tokens) are refused.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self != 'kubernetes.io/service-account-token' && self != 'bootstrap.kubernetes.io/token'")
        .message("this type makes Kubernetes issue credentials of its own; use Opaque or a type that only holds data"))]
    pub type_: Option<String>,

    /// The metadata of the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<TemplateMetadata>,

    /// Constants, such as the user name beside a token that is used as a password. They are no secrets: whoever may read the
    /// ApiToken reads them. At most 16, of up to 1024 characters each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 16))]
    #[x_kube(validation = Rule::new("self.all(key, key.matches('^[-._a-zA-Z0-9]{1,253}$') && key != '.' && !key.startsWith('..'))")
        .message("each key must consist of letters, digits and - . _, and not be . or begin with .., as in every Secret"))]
    pub data: Option<BTreeMap<String, DataValue>>,
}

/// The labels and annotations of the Secret.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateMetadata {
    /// Labels of the Secret. Labels of the ApiToken are never copied: a copied tracking label would make
    /// Argo CD or Flux prune the Secret. At most 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new("self.all(k, !k.matches('^(([^/]+[.])?(tokenward[.]dev|argoproj[.]io|fluxcd[.]io|helm[.]sh|k8s[.]io|kubernetes[.]io)/|app[.]kubernetes[.]io/(instance|managed-by)$)') || k.matches('^app[.]kubernetes[.]io/(name|component|part-of|version)$'))")
        .message("labels of tokenward.dev, argoproj.io, fluxcd.io, helm.sh, kubernetes.io and k8s.io are refused, except app.kubernetes.io/name, component, part-of and version: tools own their objects by them"))]
    pub labels: Option<BTreeMap<String, LabelValue>>,

    /// Annotations of the Secret. At most 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new("self.all(k, !k.matches('^([^/]+[.])?(tokenward[.]dev|argoproj[.]io|fluxcd[.]io|helm[.]sh|k8s[.]io|kubernetes[.]io)/'))")
        .message("annotations of tokenward.dev, argoproj.io, fluxcd.io, helm.sh, kubernetes.io and k8s.io are refused: tools own their objects by them"))]
    pub annotations: Option<BTreeMap<String, AnnotationValue>>,
}

/// A constant in a Secret. At most 1024 characters.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct DataValue(#[schemars(length(max = 1024))] pub String);

/// The value of a label. At most 63 characters.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct LabelValue(
    #[schemars(length(max = 63), regex(pattern = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"))]
    pub  String,
);

/// The value of an annotation. At most 4096 characters.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct AnnotationValue(#[schemars(length(max = 4096))] pub String);

/// The format of a token: `<prefix>_<key id><secret><checksum>`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Format {
    /// The first part of the token, by which people and scanners recognise it: `tw`, `tok_live`. Default `tw`.
    /// 2 to 16 characters: a lower-case letter, then lower-case letters, digits or underscores. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 16), regex(pattern = r"^[a-z][a-z0-9_]{1,15}$"))]
    pub prefix: Option<String>,
}

// `kubectl explain` shows the text of the enum, not of its variants, so it describes all of them.

/// Why a token is revoked, for the record. On an ApiToken only together with `revoked: true`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum RevocationReason {
    /// The secret leaked, or may have.
    KeyCompromise,
    /// Another token has taken its place.
    Superseded,
    /// The service that used it is gone.
    Decommissioned,
    /// Its owner has left.
    OwnerLeft,
    /// It broke a rule.
    PolicyViolation,
    /// No reason was given.
    Unspecified,
}

impl RevocationReason {
    /// The name in the API and in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeyCompromise => "KeyCompromise",
            Self::Superseded => "Superseded",
            Self::Decommissioned => "Decommissioned",
            Self::OwnerLeft => "OwnerLeft",
            Self::PolicyViolation => "PolicyViolation",
            Self::Unspecified => "Unspecified",
        }
    }
}

/// Whether an edit of scopes, audiences, constraints or format rotates the secret. Default Rotate. With Keep, added
/// scopes have no effect until the next rotation, since a secret never gains rights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum OnSpecChange {
    /// The edit rotates the secret.
    #[default]
    Rotate,
    /// The secret stays as it is.
    Keep,
}

/// What happens to the Secret when the token is revoked. Default Keep: the Secret stays, labelled
/// `tokenward.dev/revoked: "true"`, because pods that mount a missing Secret can't restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum OnRevoke {
    /// It stays, labelled as revoked.
    #[default]
    Keep,
    /// The controller deletes it.
    Delete,
}

/// Who makes the Secret. Immutable.
///
/// By default (`Owner`) tokenward makes it and owns it. `Merge`: somebody else makes it, such as a manifest in Git, before or
/// after the ApiToken. tokenward writes its keys into it, and never makes or deletes it. It must have the label
/// `tokenward.dev/token` with the ApiToken's name, by which its owner agrees; so a Secret takes one ApiToken. A key, label or
/// annotation that it has from elsewhere is not overwritten. After a revocation, or the deletion of the ApiToken, the dead
/// token stays in it, with tokenward's annotations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum CreationPolicy {
    /// tokenward makes it, and owns it.
    #[default]
    Owner,
    /// Somebody else makes it, and agrees by its label that tokenward writes into it.
    Merge,
}

/// What happens to the Secret when the ApiToken is deleted. Default Delete. Either way the token in it no longer works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum OnDelete {
    /// Kubernetes deletes it with the ApiToken, by its owner reference.
    #[default]
    Delete,
    /// It stays, without an owner reference.
    Retain,
}
