//! Revocation. It can never be undone, wherever the request came from.

use jiff::Timestamp;

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
        reason: observed.token.spec.revocation_reason.unwrap_or(RevocationReason::Unspecified),
        source: RevocationSource::Spec,
        actor: None,
        lock: None,
    });
    true
}

/// Marks every version of a revoked token as revoked. Records the revocation as enforced once the stored status has all
/// these marks and the Secret is labelled or deleted.
pub(super) fn enforce(status: &mut ApiTokenStatus, observed: &Observed<'_>, now: Timestamp) {
    let Some(revocation) = &mut status.revocation else { return };
    for version in status.versions.iter_mut().filter(|version| version.state.is_live()) {
        version.state = VersionState::Revoked;
    }
    let stored = observed
        .status()
        .is_some_and(|s| s.revocation.is_some() && s.versions.iter().all(|v| !v.state.is_live()));
    if revocation.enforced_at.is_none() && stored && secret_is_as_specified(observed, now) {
        revocation.enforced_at = Some(now);
    }
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
