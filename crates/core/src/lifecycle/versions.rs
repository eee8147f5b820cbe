//! Transitions of the list of versions that follow from the time and the Secret, and its bounds.

use jiff::Timestamp;

use super::authentication::{authenticated, verify};
use super::observed::Observed;
use super::spec::Spec;
use crate::crd::{ApiTokenStatus, RotationReason, SecretRef, TokenVersion, VersionState};
use crate::token::scope::granted_by_both;
use crate::token::{Hash, KeyId, MacCheck};

/// How many versions may work at once: one that is on its way into the Secret, the one that the Secret contains, and those
/// that it has replaced. With one more, the oldest ends before its overlap does.
const MAX_LIVE_VERSIONS: usize = 4;
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

/// The replaced versions that still work, the newest first.
pub(super) fn retiring(status: &ApiTokenStatus) -> impl Iterator<Item = &TokenVersion> {
    status.versions.iter().filter(|version| version.state == VersionState::Retiring)
}

/// The version that the active one has replaced, whether or not it still works.
pub(super) fn replaced(status: &ApiTokenStatus) -> Option<&TokenVersion> {
    let active = active(status)?.version;
    status.versions.iter().filter(|version| version.version < active).max_by_key(|version| version.version)
}

/// Which of these versions work until when, as a clause. `None`: there are none.
pub(super) fn overlaps<'v>(retiring: impl Iterator<Item = &'v TokenVersion>) -> Option<String> {
    let mut overlaps =
        retiring.filter_map(|old| Some(format!("version {} works until {}", old.version, old.retire_at?)));
    let first = overlaps.next()?;
    Some(overlaps.fold(first, |clause, overlap| format!("{clause}, {overlap}")))
}

fn in_state(status: &ApiTokenStatus, state: VersionState) -> Option<&TokenVersion> {
    status.versions.iter().find(|version| version.state == state)
}

/// Brings a list that anybody may have written into the shape that the controller writes: newest first, at most
/// one version each pending and active, then those that are retiring, [`MAX_LIVE_VERSIONS`] in all, and all of them
/// readable. Whatever does not fit is retired, and so is a version that `is_ours` does not recognise: a status can take
/// access away, never give it.
pub(super) fn normalise(versions: &mut Vec<TokenVersion>, is_ours: impl Fn(&TokenVersion) -> bool) {
    /// The rank of the only state that several versions may have.
    const RETIRING: u8 = 3;
    versions.sort_by_key(|version| std::cmp::Reverse(version.version));
    versions.dedup_by_key(|version| version.version);
    let (mut live, mut seen) = (0, 0);
    for version in versions {
        let readable = KeyId::parse(&version.key_id).is_ok() && Hash::parse(&version.hash).is_some();
        let rank = match version.state {
            VersionState::Pending => 1,
            VersionState::Active => 2,
            VersionState::Retiring if version.retire_at.is_some() => RETIRING,
            VersionState::Retiring => 0,
            VersionState::Retired | VersionState::Revoked => continue,
        };
        let fits = live < MAX_LIVE_VERSIONS && (rank > seen || (rank == seen && rank == RETIRING));
        if readable && fits && version.version > 0 && is_ours(version) {
            (live, seen) = (live + 1, rank);
            // Only a replaced version has an end of its own.
            version.retire_at = version.retire_at.filter(|_| version.state == VersionState::Retiring);
        } else {
            version.state = VersionState::Retired;
        }
    }
}

/// Retires the versions whose overlap has ended. Returns their numbers.
pub(super) fn retire_due(versions: &mut [TokenVersion], now: Timestamp) -> Vec<i64> {
    retire(versions.iter_mut().filter(|version| {
        version.state == VersionState::Retiring && version.retire_at.is_none_or(|at| now >= at)
    }))
}

/// Makes room for a version that is to be announced: ends the oldest replaced ones before their overlap does. Returns their
/// numbers.
pub(super) fn make_room(versions: &mut [TokenVersion]) -> Vec<i64> {
    let live = versions.iter().filter(|version| version.state.is_live()).count();
    let excess = (live + 1).saturating_sub(MAX_LIVE_VERSIONS);
    // The oldest is last.
    let replaced = versions.iter_mut().rev().filter(|version| version.state == VersionState::Retiring);
    retire(replaced.take(excess))
}

/// Retires these versions. Returns their numbers.
pub(super) fn retire<'v>(versions: impl Iterator<Item = &'v mut TokenVersion>) -> Vec<i64> {
    end(versions, VersionState::Retired)
}

/// Ends these versions for good, so that they are entered into the ledger. Returns their numbers.
pub(super) fn end_for_good<'v>(versions: impl Iterator<Item = &'v mut TokenVersion>) -> Vec<i64> {
    end(versions, VersionState::Revoked)
}

fn end<'v>(versions: impl Iterator<Item = &'v mut TokenVersion>, state: VersionState) -> Vec<i64> {
    let ended = versions.map(|version| {
        version.state = state;
        version.version
    });
    ended.collect()
}

/// A version that was read back from a seal, with something to tell.
pub(super) struct Rebuilt {
    pub(super) version: i64,
    /// Whether it was sealed for an earlier ApiToken of this name.
    pub(super) restored: bool,
}

/// A version that was delivered.
pub(super) struct Delivered {
    /// Its number.
    pub(super) version: i64,
    /// The replaced versions whose overlap it has cut off.
    pub(super) cut: Vec<i64>,
}

/// Makes the pending version active once the Secret contains it, which starts the overlap of its predecessor. Without an
/// overlap, no older version works any more.
pub(super) fn promote(
    status: &mut ApiTokenStatus,
    observed: &Observed<'_>,
    spec: &Spec,
    now: Timestamp,
) -> Option<Delivered> {
    let delivered = observed.secret.key_id()?;
    let at = status
        .versions
        .iter()
        .position(|v| v.state == VersionState::Pending && v.key_id == delivered.as_str())?;
    let cuts = spec.overlap.is_zero();
    let cut = retire(status.versions.iter_mut().filter(|v| cuts && v.state == VersionState::Retiring));
    let retire_at = now.checked_add(spec.overlap).unwrap_or(Timestamp::MAX);
    for version in status.versions.iter_mut().filter(|v| v.state == VersionState::Active) {
        version.retire_at = Some(retire_at);
        version.state = if cuts { VersionState::Retired } else { VersionState::Retiring };
    }
    let version = &mut status.versions[at];
    version.state = VersionState::Active;
    let (number, reason) = (version.version, version.reason);
    let rotation = status.rotation.get_or_insert_default();
    rotation.last_time = Some(now);
    rotation.last_reason = Some(reason);
    Some(Delivered { version: number, cut })
}

/// Takes a version over from a valid seal, if the status lacks it, or has it with facts that its MAC does not
/// authenticate. It becomes active, as it was issued. Returns it, unless the status is merely from before versions
/// had a MAC.
///
/// The status is always written before the Secret, so one that is older than the Secret was lost or set back: what is live
/// in it has been replaced since. What was sealed for an earlier ApiToken is taken over only by one that has delivered nothing.
pub(super) fn take_over(
    status: &mut ApiTokenStatus,
    observed: &Observed<'_>,
    spec: &Spec,
) -> Option<Rebuilt> {
    let sealed = observed.secret.ours()?.sealed.as_ref()?;
    let key_id = sealed.key_id.to_string();
    let is_own = |version: &TokenVersion| {
        version.state != VersionState::Pending
            && verify(observed, status.token_id.as_deref(), version) == MacCheck::Valid
    };
    if sealed.restored && status.versions.iter().any(is_own) {
        return None;
    }
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
    // One that is pending, of a token that was restored before its Secret was, has another id.
    let stays = |version: &TokenVersion| !sealed.restored || version.state != VersionState::Pending;
    status.versions.retain(|version| version.version != sealed.version && stays(version));
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
    let tells = sealed.restored || before.is_none_or(|before| !before.mac.is_empty());
    tells.then_some(Rebuilt { version: sealed.version, restored: sealed.restored })
}

/// Removes all but the live versions and the newest dead ones, of which the one that the Secret contains is one: as long as it is
/// there, what becomes of it has to be said.
pub(super) fn prune(versions: &mut Vec<TokenVersion>, observed: &Observed<'_>) {
    let contained = observed.secret.key_id().map(|key_id| key_id.to_string());
    let is_contained = |version: &TokenVersion| Some(&version.key_id) == contained.as_ref();
    let is_dead = |version: &&TokenVersion| !version.state.is_live();
    let mut others = MAX_DEAD_VERSIONS - versions.iter().filter(is_dead).filter(|v| is_contained(v)).count();
    versions.retain(|version| {
        if version.state.is_live() || is_contained(version) {
            return true;
        }
        let fits = others > 0;
        others = others.saturating_sub(1);
        fits
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
