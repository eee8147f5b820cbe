//! Revocation. It can never be undone, wherever the request came from.

use jiff::{SignedDuration, Timestamp};

use super::observed::Observed;
use super::secret::desired_metadata;
use crate::crd::{
    ApiTokenStatus, OnRevoke, RevocationReason, RevocationSource, RevocationStatus, VersionState,
};

/// Records that the spec requests the revocation. Returns whether that was not recorded before.
pub(super) fn latch(status: &mut ApiTokenStatus, observed: &Observed<'_>, now: Timestamp) -> bool {
    if status.revocation.is_some() || !observed.revocation_requested() {
        return false;
    }
    status.revocation = Some(RevocationStatus {
        requested_at: now,
        enforced_at: None,
        verifiers: None,
        reason: observed.token.spec.revocation_reason.unwrap_or(RevocationReason::Unspecified),
        source: RevocationSource::Spec,
        actor: None,
        lock: None,
    });
    true
}

/// For how long a revocation waits for all verifiers to confirm it, before the status says who has not.
const PATIENCE: SignedDuration = SignedDuration::from_secs(2);
/// How often it looks while it waits, and afterwards.
const CONFIRMATION_INTERVAL: SignedDuration = SignedDuration::from_millis(100);
const LATE_CONFIRMATION_INTERVAL: SignedDuration = SignedDuration::from_secs(5);

/// Marks every version of a revoked token as revoked. Records the revocation as enforced once it is recorded, and every
/// verifier has confirmed that it knows the object as it is stored.
pub(super) fn enforce(status: &mut ApiTokenStatus, observed: &Observed<'_>, now: Timestamp) {
    let Some(revocation) = &mut status.revocation else { return };
    for version in status.versions.iter_mut().filter(|version| version.state.is_live()) {
        version.state = VersionState::Revoked;
    }
    if revocation.enforced_at.is_some() || !is_recorded(observed, now) {
        return;
    }
    let Some(confirmations) = &observed.confirmations else {
        revocation.enforced_at = Some(now);
        return;
    };
    let is_complete = confirmations.are_complete();
    if is_complete || is_late(revocation.requested_at, now) {
        revocation.verifiers = Some(confirmations.counts());
    }
    if is_complete {
        revocation.enforced_at = Some(now);
    }
}

/// Whether the stored status has every version of a revoked token marked, and the Secret is labelled or deleted.
pub(super) fn is_recorded(observed: &Observed<'_>, now: Timestamp) -> bool {
    let is_stored = observed.status().is_some_and(|status| {
        status.revocation.is_some() && status.versions.iter().all(|v| !v.state.is_live())
    });
    is_stored && secret_is_as_specified(observed, now)
}

/// Whether the status says which verifiers have not confirmed a revocation.
pub(super) fn is_late(requested_at: Timestamp, now: Timestamp) -> bool {
    // A clock that was set back makes it late, so that nothing waits for ever.
    now < requested_at || now.duration_since(requested_at) >= PATIENCE
}

/// When to look again whether all verifiers have confirmed a revocation.
pub(super) fn confirmation_at(status: &ApiTokenStatus, now: Timestamp) -> Option<Timestamp> {
    let revocation = status.revocation.as_ref().filter(|revocation| revocation.enforced_at.is_none())?;
    let late = is_late(revocation.requested_at, now);
    now.checked_add(if late { LATE_CONFIRMATION_INTERVAL } else { CONFIRMATION_INTERVAL }).ok()
}

/// Whether the Secret of a revoked token is as `secret.onRevoke` says, as far as others let it be. A foreign Secret is not touched.
fn secret_is_as_specified(observed: &Observed<'_>, now: Timestamp) -> bool {
    let (Some(own), Ok(spec)) = (observed.secret.ours(), &observed.spec) else { return true };
    match spec.on_revoke {
        OnRevoke::Delete => false,
        OnRevoke::Keep => {
            desired_metadata(observed, spec)
                .is_none_or(|(_, metadata)| metadata.differences(&own.metadata).is_empty())
                || observed.contested(now).is_some()
        }
    }
}
