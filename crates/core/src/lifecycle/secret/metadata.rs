//! The labels, annotations and owner reference of our Secret.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube_core::Resource;
use serde::{Deserialize, Serialize};

use super::{Object, annotation};
use crate::crd::labels::{
    GROUP, ISSUED_AT_ANNOTATION, KEY_ID_ANNOTATION, MANAGED_BY, MANAGED_BY_VALUE, NAMESPACE_ANNOTATION,
    REVOKED_LABEL, SCOPES_ANNOTATION, SEAL_ANNOTATION, TEMPLATE_ANNOTATION, TOKEN_ID_ANNOTATION, TOKEN_LABEL,
    TOKEN_UID_ANNOTATION, VERSION_ANNOTATION,
};
use crate::crd::{ApiToken, ApiTokenStatus, CreationPolicy, OnDelete, TokenVersion};
use crate::lifecycle::observed::{Observed, OwnSecret};
use crate::lifecycle::spec::Spec;

/// The value of [`TEMPLATE_ANNOTATION`]: the keys that came from `secret.template`.
#[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
struct TemplateKeys {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    labels: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    annotations: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    data: Vec<String>,
    /// Those of tokens, in a Secret of somebody else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tokens: Vec<String>,
}

/// The data keys of constants that came from a template.
pub(super) fn templated_data(metadata: &ObjectMeta) -> Vec<String> {
    TemplateKeys::of(metadata).data
}

/// The data keys in the Secret of somebody else that tokenward has written.
pub(super) fn written_data(metadata: &ObjectMeta) -> Vec<String> {
    let TemplateKeys { data, tokens, .. } = TemplateKeys::of(metadata);
    [data, tokens].concat()
}

/// Labels and annotations of the template that the Secret of somebody else has from elsewhere, for people.
pub(super) fn taken_metadata(metadata: &ObjectMeta, spec: &Spec) -> impl Iterator<Item = String> {
    fn taken(
        kind: &str,
        wanted: &BTreeMap<String, String>,
        found: Option<&BTreeMap<String, String>>,
        written: &[String],
    ) -> Vec<String> {
        let is_theirs =
            |key: &&String| found.is_some_and(|found| found.contains_key(*key)) && !written.contains(key);
        wanted.keys().filter(is_theirs).map(|key| format!("{kind} {key}")).collect()
    }
    let written = TemplateKeys::of(metadata);
    let labels = taken("label", &spec.labels, metadata.labels.as_ref(), &written.labels);
    let annotations =
        taken("annotation", &spec.annotations, metadata.annotations.as_ref(), &written.annotations);
    labels.into_iter().chain(annotations)
}

impl TemplateKeys {
    fn of(metadata: &ObjectMeta) -> Self {
        annotation(metadata, TEMPLATE_ANNOTATION)
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default()
    }
}

/// The labels, annotations and owner reference that our Secret should have, for the version that it contains.
#[derive(Clone, Debug)]
pub struct SecretMetadata {
    labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) revoked: bool,
    owner: OwnerReference,
    owned: bool,
    uid: String,
}

impl SecretMetadata {
    /// The metadata of the Secret that contains this version, without the seal, which needs the pepper.
    pub fn of(token: &ApiToken, spec: &Spec, version: &TokenVersion, status: &ApiTokenStatus) -> Self {
        let object = Object::of(token);
        let token_id = status.token_id.as_deref().unwrap_or_default();
        let revoked = status.revocation.is_some();
        let mut labels = spec.labels.clone();
        if spec.creation_policy == CreationPolicy::Owner {
            labels.insert(MANAGED_BY.to_owned(), MANAGED_BY_VALUE.to_owned());
        }
        labels.insert(TOKEN_LABEL.to_owned(), object.name.to_owned());
        if revoked {
            labels.insert(REVOKED_LABEL.to_owned(), "true".to_owned());
        }
        let mut annotations = spec.annotations.clone();
        annotations.extend(
            [
                (VERSION_ANNOTATION, version.version.to_string()),
                (KEY_ID_ANNOTATION, version.key_id.clone()),
                (ISSUED_AT_ANNOTATION, version.issued_at.to_string()),
                (SCOPES_ANNOTATION, version.scopes.join(" ")),
                (TOKEN_ID_ANNOTATION, token_id.to_owned()),
                (TOKEN_UID_ANNOTATION, object.uid.to_owned()),
                (NAMESPACE_ANNOTATION, object.namespace.to_owned()),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        );
        let keys = TemplateKeys {
            labels: spec.labels.keys().cloned().collect(),
            annotations: spec.annotations.keys().cloned().collect(),
            data: spec.data.keys().cloned().collect(),
            tokens: match spec.creation_policy {
                CreationPolicy::Owner => Vec::new(),
                CreationPolicy::Merge => spec.token_keys().map(str::to_owned).collect(),
            },
        };
        if keys != TemplateKeys::default() {
            // Lists of strings always serialize.
            annotations
                .insert(TEMPLATE_ANNOTATION.to_owned(), serde_json::to_string(&keys).unwrap_or_default());
        }
        let owner = OwnerReference {
            api_version: ApiToken::api_version(&()).into_owned(),
            kind: ApiToken::kind(&()).into_owned(),
            name: object.name.to_owned(),
            uid: object.uid.to_owned(),
            controller: Some(true),
            // Blocking would need the right to set finalizers, and a Secret should never block the deletion of its owner.
            block_owner_deletion: Some(false),
        };
        let owned = spec.on_delete == OnDelete::Delete;
        Self { labels, annotations, revoked, owner, owned, uid: object.uid.to_owned() }
    }

    /// What of this the Secret lacks, or has beyond it, for people.
    pub fn differences(&self, metadata: &ObjectMeta) -> Vec<String> {
        fn lacking<'a>(
            kind: &'a str,
            desired: &'a BTreeMap<String, String>,
            actual: Option<&'a BTreeMap<String, String>>,
        ) -> impl Iterator<Item = String> + 'a {
            let differs = move |key: &str, value: &str| {
                actual.and_then(|actual| actual.get(key)).is_none_or(|found| found != value)
            };
            desired
                .iter()
                .filter(move |(key, value)| differs(key, value))
                .map(move |(key, _)| format!("{kind} {key}"))
        }
        let (labels, annotations) = (metadata.labels.as_ref(), metadata.annotations.as_ref());
        let owners = metadata.owner_references.as_deref().unwrap_or_default();
        let has =
            |map: Option<&BTreeMap<String, String>>, key: &str| map.is_some_and(|map| map.contains_key(key));
        let mut differences: Vec<String> = lacking("label", &self.labels, labels)
            .chain(lacking("annotation", &self.annotations, annotations))
            .collect();
        if !has(annotations, SEAL_ANNOTATION) {
            differences.push(format!("annotation {SEAL_ANNOTATION}"));
        }
        if !self.revoked && has(labels, REVOKED_LABEL) {
            differences.push(format!("label {REVOKED_LABEL}"));
        }
        if has(annotations, TEMPLATE_ANNOTATION) && !self.annotations.contains_key(TEMPLATE_ANNOTATION) {
            differences.push(format!("annotation {TEMPLATE_ANNOTATION}"));
        }
        let has_owner =
            if self.owned { owners.contains(&self.owner) } else { owners.iter().all(|r| r.uid != self.uid) };
        if !has_owner {
            differences.push("ownerReferences".to_owned());
        }
        differences
    }

    /// Writes it, and removes what an earlier template had added. Keys that others set are left alone.
    pub(super) fn apply_to(&self, metadata: &mut ObjectMeta, seal: String) {
        let before = TemplateKeys::of(metadata);
        let labels = metadata.labels.get_or_insert_default();
        let annotations = metadata.annotations.get_or_insert_default();
        labels.retain(|key, _| key != REVOKED_LABEL && !before.labels.contains(key));
        annotations.retain(|key, _| key != TEMPLATE_ANNOTATION && !before.annotations.contains(key));
        labels.extend(self.labels.clone());
        annotations.extend(self.annotations.clone());
        annotations.insert(SEAL_ANNOTATION.to_owned(), seal);
        let owners = metadata.owner_references.get_or_insert_default();
        // The API server admits one controlling owner, so that of an earlier ApiToken of this name goes.
        let group = format!("{GROUP}/");
        owners.retain(|r| {
            r.uid != self.uid && (r.kind != self.owner.kind || !r.api_version.starts_with(&group))
        });
        if self.owned {
            owners.push(self.owner.clone());
        }
    }
}

/// What has to be repaired in our Secret, for people: its metadata, and where its data stands.
pub fn repairs(own: &OwnSecret, metadata: &SecretMetadata) -> Vec<String> {
    let mut repairs = metadata.differences(&own.metadata);
    repairs.extend(own.wrong_keys.iter().map(|key| format!("data key {key}")));
    repairs
}

/// The metadata that the Secret should have, and the version that it contains. `None`: it contains none that the
/// status knows.
pub(in crate::lifecycle) fn desired_metadata<'a>(
    observed: &'a Observed<'_>,
    spec: &Spec,
) -> Option<(&'a TokenVersion, SecretMetadata)> {
    let status = observed.status()?;
    let version = status.version_of(observed.secret.key_id()?.as_str())?;
    Some((version, SecretMetadata::of(observed.token, spec, version, status)))
}
