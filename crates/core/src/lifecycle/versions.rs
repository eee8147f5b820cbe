//! Transitions of the list of versions that follow from the time and the Secret, and its bounds.

use jiff::Timestamp;

use super::authentication::{authenticated, verify};
use super::observed::Observed;
use super::spec::Spec;
use crate::crd::{ApiTokenStatus, RotationReason, SecretRef, TokenVersion, VersionState};
use crate::token::scope::granted_by_both;
use crate::token::{Hash, KeyId, MacCheck};

/// How many versions that no longer work stay in the status, so that people can see what happened.
const MAX_DEAD_VERSIONS: usize = 3;

/// The version that the Secret contains, or contained last.
pub(super) fn active(status: &ApiTokenStatus) -> Option<&TokenVersion> {
    in_state(status, VersionState::Active)
}

/// The version that is to be written into the Secret.
pub(super) fn pending(status: &ApiTokenStatus) -> Option<&TokenVersion> {
    in_state(status, VersionState::Pending)
}

/// The replaced version that still works.
pub(super) fn retiring(status: &ApiTokenStatus) -> Option<&TokenVersion> {
    in_state(status, VersionState::Retiring)
}

fn in_state(status: &ApiTokenStatus, state: VersionState) -> Option<&TokenVersion> {
    status.versions.iter().find(|version| version.state == state)
}

/// Brings a list that anybody may have written into the shape that the controller writes: newest first, at most
/// one version each pending, active and retiring, in that order, and all of them readable. Whatever does not fit
/// is retired, and so is a version that `is_ours` does not recognise: a status can take access away, never give it.
pub(super) fn normalise(versions: &mut Vec<TokenVersion>, is_ours: impl Fn(&TokenVersion) -> bool) {
    versions.sort_by_key(|version| std::cmp::Reverse(version.version));
    versions.dedup_by_key(|version| version.version);
    let mut seen = 0;
    for version in versions {
        let readable = KeyId::parse(&version.key_id).is_ok() && Hash::parse(&version.hash).is_some();
        let rank = match version.state {
            VersionState::Pending => 1,
            VersionState::Active => 2,
            VersionState::Retiring if version.retire_at.is_some() => 3,
            VersionState::Retiring => 0,
            VersionState::Retired | VersionState::Revoked => continue,
        };
        if readable && rank > seen && version.version > 0 && is_ours(version) {
            seen = rank;
            // Only a replaced version has an end of its own.
            version.retire_at = version.retire_at.filter(|_| version.state == VersionState::Retiring);
        } else {
            version.state = VersionState::Retired;
        }
    }
}

/// Retires the version whose overlap has ended. Returns its number.
pub(super) fn retire_due(versions: &mut [TokenVersion], now: Timestamp) -> Option<i64> {
    let due =
        |v: &&mut TokenVersion| v.state == VersionState::Retiring && v.retire_at.is_none_or(|at| now >= at);
    let version = versions.iter_mut().find(due)?;
    version.state = VersionState::Retired;
    Some(version.version)
}

/// Makes the pending version active once the Secret contains it, which starts the overlap of its predecessor. Returns
/// its number.
pub(super) fn promote(
    status: &mut ApiTokenStatus,
    observed: &Observed<'_>,
    spec: &Spec,
    now: Timestamp,
) -> Option<i64> {
    let delivered = observed.secret.key_id()?;
    let at = status
        .versions
        .iter()
        .position(|v| v.state == VersionState::Pending && v.key_id == delivered.as_str())?;
    let retire_at = now.checked_add(spec.overlap).unwrap_or(Timestamp::MAX);
    for version in status.versions.iter_mut().filter(|v| v.state == VersionState::Active) {
        version.retire_at = Some(retire_at);
        version.state = if spec.overlap.is_zero() { VersionState::Retired } else { VersionState::Retiring };
    }
    let version = &mut status.versions[at];
    version.state = VersionState::Active;
    let (number, reason) = (version.version, version.reason);
    let rotation = status.rotation.get_or_insert_default();
    rotation.last_time = Some(now);
    rotation.last_reason = Some(reason);
    Some(number)
}

/// Takes a version over from a valid seal, if the status lacks it, or has it with facts that its MAC does not
/// authenticate. It becomes active, as it was issued. Returns its number, if somebody else has changed the status.
///
/// The status is always written before the Secret, so one that is older than the Secret was lost or set back: what is live
/// in it has been replaced since.
pub(super) fn take_over(status: &mut ApiTokenStatus, observed: &Observed<'_>, spec: &Spec) -> Option<i64> {
    let sealed = observed.secret.ours()?.sealed.as_ref()?;
    let key_id = sealed.key_id.to_string();
    let before = status.versions.iter().position(|v| v.version == sealed.version && v.key_id == key_id);
    let before = match before {
        Some(at) if verify(observed, status.token_id.as_deref(), &status.versions[at]) == MacCheck::Valid => {
            return None;
        }
        // One that is pending was announced before anybody had seen the Secret, and was not delivered.
        None if status
            .versions
            .iter()
            .any(|v| v.version >= sealed.version && v.state != VersionState::Pending) =>
        {
            return None;
        }
        at => at.map(|at| status.versions[at].clone()),
    };
    let scopes = match (&sealed.scopes, &before) {
        (Some(scopes), _) => scopes.clone(),
        // Such a seal is from before versions had a MAC, so nothing else says with what scopes it was issued.
        (None, Some(before)) => {
            granted_by_both(&before.scopes, &spec.scopes).into_iter().map(str::to_owned).collect()
        }
        (None, None) => return None,
    };
    if before.is_none() {
        for version in status.versions.iter_mut().filter(|version| version.state.is_live()) {
            version.state = VersionState::Retired;
        }
        let rotation = status.rotation.get_or_insert_default();
        rotation.spec_hash = Some(spec.hash.clone());
        rotation.handled_trigger.clone_from(&spec.trigger);
    }
    status.token_id = Some(sealed.token_id.clone());
    status.versions.retain(|version| version.version != sealed.version);
    let version = TokenVersion {
        version: sealed.version,
        key_id,
        hash: sealed.hash.to_string(),
        state: VersionState::Active,
        scopes,
        issued_at: sealed.issued_at,
        retire_at: None,
        reason: before.as_ref().map_or(RotationReason::Created, |before| before.reason),
        mac: String::new(),
    };
    // It alone: the others are judged by the MACs that they have.
    status.versions.push(authenticated(version, observed, &sealed.token_id));
    // Without a MAC, the status is from before versions had one.
    before.is_none_or(|before| !before.mac.is_empty()).then_some(sealed.version)
}

/// Removes all but the live versions and the newest dead ones.
pub(super) fn prune(versions: &mut Vec<TokenVersion>) {
    let mut dead = 0;
    versions.retain(|version| {
        dead += usize::from(!version.state.is_live());
        version.state.is_live() || dead <= MAX_DEAD_VERSIONS
    });
}

/// The Secret and the version that it contains, if the status knows it.
pub(super) fn secret_ref(observed: &Observed<'_>, status: &ApiTokenStatus, spec: &Spec) -> Option<SecretRef> {
    let own = observed.secret.ours()?;
    let version = status.version_of(observed.secret.key_id()?.as_str())?;
    Some(SecretRef {
        name: spec.secret_name.clone(),
        version: version.version,
        uid: own.metadata.uid.clone(),
    })
}
