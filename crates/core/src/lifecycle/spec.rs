//! The spec with its defaults applied, and the hash of the part whose change rotates.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::SignedDuration;
use serde_json::json;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::crd::labels::GROUP;
use crate::crd::{ApiToken, CreationPolicy, DurationError, OnDelete, OnRevoke, OnSpecChange};
use crate::token::Prefix;
use crate::token::format::PrefixError;
use crate::token::scope::{MAX_SCOPES, is_scope};

/// Old and new are valid together for this long, unless the spec says otherwise: longer than the 1 to 2 minutes
/// that a mounted Secret needs, and time enough to restart what reads an environment variable.
const DEFAULT_OVERLAP: SignedDuration = SignedDuration::from_hours(1);

/// The version of the hash. Another canonical form gets another prefix, and is recorded without a rotation.
pub(super) const SPEC_HASH_PREFIX: &str = "h1:";

/// A spec with its defaults applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The scopes, in the order in which the user wrote them.
    pub scopes: Vec<String>,
    /// `format.prefix`, with its default.
    pub prefix: Prefix,
    /// `rotation.trigger`: a new value requests a rotation.
    pub trigger: Option<String>,
    /// `rotation.interval`: how often to rotate, if at all.
    pub interval: Option<SignedDuration>,
    /// `rotation.overlap`: how long a replaced version works on.
    pub overlap: SignedDuration,
    /// Whether a change of the hash rotates.
    pub on_spec_change: OnSpecChange,
    /// `secret.name`; by default the name of the ApiToken.
    pub secret_name: String,
    /// The data key of the current token.
    pub token_key: String,
    /// The data key of the previous token, if it is wanted.
    pub previous_key: Option<String>,
    /// Who makes the Secret.
    pub creation_policy: CreationPolicy,
    /// `secret.template.type`; by default `Opaque`.
    pub secret_type: String,
    /// The constants of `secret.template`.
    pub data: BTreeMap<String, String>,
    /// The labels of `secret.template`.
    pub labels: BTreeMap<String, String>,
    /// The annotations of `secret.template`.
    pub annotations: BTreeMap<String, String>,
    /// What becomes of the Secret of a revoked token.
    pub on_revoke: OnRevoke,
    /// What becomes of the Secret of a deleted token.
    pub on_delete: OnDelete,
    /// The hash of what rotates when it changes.
    pub hash: String,
}

/// Why a spec is invalid. The CRD rejects all of this; the controller checks again, because a CRD can be edited and an
/// object can be older than a rule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidSpec {
    /// No scope, or too many.
    #[error("spec.scopes must name 1 to {MAX_SCOPES} scopes, not {0}")]
    ScopeCount(usize),
    /// A scope is not `resource:action`.
    #[error("spec.scopes: {0:?} is not a scope: write resource:action, such as orders:read or orders:*")]
    Scope(String),
    /// `format.prefix` has a wrong length or character.
    #[error("spec.format.prefix: {0}")]
    Prefix(#[from] PrefixError),
    /// `rotation.interval` or `rotation.overlap` is not a duration.
    #[error("spec.rotation: {0}")]
    Duration(#[from] DurationError),
    /// A schedule would replace a secret whose predecessor still works.
    #[error("spec.rotation.overlap must be shorter than spec.rotation.interval")]
    Overlap,
    /// A label or annotation by which another tool owns objects.
    #[error("spec.secret.template: the key {0:?} is refused, because a tool owns its objects by it")]
    TemplateKey(String),
    /// A type from which Kubernetes makes credentials.
    #[error("spec.secret.template.type: {0} makes Kubernetes issue credentials of its own; use Opaque")]
    SecretType(String),
    /// One data key for two tokens.
    #[error("spec.secret.keys: token and previous must differ")]
    Keys,
    /// One data key for a token and a constant.
    #[error("spec.secret.template.data: the key {0:?} is that of a token")]
    DataKey(String),
    /// The Secret of somebody else is not tokenward's to delete, or to give a type.
    #[error(
        "spec.secret: with creationPolicy Merge the Secret is somebody else's: leave out onDelete, template.type and \
         onRevoke: Delete"
    )]
    Merge,
    /// The name does not fit a label.
    #[error("metadata.name has {0} characters; at most 63 fit the label of the Secret")]
    Name(usize),
}

impl Spec {
    /// Applies the defaults and checks the bounds.
    pub fn of(token: &ApiToken) -> Result<Self, InvalidSpec> {
        let name = token.metadata.name.clone().unwrap_or_default();
        if name.len() > 63 {
            return Err(InvalidSpec::Name(name.len()));
        }
        let spec = &token.spec;
        if !(1..=MAX_SCOPES).contains(&spec.scopes.len()) {
            return Err(InvalidSpec::ScopeCount(spec.scopes.len()));
        }
        if let Some(scope) = spec.scopes.iter().find(|scope| !is_scope(scope)) {
            return Err(InvalidSpec::Scope(scope.clone()));
        }
        let prefix = match spec.format.as_ref().and_then(|f| f.prefix.as_deref()) {
            Some(prefix) => Prefix::new(prefix)?,
            None => Prefix::default(),
        };
        let rotation = spec.rotation.clone().unwrap_or_default();
        let interval = rotation.interval.as_ref().map(|d| d.parse()).transpose()?;
        let overlap = rotation.overlap.as_ref().map_or(Ok(DEFAULT_OVERLAP), |d| d.parse())?;
        if interval.is_some_and(|interval| overlap >= interval) {
            return Err(InvalidSpec::Overlap);
        }
        let secret = spec.secret.clone().unwrap_or_default();
        let keys = secret.keys.unwrap_or_default();
        let token_key = keys.token.unwrap_or_else(|| "token".to_owned());
        let previous_key = keys.previous.filter(|key| !key.is_empty());
        if previous_key.as_ref() == Some(&token_key) {
            return Err(InvalidSpec::Keys);
        }
        let template = secret.template.unwrap_or_default();
        let data: BTreeMap<_, _> = template.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect();
        if let Some(key) = data.keys().find(|key| **key == token_key || previous_key.as_ref() == Some(key)) {
            return Err(InvalidSpec::DataKey(key.clone()));
        }
        let creation_policy = secret.creation_policy.unwrap_or_default();
        let on_revoke = secret.on_revoke.unwrap_or_default();
        let is_owners =
            on_revoke == OnRevoke::Delete || secret.on_delete.is_some() || template.type_.is_some();
        let on_delete = match creation_policy {
            CreationPolicy::Merge if is_owners => return Err(InvalidSpec::Merge),
            CreationPolicy::Merge => OnDelete::Retain,
            CreationPolicy::Owner => secret.on_delete.unwrap_or_default(),
        };
        let metadata = template.metadata.unwrap_or_default();
        let labels: BTreeMap<_, _> = metadata.labels.into_iter().flatten().map(|(k, v)| (k, v.0)).collect();
        let annotations: BTreeMap<_, _> =
            metadata.annotations.into_iter().flatten().map(|(k, v)| (k, v.0)).collect();
        if let Some(key) = labels.keys().find(|key| is_reserved(key) && !is_common_label(key)) {
            return Err(InvalidSpec::TemplateKey(key.clone()));
        }
        if let Some(key) = annotations.keys().find(|key| is_reserved(key)) {
            return Err(InvalidSpec::TemplateKey(key.clone()));
        }
        let secret_type = template.type_.unwrap_or_else(|| "Opaque".to_owned());
        if matches!(&*secret_type, "kubernetes.io/service-account-token" | "bootstrap.kubernetes.io/token") {
            return Err(InvalidSpec::SecretType(secret_type));
        }
        let hash = hash(token, &prefix);
        Ok(Self {
            scopes: spec.scopes.clone(),
            prefix,
            trigger: rotation.trigger,
            interval,
            overlap,
            on_spec_change: rotation.on_spec_change.unwrap_or_default(),
            secret_name: secret.name.unwrap_or(name),
            token_key,
            previous_key,
            creation_policy,
            secret_type,
            data,
            labels,
            annotations,
            on_revoke,
            on_delete,
            hash,
        })
    }
}

impl Spec {
    /// The data keys of tokens.
    pub fn token_keys(&self) -> impl Iterator<Item = &str> {
        [Some(&self.token_key), self.previous_key.as_ref()].into_iter().flatten().map(String::as_str)
    }
}

/// Label and annotation domains by which tools own their objects.
const RESERVED: [&str; 6] = [GROUP, "argoproj.io", "fluxcd.io", "helm.sh", "k8s.io", "kubernetes.io"];

fn is_reserved(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return false };
    RESERVED
        .iter()
        .any(|reserved| domain.strip_suffix(reserved).is_some_and(|sub| sub.is_empty() || sub.ends_with('.')))
}

fn is_common_label(key: &str) -> bool {
    key.strip_prefix("app.kubernetes.io/")
        .is_some_and(|name| matches!(name, "name" | "component" | "part-of" | "version"))
}

/// Hashes the fields whose change rotates, in a canonical form: sorted, without duplicates, and an unset field is equal
/// to its default.
fn hash(token: &ApiToken, prefix: &Prefix) -> String {
    let sorted = |list: &[String]| {
        let mut list = list.to_vec();
        list.sort_unstable();
        list.dedup();
        list
    };
    let spec = &token.spec;
    let cidrs = spec.constraints.as_ref().and_then(|c| c.cidrs.as_deref());
    let canonical = json!([
        ["audiences", sorted(spec.audiences.as_deref().unwrap_or_default())],
        ["cidrs", sorted(cidrs.unwrap_or_default())],
        ["prefix", prefix.as_str()],
        ["scopes", sorted(&spec.scopes)],
    ]);
    format!("{SPEC_HASH_PREFIX}{}", URL_SAFE_NO_PAD.encode(Sha256::digest(canonical.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::{
        ApiTokenSpec, Constraints, Format, LabelValue, Rotation, SecretKeys, SecretSpec, SecretTemplate,
        TemplateMetadata,
    };

    fn token(spec: ApiTokenSpec) -> ApiToken {
        ApiToken::new("backend-prod", spec)
    }

    fn scopes(scopes: &[&str]) -> ApiTokenSpec {
        ApiTokenSpec { scopes: scopes.iter().map(|s| (*s).to_owned()).collect(), ..Default::default() }
    }

    fn hash_of(spec: ApiTokenSpec) -> String {
        Spec::of(&token(spec)).expect("valid").hash
    }

    #[test]
    fn an_empty_spec_has_the_defaults() {
        let spec = Spec::of(&token(scopes(&["a:b"]))).expect("valid");
        assert_eq!(spec.overlap, SignedDuration::from_hours(1));
        assert_eq!((spec.secret_name.as_str(), spec.token_key.as_str()), ("backend-prod", "token"));
        assert_eq!((spec.prefix.as_str(), spec.secret_type.as_str()), ("tw", "Opaque"));
        assert_eq!(spec.previous_key, None);
    }

    /// A fixed vector: a change of the canonical form would rotate every token in the world on an upgrade.
    #[test]
    fn the_hash_is_stable() {
        assert_eq!(hash_of(scopes(&["a:b"])), "h1:qIO2_ku172f7dveeP0oa37GAaWBLezY5KqmLPaOdAQU");
    }

    #[test]
    fn unset_and_default_have_the_same_hash() {
        let explicit = ApiTokenSpec {
            audiences: Some(vec![]),
            constraints: Some(Constraints { cidrs: Some(vec![]) }),
            format: Some(Format { prefix: Some("tw".to_owned()) }),
            display_name: Some("another name".to_owned()),
            ..scopes(&["a:b"])
        };
        assert_eq!(hash_of(explicit), hash_of(scopes(&["a:b"])));
        assert_eq!(hash_of(scopes(&["a:b", "c:d"])), hash_of(scopes(&["c:d", "a:b"])));
    }

    #[test]
    fn what_a_version_depends_on_changes_the_hash() {
        let base = hash_of(scopes(&["a:b"]));
        let prefix = Some(Format { prefix: Some("tok_live".to_owned()) });
        for other in [
            scopes(&["a:c"]),
            scopes(&["a:b", "a:c"]),
            ApiTokenSpec { audiences: Some(vec!["x".to_owned()]), ..scopes(&["a:b"]) },
            ApiTokenSpec {
                constraints: Some(Constraints { cidrs: Some(vec!["::/0".to_owned()]) }),
                ..scopes(&["a:b"])
            },
            ApiTokenSpec { format: prefix, ..scopes(&["a:b"]) },
        ] {
            assert_ne!(hash_of(other.clone()), base, "{other:?}");
        }
    }

    #[test]
    fn what_the_crd_rejects_is_rejected_again() {
        let rotation = |interval: &str, overlap: &str| ApiTokenSpec {
            rotation: Some(Rotation {
                interval: Some(interval.into()),
                overlap: Some(overlap.into()),
                ..Default::default()
            }),
            ..scopes(&["a:b"])
        };
        let secret = |secret: serde_json::Value| ApiTokenSpec {
            secret: Some(serde_json::from_value(secret).expect("a secret")),
            ..scopes(&["a:b"])
        };
        let template = |type_: Option<&str>, label: Option<&str>| ApiTokenSpec {
            secret: Some(SecretSpec {
                template: Some(SecretTemplate {
                    type_: type_.map(str::to_owned),
                    metadata: Some(TemplateMetadata {
                        labels: label.map(|key| [(key.to_owned(), LabelValue("x".to_owned()))].into()),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..scopes(&["a:b"])
        };
        let keys = |token: &str, previous: &str| ApiTokenSpec {
            secret: Some(SecretSpec {
                keys: Some(SecretKeys { token: Some(token.to_owned()), previous: Some(previous.to_owned()) }),
                ..Default::default()
            }),
            ..scopes(&["a:b"])
        };
        for (spec, word) in [
            (scopes(&[]), "1 to 64"),
            (scopes(&["orders"]), "resource:action"),
            (rotation("30d", "1h"), "720h"),
            (rotation("1h", "60m"), "shorter"),
            (template(Some("kubernetes.io/service-account-token"), None), "Opaque"),
            (template(None, Some("argocd.argoproj.io/instance")), "refused"),
            (template(None, Some("app.kubernetes.io/instance")), "refused"),
            (template(None, Some("kustomize.toolkit.fluxcd.io/name")), "refused"),
            (keys("a", "a"), "differ"),
            (secret(json!({"template": {"data": {"token": "x"}}})), "is that of a token"),
            (
                secret(json!({"keys": {"previous": "p"}, "template": {"data": {"p": "x"}}})),
                "is that of a token",
            ),
            (secret(json!({"creationPolicy": "Merge", "onRevoke": "Delete"})), "somebody else's"),
            (secret(json!({"creationPolicy": "Merge", "onDelete": "Retain"})), "somebody else's"),
            (secret(json!({"creationPolicy": "Merge", "template": {"type": "x/y"}})), "somebody else's"),
        ] {
            let error = Spec::of(&token(spec)).expect_err(word).to_string();
            assert!(error.contains(word), "{error}");
        }
        for label in ["app.kubernetes.io/name", "team", "example.com/tokenward.dev", "nottokenward.dev/x"] {
            assert!(Spec::of(&token(template(None, Some(label)))).is_ok(), "{label}");
        }
    }
}
