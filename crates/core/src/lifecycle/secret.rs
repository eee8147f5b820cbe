//! The Secret, pure: whose it is, what it holds, and what it should look like.
//!
//! Whose: labels and names prove nothing, since anybody who may write Secrets in the namespace can set them. A
//! Secret is ours if it holds a token that the status knows, or carries a seal that only the pepper's holder can
//! make, or has the uid that the status recorded, or is owned by the very ApiToken. Anything else of that name is
//! foreign and never written.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube_core::Resource;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::{OwnSecret, SealedVersion, SecretState, Spec};
use crate::crd::{ApiToken, ApiTokenStatus, OnDelete, TokenVersion};
use crate::token::seal::{Seal, Sealed};
use crate::token::{Hash, KeyId, Peppers, Plaintext, Token};

/// The label by which the controller's own Secrets are watched.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Its value.
pub const MANAGED_BY_VALUE: &str = "tokenward";
/// The label that names the ApiToken.
pub const TOKEN_LABEL: &str = "tokenward.dev/token";

const REVOKED_LABEL: &str = "tokenward.dev/revoked";
const VERSION: &str = "tokenward.dev/version";
const KEY_ID: &str = "tokenward.dev/key-id";
const ISSUED_AT: &str = "tokenward.dev/issued-at";
const TOKEN_ID: &str = "tokenward.dev/token-id";
const TOKEN_UID: &str = "tokenward.dev/token-uid";
const SEAL: &str = "tokenward.dev/seal";
/// Which keys came from the template, so that one taken out of it is taken off the Secret.
const TEMPLATE: &str = "tokenward.dev/template";
/// Velero puts this on whatever it restores. Only then may the seal of an earlier uid be believed: without it,
/// an object of the same name is a new token, and the deletion of the old one was its revocation.
const RESTORED: &str = "velero.io/restore-name";

type Data = BTreeMap<String, ByteString>;

/// Looks at a Secret: whose it is and what it holds.
pub fn inspect(secret: &Secret, token: &ApiToken, spec: &Spec, peppers: &Peppers) -> SecretState {
    let object = Object::of(token);
    let data = secret.data.as_ref();
    let versions = token.status.as_ref().map_or(&[][..], |s| &s.versions);
    let proven = |value: &ByteString| {
        let text = std::str::from_utf8(&value.0).ok()?;
        let presented = Token::parse(text)?;
        versions.iter().find_map(|version| {
            let hash = Hash::parse(&version.hash)?;
            (version.key_id == presented.key_id().as_str()
                && peppers.verify(object.namespace, object.name, &presented, &hash.mac))
            .then(|| presented.key_id())
        })
    };
    let at = |key: &str| data.and_then(|data| data.get(key));
    let in_place = at(&spec.token_key).and_then(proven);
    let previous = spec.previous_key.as_deref().and_then(at).and_then(proven);
    // A token under another key, after `secret.keys` was edited, is moved, not minted anew.
    let elsewhere = || {
        let annotated = annotation(&secret.metadata, KEY_ID)?;
        data?.values().filter_map(proven).find(|key_id| key_id.as_str() == annotated)
    };
    let holds = in_place.or_else(elsewhere);
    let sealed = seal(secret, &object, peppers);
    let owned = secret
        .metadata
        .owner_references
        .iter()
        .flatten()
        .any(|r| r.uid == object.uid && r.controller == Some(true));
    let recorded = token.status.as_ref().and_then(|s| s.secret_ref.as_ref()).and_then(|r| r.uid.as_deref());
    let same = recorded.is_some() && recorded == secret.metadata.uid.as_deref();
    if holds.is_none() && sealed.is_none() && !owned && !same {
        return SecretState::Foreign;
    }
    SecretState::Ours(Box::new(OwnSecret {
        metadata: ObjectMeta { managed_fields: None, ..secret.metadata.clone() },
        holds,
        in_place: in_place.is_some(),
        previous,
        sealed: sealed.flatten(),
    }))
}

/// Reads the seal. `None`: there is no valid one. `Some(None)`: it was made for an earlier object of this name,
/// so the Secret is ours to overwrite, and its token is dead.
fn seal(secret: &Secret, object: &Object<'_>, peppers: &Peppers) -> Option<Option<SealedVersion>> {
    let metadata = &secret.metadata;
    let text = annotation(metadata, KEY_ID)?;
    let key_id = KeyId::parse(text).ok()?;
    let seal = Seal::parse(annotation(metadata, SEAL)?)?;
    let presented = secret
        .data
        .iter()
        .flatten()
        .filter_map(|(_, value)| Token::parse(std::str::from_utf8(&value.0).ok()?))
        .find(|presented| presented.key_id() == key_id)?;
    let hash = peppers.hash_with(seal.pepper(), object.namespace, object.name, &presented)?;
    let uid = annotation(metadata, TOKEN_UID)?;
    let (version, issued_at) = (annotation(metadata, VERSION)?, annotation(metadata, ISSUED_AT)?);
    let sealed = Sealed {
        namespace: object.namespace,
        name: object.name,
        uid,
        token_id: annotation(metadata, TOKEN_ID)?,
        issued_at,
        version: version.parse().ok()?,
        key_id: text,
        hash: &hash,
    };
    if !seal.verify(peppers, &sealed) {
        return None;
    }
    let believed = uid == object.uid || object.restored;
    let issued_at = issued_at.parse().ok().filter(|_| believed);
    let Some(issued_at) = issued_at else { return Some(None) };
    let (token_id, version) = (sealed.token_id.to_owned(), sealed.version);
    Some(Some(SealedVersion { token_id, version, key_id, hash, issued_at }))
}

fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// What identifies an ApiToken.
struct Object<'a> {
    namespace: &'a str,
    name: &'a str,
    uid: &'a str,
    restored: bool,
}

impl<'a> Object<'a> {
    fn of(token: &'a ApiToken) -> Self {
        let metadata = &token.metadata;
        Self {
            namespace: metadata.namespace.as_deref().unwrap_or_default(),
            name: metadata.name.as_deref().unwrap_or_default(),
            uid: metadata.uid.as_deref().unwrap_or_default(),
            restored: metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(RESTORED)),
        }
    }
}

/// The keys that came from the template.
#[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
struct TemplateKeys {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    labels: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    annotations: Vec<String>,
}

/// What a Secret of ours wears: labels, annotations and the owner, for the version that it holds.
#[derive(Clone, Debug)]
pub struct SecretMetadata {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    revoked: bool,
    owner: OwnerReference,
    owned: bool,
    uid: String,
}

impl SecretMetadata {
    /// What the Secret should wear while it holds this version. The seal is not part of it: it needs the pepper.
    pub fn of(token: &ApiToken, spec: &Spec, version: &TokenVersion, status: &ApiTokenStatus) -> Self {
        let object = Object::of(token);
        let token_id = status.token_id.as_deref().unwrap_or_default();
        let revoked = status.revocation.is_some();
        let mut labels = spec.labels.clone();
        labels.insert(MANAGED_BY.to_owned(), MANAGED_BY_VALUE.to_owned());
        labels.insert(TOKEN_LABEL.to_owned(), object.name.to_owned());
        if revoked {
            labels.insert(REVOKED_LABEL.to_owned(), "true".to_owned());
        }
        let mut annotations = spec.annotations.clone();
        annotations.extend(
            [
                (VERSION, version.version.to_string()),
                (KEY_ID, version.key_id.clone()),
                (ISSUED_AT, version.issued_at.to_string()),
                (TOKEN_ID, token_id.to_owned()),
                (TOKEN_UID, object.uid.to_owned()),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        );
        let keys = TemplateKeys {
            labels: spec.labels.keys().cloned().collect(),
            annotations: spec.annotations.keys().cloned().collect(),
        };
        if keys != TemplateKeys::default() {
            // Two lists of strings always serialize.
            annotations.insert(TEMPLATE.to_owned(), serde_json::to_string(&keys).unwrap_or_default());
        }
        let owner = OwnerReference {
            api_version: ApiToken::api_version(&()).into_owned(),
            kind: ApiToken::kind(&()).into_owned(),
            name: object.name.to_owned(),
            uid: object.uid.to_owned(),
            controller: Some(true),
            // Blocking would need the right to set finalizers, and a Secret should never hold up its owner's end.
            block_owner_deletion: Some(false),
        };
        let owned = spec.on_delete == OnDelete::Delete;
        Self { labels, annotations, revoked, owner, owned, uid: object.uid.to_owned() }
    }

    /// Whether a Secret wears it already.
    pub fn fits(&self, metadata: &ObjectMeta) -> bool {
        let labels = metadata.labels.clone().unwrap_or_default();
        let annotations = metadata.annotations.clone().unwrap_or_default();
        let owners = metadata.owner_references.as_deref().unwrap_or_default();
        let wears = |worn: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>| {
            wanted.iter().all(|(key, value)| worn.get(key) == Some(value))
        };
        wears(&labels, &self.labels)
            && wears(&annotations, &self.annotations)
            && annotations.contains_key(SEAL)
            && labels.contains_key(REVOKED_LABEL) == self.revoked
            && annotations.get(TEMPLATE) == self.annotations.get(TEMPLATE)
            && if self.owned {
                owners.contains(&self.owner)
            } else {
                owners.iter().all(|r| r.uid != self.uid)
            }
    }

    /// Puts it on, and takes off what an earlier template had put on. What others put on stays.
    fn apply_to(&self, metadata: &mut ObjectMeta, seal: String) {
        let labels = metadata.labels.get_or_insert_default();
        let annotations = metadata.annotations.get_or_insert_default();
        let before: TemplateKeys =
            annotations.get(TEMPLATE).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        labels.retain(|key, _| key != REVOKED_LABEL && !before.labels.contains(key));
        annotations.retain(|key, _| key != TEMPLATE && !before.annotations.contains(key));
        labels.extend(self.labels.clone());
        annotations.extend(self.annotations.clone());
        annotations.insert(SEAL.to_owned(), seal);
        let owners = metadata.owner_references.get_or_insert_default();
        // Another controlling owner would be refused beside ours: an earlier ApiToken of this name.
        owners.retain(|r| r.uid != self.uid && r.kind != self.owner.kind);
        if self.owned {
            owners.push(self.owner.clone());
        }
    }
}

/// What the data of a Secret is to become.
pub struct DesiredData<'a> {
    /// The version that it is to hold.
    pub version: &'a TokenVersion,
    /// Its token, if it is a new one; else it is in the Secret already.
    pub plaintext: Option<&'a Plaintext>,
    /// The version whose token belongs under the key for the previous one.
    pub previous: Option<&'a str>,
}

/// Writes the Secret as it should be, over the one there is. `None`: what it should hold is not to be had, because
/// the pepper or the token to keep is gone.
pub fn compose(
    existing: Option<Secret>,
    token: &ApiToken,
    spec: &Spec,
    peppers: &Peppers,
    wardrobe: &SecretMetadata,
    filling: &DesiredData<'_>,
) -> Option<Secret> {
    let object = Object::of(token);
    let version = filling.version;
    let mut secret = existing.unwrap_or_else(|| Secret {
        metadata: ObjectMeta {
            name: Some(spec.secret_name.clone()),
            namespace: Some(object.namespace.to_owned()),
            ..Default::default()
        },
        type_: Some(spec.secret_type.clone()),
        ..Default::default()
    });
    let data = secret.data.get_or_insert_default();
    let current = match filling.plaintext {
        Some(plaintext) => ByteString(plaintext.expose().as_bytes().to_vec()),
        None => take(data, &version.key_id)?,
    };
    let previous = filling.previous.and_then(|key_id| take(data, key_id));
    // Whatever else of ours is left in there is stale; what others keep there is theirs.
    data.retain(|key, value| {
        let stale =
            parse(value).is_some() || *key == spec.token_key || spec.previous_key.as_ref() == Some(key);
        if stale {
            value.0.zeroize();
        }
        !stale
    });
    data.insert(spec.token_key.clone(), current);
    if let (Some(key), Some(previous)) = (&spec.previous_key, previous) {
        data.insert(key.clone(), previous);
    }
    let hash = Hash::parse(&version.hash)?;
    let issued_at = version.issued_at.to_string();
    let sealed = Sealed {
        namespace: object.namespace,
        name: object.name,
        uid: object.uid,
        token_id: wardrobe.annotations.get(TOKEN_ID)?,
        issued_at: &issued_at,
        version: version.version,
        key_id: &version.key_id,
        hash: &hash,
    };
    wardrobe.apply_to(&mut secret.metadata, Seal::make(peppers, &sealed)?.to_string());
    Some(secret)
}

fn parse(value: &ByteString) -> Option<Token<'_>> {
    Token::parse(std::str::from_utf8(&value.0).ok()?)
}

/// A copy of the token of a version, wherever in the data it is.
fn take(data: &Data, key_id: &str) -> Option<ByteString> {
    data.values().find(|value| parse(value).is_some_and(|token| token.key_id().as_str() == key_id)).cloned()
}

/// Wipes the data of a Secret that is no longer needed.
pub fn wipe(secret: &mut Secret) {
    for value in secret.data.iter_mut().flat_map(BTreeMap::values_mut) {
        value.0.zeroize();
    }
}

/// Reads an instant to the millisecond, the precision that a status keeps.
pub(super) fn to_millisecond(now: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}
