//! Whether a Secret is ours.
//!
//! The evidence, strongest first:
//!
//! 1. **Token**: it contains a token whose hash is in the status.
//! 2. **Seal**: it carries a seal, which can't be made without the pepper.
//! 3. **Recorded uid**: it has the uid that the status recorded.
//! 4. **Owner reference**: the very ApiToken or TokenWebhook controls it ([`is_controlled_by`]).
//! 5. **Labels**: they name the ApiToken ([`has_labels_of`]).
//!
//! [`inspect`] accepts any of the first four, and never labels alone. Whoever may write Secrets in the namespace can
//! also set an owner reference; all they gain is that a Secret of their own receives a token that they may read
//! anyway. A Secret that is not ours is never written.
//!
//! With `creationPolicy: Merge` the Secret is somebody else's, and only its owner's consent counts ([`consents`]): who may
//! write ApiTokens need not be who may write Secrets.

use std::str;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_core::Resource;

use super::metadata::{taken_metadata, written_data};
use super::{Object, annotation};
use crate::crd::labels::{
    ISSUED_AT_ANNOTATION, KEY_ID_ANNOTATION, MANAGED_BY, MANAGED_BY_VALUE, NAMESPACE_ANNOTATION, PART_OF,
    PART_OF_VALUE, SCOPES_ANNOTATION, SEAL_ANNOTATION, TOKEN_ID_ANNOTATION, TOKEN_LABEL,
    TOKEN_UID_ANNOTATION, VERSION_ANNOTATION,
};
use crate::crd::{ApiToken, CreationPolicy};
use crate::lifecycle::observed::{OwnSecret, SealedVersion, SecretState};
use crate::lifecycle::spec::Spec;
use crate::token::seal::{Seal, Sealed};
use crate::token::{Hash, KeyId, PepperId, Peppers, Token};
use crate::tombstone::{TokenIdentity, Tombstones};

/// A Secret that was made within this time of the issue of its token is taken for the one that the token was delivered in. Wide
/// enough for a slow delivery and for clocks that differ.
const DELIVERED_WITHIN: SignedDuration = SignedDuration::from_mins(1);

/// Whether the object with this uid is the controlling owner.
pub fn is_controlled_by(metadata: &ObjectMeta, uid: &str) -> bool {
    metadata.owner_references.iter().flatten().any(|owner| owner.uid == uid && owner.controller == Some(true))
}

/// Whether the labels say that it is the Secret of the ApiToken of this name. Anybody can set labels, so this is
/// enough for advice, but not for a write.
pub fn has_labels_of(metadata: &ObjectMeta, name: &str) -> bool {
    let managed_by = metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY));
    managed_by.is_some_and(|by| by == MANAGED_BY_VALUE) && consents(metadata, name)
}

/// Whether the owner of a Secret lets the ApiToken of this name write into it.
pub fn consents(metadata: &ObjectMeta, name: &str) -> bool {
    metadata.labels.as_ref().and_then(|labels| labels.get(TOKEN_LABEL)).is_some_and(|token| token == name)
}

/// Determines whether a Secret is ours and which versions it contains.
pub fn inspect(
    secret: &Secret,
    token: &ApiToken,
    spec: &Spec,
    peppers: &Peppers,
    tombstones: &Tombstones,
) -> SecretState {
    let object = Object::of(token);
    let data = secret.data.as_ref();
    let versions = token.status.as_ref().map_or(&[][..], |s| &s.versions);
    let verified = |value: &ByteString| {
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
    let in_place = at(&spec.token_key).and_then(verified);
    // A token under another key, after `secret.keys` was edited, is moved, not minted anew.
    let elsewhere = || {
        let annotated = annotation(&secret.metadata, KEY_ID_ANNOTATION)?;
        data?.values().filter_map(verified).find(|key_id| key_id.as_str() == annotated)
    };
    let contained = in_place.or_else(elsewhere);
    let constants =
        spec.data.iter().filter(|(key, value)| at(key).is_none_or(|found| found.0 != value.as_bytes()));
    let misplaced = in_place.is_none().then_some(&spec.token_key);
    let wrong_keys = misplaced.into_iter().chain(constants.map(|(key, _)| key)).cloned().collect();
    let sealed = seal(secret, &object, peppers, tombstones);
    let recorded_uid =
        token.status.as_ref().and_then(|s| s.secret_ref.as_ref()).and_then(|r| r.uid.as_deref());
    let is_ours = match spec.creation_policy {
        CreationPolicy::Merge => consents(&secret.metadata, object.name),
        CreationPolicy::Owner => {
            contained.is_some()
                || sealed.is_some()
                || (recorded_uid.is_some() && recorded_uid == secret.metadata.uid.as_deref())
                || is_controlled_by(&secret.metadata, object.uid)
        }
    };
    if spec.creation_policy == CreationPolicy::Merge {
        if !is_ours {
            let label = secret.metadata.labels.as_ref().and_then(|labels| labels.get(TOKEN_LABEL));
            return SecretState::Foreign(label.map(|token| format!("{} {token}", ApiToken::kind(&()))));
        }
        let written = written_data(&secret.metadata);
        let is_theirs = |key: &&str| {
            let is_dead =
                |value: &ByteString| str::from_utf8(&value.0).is_ok_and(|text| Token::parse(text).is_some());
            at(key).is_some_and(|value| !is_dead(value)) && !written.iter().any(|ours| ours == key)
        };
        let keys = spec.token_keys().chain(spec.data.keys().map(String::as_str));
        let taken = keys.filter(is_theirs).map(str::to_owned);
        let taken: Vec<String> = taken.chain(taken_metadata(&secret.metadata, spec)).collect();
        if !taken.is_empty() {
            return SecretState::Taken(taken);
        }
    }
    if !is_ours {
        return unknown_pepper(&secret.metadata, &object, peppers).map_or_else(
            || SecretState::Foreign(owner(&secret.metadata, &object)),
            SecretState::UnknownPepper,
        );
    }
    SecretState::Ours(Box::new(OwnSecret {
        metadata: ObjectMeta { managed_fields: None, ..secret.metadata.clone() },
        verified: contained,
        wrong_keys,
        sealed: sealed.flatten(),
    }))
}

/// What a Secret says that it belongs to, for advice only: the object that controls it, the ApiToken in its label, or
/// tokenward itself, as the pepper does.
fn owner(metadata: &ObjectMeta, object: &Object<'_>) -> Option<String> {
    let label = |key| metadata.labels.as_ref().and_then(|labels| labels.get(key));
    let controlling = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let is_ours = label(MANAGED_BY).is_some_and(|by| by == MANAGED_BY_VALUE);
    let token = || label(TOKEN_LABEL).filter(|token| is_ours && **token != object.name);
    controlling
        .map(|owner| format!("{} {}", owner.kind, owner.name))
        .or_else(|| token().map(|token| format!("{} {token}", ApiToken::kind(&()))))
        .or_else(|| {
            label(PART_OF).filter(|whole| *whole == PART_OF_VALUE).map(|_| "tokenward itself".to_owned())
        })
}

/// The pepper of the seal of a Secret of this ApiToken, if that pepper is not known.
fn unknown_pepper(metadata: &ObjectMeta, object: &Object<'_>, peppers: &Peppers) -> Option<PepperId> {
    let seal = Seal::parse(annotation(metadata, SEAL_ANNOTATION)?)?;
    (has_labels_of(metadata, object.name) && !peppers.contains(seal.pepper())).then_some(*seal.pepper())
}

/// Verifies the seal. `None`: there is no valid one. `Some(None)`: the Secret is ours to overwrite, and its token never works
/// again, whatever labels say: those are the tenant's. The token was revoked, or the Secret is the copy of one in another
/// namespace, or it was left behind by an earlier ApiToken of this name, whose deletion revoked it.
///
/// With a Secret that is itself a copy, the earlier ApiToken was restored and not replaced, and what it contains lives on.
fn seal(
    secret: &Secret,
    object: &Object<'_>,
    peppers: &Peppers,
    tombstones: &Tombstones,
) -> Option<Option<SealedVersion>> {
    let metadata = &secret.metadata;
    let text = annotation(metadata, KEY_ID_ANNOTATION)?;
    let key_id = KeyId::parse(text).ok()?;
    let seal = Seal::parse(annotation(metadata, SEAL_ANNOTATION)?)?;
    let presented = secret
        .data
        .iter()
        .flatten()
        .filter_map(|(_, value)| Token::parse(std::str::from_utf8(&value.0).ok()?))
        .find(|presented| presented.key_id() == key_id)?;
    // Secrets that were written before have no such annotation, and are those of their own namespace.
    let namespace = annotation(metadata, NAMESPACE_ANNOTATION).unwrap_or(object.namespace);
    let hash = peppers.hash_with(seal.pepper(), namespace, object.name, &presented)?;
    let uid = annotation(metadata, TOKEN_UID_ANNOTATION)?;
    let (version, issued_at) =
        (annotation(metadata, VERSION_ANNOTATION)?, annotation(metadata, ISSUED_AT_ANNOTATION)?);
    let scopes = annotation(metadata, SCOPES_ANNOTATION);
    let live = Sealed {
        namespace,
        name: object.name,
        uid,
        token_id: annotation(metadata, TOKEN_ID_ANNOTATION)?,
        issued_at,
        version: version.parse().ok()?,
        key_id: text,
        scopes,
        revoked: false,
        hash: &hash,
    };
    if !seal.verify(peppers, &live) {
        return seal.verify(peppers, &Sealed { revoked: true, ..live }).then_some(None);
    }
    let Ok(issued_at) = issued_at.parse() else { return Some(None) };
    let restored = uid != object.uid;
    if namespace != object.namespace
        || (restored && !is_copy(metadata, issued_at))
        || tombstones
            .has_either(TokenIdentity { namespace, name: object.name, token_id: live.token_id }, text)
    {
        return Some(None);
    }
    Some(Some(SealedVersion {
        restored,
        token_id: live.token_id.to_owned(),
        version: live.version,
        key_id,
        hash,
        issued_at,
        scopes: scopes.map(|scopes| scopes.split_ascii_whitespace().map(str::to_owned).collect()),
    }))
}

/// Whether a Secret was made long after the token in it was issued, so that it is not the one that was written then.
fn is_copy(metadata: &ObjectMeta, issued_at: Timestamp) -> bool {
    let created_at = metadata.creation_timestamp.as_ref().map(|time| time.0);
    created_at.is_some_and(|at| at.duration_since(issued_at) > DELIVERED_WITHIN)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    #[test]
    fn only_the_controlling_owner_counts() {
        for (uid, controller, expected) in
            [("u", Some(true), true), ("u", Some(false), false), ("u", None, false), ("v", Some(true), false)]
        {
            let owner = OwnerReference { uid: uid.to_owned(), controller, ..Default::default() };
            let metadata = ObjectMeta { owner_references: Some(vec![owner]), ..Default::default() };
            assert_eq!(is_controlled_by(&metadata, "u"), expected, "{uid} {controller:?}");
        }
        assert!(!is_controlled_by(&ObjectMeta::default(), ""));
    }

    #[test]
    fn both_labels_are_needed() {
        let metadata = |labels: &[(&str, &str)]| ObjectMeta {
            labels: Some(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
            ..Default::default()
        };
        let (by, token) = ((MANAGED_BY, MANAGED_BY_VALUE), (TOKEN_LABEL, "t"));
        assert!(has_labels_of(&metadata(&[by, token]), "t"));
        assert!(!has_labels_of(&metadata(&[by, token]), "other"));
        assert!(!has_labels_of(&metadata(&[by]), "t"));
        assert!(!has_labels_of(&metadata(&[token]), "t"));
        assert!(!has_labels_of(&metadata(&[(MANAGED_BY, "helm"), token]), "t"));
        assert!(!has_labels_of(&ObjectMeta::default(), "t"));
    }
}
