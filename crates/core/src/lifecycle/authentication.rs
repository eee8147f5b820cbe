//! Whether the controller recorded a version as the status has it, by the version's MAC.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::observed::{Observed, SecretState};
use crate::crd::{ApiTokenStatus, TokenVersion};
use crate::token::{Hash, MacCheck, Owner, PepperId, Peppers, VersionFacts};

/// Writes the MAC of every version of an ApiToken. One whose pepper is not known keeps what it has.
pub fn authenticate(status: &mut ApiTokenStatus, metadata: &ObjectMeta, peppers: &Peppers) {
    let owner = owner(metadata, status.token_id.as_deref());
    for version in &mut status.versions {
        write_mac(version, owner, peppers);
    }
}

/// Writes the MAC of a version, if its pepper is known.
fn write_mac(version: &mut TokenVersion, owner: Owner<'_>, peppers: &Peppers) {
    let hash = Hash::parse(&version.hash);
    if let Some(mac) = hash.and_then(|hash| facts(owner, version, &hash).mac(peppers)) {
        version.mac = mac;
    }
}

/// A version with its MAC, of a token with this id.
pub(super) fn authenticated(
    mut version: TokenVersion,
    observed: &Observed<'_>,
    token_id: &str,
) -> TokenVersion {
    write_mac(&mut version, owner(&observed.token.metadata, Some(token_id)), observed.peppers);
    version
}

/// Verifies the MAC of a version, of a status with this token id.
pub(super) fn verify(observed: &Observed<'_>, token_id: Option<&str>, version: &TokenVersion) -> MacCheck {
    let owner = owner(&observed.token.metadata, token_id);
    match Hash::parse(&version.hash) {
        Some(hash) => facts(owner, version, &hash).verify(observed.peppers, &version.mac),
        None => MacCheck::Invalid,
    }
}

/// Whether enough is known to judge the versions of the status: each live one is authentic, or the Secret, whose seal
/// could authenticate it, was read. Otherwise they stay as they are.
pub(super) fn can_judge(observed: &Observed<'_>) -> bool {
    let is_unknown = matches!(observed.secret, SecretState::Unreadable(_) | SecretState::UnknownPepper(_));
    let secret_was_read = observed.spec.is_ok() && !is_unknown;
    let is_invalid = |status: &ApiTokenStatus, version: &TokenVersion| {
        version.state.is_live() && verify(observed, status.token_id.as_deref(), version) == MacCheck::Invalid
    };
    secret_was_read
        || observed.status().is_none_or(|status| !status.versions.iter().any(|v| is_invalid(status, v)))
}

/// The pepper of a version, if it is not known, so that nobody can tell whether the version is authentic.
pub(super) fn missing_pepper(observed: &Observed<'_>, version: &TokenVersion) -> Option<PepperId> {
    let pepper = Hash::parse(&version.hash)?.pepper;
    (!observed.peppers.contains(&pepper)).then_some(pepper)
}

fn owner<'a>(metadata: &'a ObjectMeta, token_id: Option<&'a str>) -> Owner<'a> {
    Owner {
        namespace: metadata.namespace.as_deref().unwrap_or_default(),
        name: metadata.name.as_deref().unwrap_or_default(),
        uid: metadata.uid.as_deref().unwrap_or_default(),
        token_id: token_id.unwrap_or_default(),
    }
}

fn facts<'a>(owner: Owner<'a>, version: &'a TokenVersion, hash: &'a Hash) -> VersionFacts<'a> {
    VersionFacts {
        owner,
        version: version.version,
        key_id: &version.key_id,
        hash,
        state: version.state.as_str(),
        scopes: &version.scopes,
        issued_at: version.issued_at,
        retire_at: version.retire_at,
    }
}
