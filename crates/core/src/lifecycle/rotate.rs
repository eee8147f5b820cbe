//! Why a rotation is due, and when it may be made.

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use super::authentication::missing_pepper;
use super::observed::{Observed, RETRY, SecretState};
use super::spec::{SPEC_HASH_PREFIX, Spec};
use super::versions::{active, pending};
use crate::crd::{ApiTokenStatus, OnSpecChange, RotationReason, TokenVersion};

/// How long a repair waits after the last one, by the number of repairs within [`REPAIR_WINDOW`]. After these, something
/// breaks the Secret again and again, and another repair would not help.
const REPAIR_BACKOFF: [SignedDuration; 3] =
    [SignedDuration::ZERO, SignedDuration::from_secs(2), SignedDuration::from_secs(10)];
const REPAIR_WINDOW: SignedDuration = SignedDuration::from_hours(1);

/// Whether a new version is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// No rotation is due until something changes or this instant.
    Nothing(Option<Timestamp>),
    /// A new version is due now.
    Now(RotationReason),
    /// A new version is due for a Secret that was broken too often, but not before this instant.
    Throttled { reason: RotationReason, until: Timestamp, stalled: bool },
}

/// Decides whether a new version is due. Neither a revoked nor an expired token ever rotates.
pub(super) fn due(observed: &Observed<'_>, status: &ApiTokenStatus, spec: &Spec, now: Timestamp) -> Due {
    if status.revocation.is_some() || observed.expired(now) || !observed.can_deliver() {
        return Due::Nothing(None);
    }
    if let Some(pending) = pending(status) {
        let in_memory = observed.minted.is_some_and(|key_id| key_id.as_str() == pending.key_id);
        // It is not in the Secret yet, so it can be generated again for the newest spec.
        let outdated = spec_changed(status, spec)
            || trigger_changed(status, spec)
            || observed.cut_by_not_before(pending, now);
        return if in_memory && !outdated { Due::Nothing(None) } else { Due::Now(pending.reason) };
    }
    let Some(active) = active(status) else {
        return Due::Now(match status.versions.first() {
            None => RotationReason::Created,
            Some(newest) if observed.cut_by_not_before(newest, now) => RotationReason::NotBefore,
            Some(_) => RotationReason::SecretMissing,
        });
    };
    // Before the repairs: what a person asks for is not throttled.
    if trigger_changed(status, spec) {
        return Due::Now(RotationReason::Trigger);
    }
    if missing_pepper(observed, active).is_some() {
        // Nothing tells of a pepper that comes back.
        return Due::Nothing(now.checked_add(RETRY).ok());
    }
    if let Some(reason) = damage(observed, active.key_id.as_str()) {
        return repair(status, reason, now);
    }
    if spec.on_spec_change == OnSpecChange::Rotate && spec_changed(status, spec) {
        return Due::Now(RotationReason::SpecChange);
    }
    let scheduled = scheduled(observed, active, spec);
    match scheduled {
        Some(at) if now >= at => Due::Now(RotationReason::Schedule),
        _ => Due::Nothing(scheduled.into_iter().chain(observed.not_before().filter(|cut| *cut > now)).min()),
    }
}

/// Why the Secret has to be repaired, if its content is damaged.
fn damage(observed: &Observed<'_>, active: &str) -> Option<RotationReason> {
    match &observed.secret {
        SecretState::Absent => Some(RotationReason::SecretMissing),
        SecretState::Ours(_) if observed.secret.key_id().is_none_or(|key_id| key_id.as_str() != active) => {
            Some(RotationReason::SecretTampered)
        }
        SecretState::Ours(_)
        | SecretState::Foreign(_)
        | SecretState::Taken(_)
        | SecretState::UnknownPepper(_)
        | SecretState::Unreadable(_) => None,
    }
}

/// When a broken Secret is repaired. Repairs are counted by the versions in the status, so a restart does not reset the
/// count.
fn repair(status: &ApiTokenStatus, reason: RotationReason, now: Timestamp) -> Due {
    let window = now.checked_sub(REPAIR_WINDOW).unwrap_or(Timestamp::MIN);
    let repairs = || {
        status
            .versions
            .iter()
            .filter(|version| is_repair(version.reason) && version.issued_at > window)
            .map(|v| v.issued_at)
    };
    let last = repairs().max();
    match REPAIR_BACKOFF.get(repairs().count()) {
        Some(backoff) => match last.and_then(|last| last.checked_add(*backoff).ok()) {
            // A clock that was set back must not delay a repair for longer than the back-off.
            Some(until) if now < until && last.is_some_and(|last| last <= now) => {
                Due::Throttled { reason, until, stalled: false }
            }
            _ => Due::Now(reason),
        },
        None => {
            let first = repairs().min().and_then(|first| first.checked_add(REPAIR_WINDOW).ok());
            Due::Throttled { reason, until: first.unwrap_or(now), stalled: true }
        }
    }
}

/// Whether a version was issued because the Secret was broken.
fn is_repair(reason: RotationReason) -> bool {
    match reason {
        RotationReason::SecretMissing | RotationReason::SecretTampered => true,
        RotationReason::Created
        | RotationReason::SpecChange
        | RotationReason::Trigger
        | RotationReason::Schedule
        | RotationReason::NotBefore
        | RotationReason::Bulk => false,
    }
}

/// Whether the spec's hash differs from that of the newest version. Hashes of different canonical forms can't be
/// compared.
fn spec_changed(status: &ApiTokenStatus, spec: &Spec) -> bool {
    let handled = status.rotation.as_ref().and_then(|r| r.spec_hash.as_deref());
    handled.is_some_and(|handled| handled.starts_with(SPEC_HASH_PREFIX) && handled != spec.hash)
}

/// Whether the trigger differs from the one that the newest version was issued for. Removing it requests nothing.
fn trigger_changed(status: &ApiTokenStatus, spec: &Spec) -> bool {
    let handled = status.rotation.as_ref().and_then(|r| r.handled_trigger.as_deref());
    spec.trigger.is_some() && spec.trigger.as_deref() != handled
}

/// When the schedule replaces a version: at the interval after its issue, or earlier by a part that each version of each token
/// has for itself, at most a twentieth of the interval and an hour. So tokens that were made together don't rotate together.
fn scheduled(observed: &Observed<'_>, version: &TokenVersion, spec: &Spec) -> Option<Timestamp> {
    let interval = spec.interval?;
    let most = (interval / 20).min(SignedDuration::from_hours(1));
    let uid = observed.token.metadata.uid.as_deref().unwrap_or_default();
    let digest = Sha256::digest(format!("{uid} {}", version.version));
    let part = u16::from_be_bytes([digest[0], digest[1]]);
    let earlier = most * i32::from(part) / i32::from(u16::MAX);
    version.issued_at.checked_add(interval - earlier).ok()
}

/// Updates the record of rotations with what needs no rotation: the hash of a spec whose changes don't rotate or whose
/// canonical form is new, and when the next rotation is due: by the schedule, or by a `notBefore` that is still to come.
pub(super) fn update_record(status: &mut ApiTokenStatus, observed: &Observed<'_>, spec: &Spec) {
    let next = active(status).and_then(|version| {
        let scheduled = scheduled(observed, version, spec);
        let cut = observed.not_before().filter(|cut| *cut > version.issued_at);
        scheduled.into_iter().chain(cut).min()
    });
    let ignores_changes = spec.on_spec_change == OnSpecChange::Keep && pending(status).is_none();
    let has_active = active(status).is_some();
    if let Some(rotation) = &mut status.rotation {
        let same_form = rotation.spec_hash.as_deref().is_some_and(|hash| hash.starts_with(SPEC_HASH_PREFIX));
        if has_active && (ignores_changes || !same_form) {
            rotation.spec_hash = Some(spec.hash.clone());
        }
        rotation.next_time = next;
    }
}
