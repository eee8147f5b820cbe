//! The data of our Secret.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use zeroize::Zeroize;

use super::metadata::templated_data;
use super::{Object, SecretMetadata};
use crate::crd::labels::{SCOPES_ANNOTATION, TOKEN_ID_ANNOTATION};
use crate::crd::{ApiToken, CreationPolicy, TokenVersion};
use crate::lifecycle::spec::Spec;
use crate::token::seal::{Seal, Sealed};
use crate::token::{Hash, Peppers, Plaintext, Token};

type Data = BTreeMap<String, ByteString>;

/// The data that the Secret should contain.
pub struct DesiredData<'a> {
    /// The version whose token belongs under the key for the current one.
    pub version: &'a TokenVersion,
    /// The token of that version if it is new; otherwise the Secret contains it already.
    pub plaintext: Option<&'a Plaintext>,
    /// The version whose token belongs under the key for the previous one.
    pub previous: Option<&'a str>,
}

/// Builds the Secret as it should be, from the existing one if there is one. `None`: the pepper, or the token that the
/// existing Secret should contain, is missing.
pub fn compose(
    existing: Option<Secret>,
    token: &ApiToken,
    spec: &Spec,
    peppers: &Peppers,
    metadata: &SecretMetadata,
    desired: &DesiredData<'_>,
) -> Option<Secret> {
    let object = Object::of(token);
    let version = desired.version;
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
    let current = match desired.plaintext {
        Some(plaintext) => ByteString(plaintext.expose().as_bytes().to_vec()),
        None => find_token(data, &version.key_id)?,
    };
    let previous = desired.previous.and_then(|key_id| find_token(data, key_id));
    // Any other token is stale; in a Secret of somebody else, any other of this ApiToken. Keys that others added are left alone.
    let is_stale = |presented: Token<'_>| match spec.creation_policy {
        CreationPolicy::Owner => true,
        CreationPolicy::Merge => token
            .status
            .as_ref()
            .is_some_and(|status| status.version_of(presented.key_id().as_str()).is_some()),
    };
    let templated = templated_data(&secret.metadata);
    data.retain(|key, value| {
        let stale = parse(value).is_some_and(is_stale)
            || templated.contains(key)
            || *key == spec.token_key
            || spec.previous_key.as_ref() == Some(key);
        if stale {
            value.0.zeroize();
        }
        !stale
    });
    data.extend(spec.data.iter().map(|(key, value)| (key.clone(), ByteString(value.clone().into_bytes()))));
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
        token_id: metadata.annotations.get(TOKEN_ID_ANNOTATION)?,
        issued_at: &issued_at,
        version: version.version,
        key_id: &version.key_id,
        scopes: Some(metadata.annotations.get(SCOPES_ANNOTATION)?),
        revoked: metadata.revoked,
        hash: &hash,
    };
    metadata.apply_to(&mut secret.metadata, Seal::make(peppers, &sealed)?.to_string());
    Some(secret)
}

fn parse(value: &ByteString) -> Option<Token<'_>> {
    Token::parse(std::str::from_utf8(&value.0).ok()?)
}

/// A copy of the token of a version, under whichever key it is.
fn find_token(data: &Data, key_id: &str) -> Option<ByteString> {
    data.values().find(|value| parse(value).is_some_and(|token| token.key_id().as_str() == key_id)).cloned()
}

/// Overwrites the data of a Secret in memory with zeros.
pub fn wipe(secret: &mut Secret) {
    for value in secret.data.iter_mut().flat_map(BTreeMap::values_mut) {
        value.0.zeroize();
    }
}
