//! Revocation. It can never be undone, wherever the request came from.

use jiff::{SignedDuration, Timestamp};

use super::authentication::verify;
use super::observed::Observed;
use super::secret::desired_metadata;
use crate::crd::{
    ApiToken, ApiTokenStatus, OnRevoke, RevocationReason, RevocationSource, RevocationStatus, TokenVersion,
    VersionState,
};
use crate::token::MacCheck;
use crate::token::format::token_id;
use crate::tombstone::{TokenIdentity, Tombstone};

/// The tombstone of a token that is revoked as a whole. `None`: it is not, or nothing of it was ever delivered.
pub fn tombstone_of(token: &ApiToken) -> Option<Tombstone> {
    let status = token.status.as_ref()?;
    let revoked = status.revocation.is_some() || token.spec.revoked == Some(true);
    let token_id = status.token_id.as_deref().filter(|_| revoked)?;
    let metadata = &token.metadata;
    let (namespace, name) = (metadata.namespace.as_deref()?, metadata.name.as_deref()?);
    Some(TokenIdentity { namespace, name, token_id }.token())
}

/// What was revoked by the stored object and is not in the ledger yet.
pub(super) fn not_in_ledger(observed: &Observed<'_>) -> Vec<Tombstone> {
    let Some(status) = observed.status() else { return Vec::new() };
    let Some(token_id) = status.token_id.as_deref() else { return Vec::new() };
    let identity = observed.identity(token_id);
    if let Some(token) = tombstone_of(observed.token) {
        return observed.tombstones.lacking([token]);
    }
    let is_revoked = |version: &&TokenVersion| {
        version.state == VersionState::Revoked
            && !observed.tombstones.has_either(identity, &version.key_id)
            && verify(observed, Some(token_id), version) == MacCheck::Valid
    };
    let revoked = status.versions.iter().filter(is_revoked);
    revoked.map(|version| identity.version(&version.key_id)).collect()
}

/// Records that the spec requests the revocation, or that the ledger has it. Returns what to tell, if that was not recorded
/// before.
pub(super) fn latch(
    status: &mut ApiTokenStatus,
    observed: &Observed<'_>,
    now: Timestamp,
) -> Option<&'static str> {
    if status.revocation.is_some() {
        return None;
    }
    // The id of a restored token is that of the earlier object. Of a lost status, this one tells.
    let own = token_id(observed.token.metadata.uid.as_deref().unwrap_or_default());
    let mut ids = [Some(own.as_str()), status.token_id.as_deref()].into_iter().flatten();
    let (source, why) = if observed.revocation_requested() {
        (RevocationSource::Spec, "every secret of this token is refused from now on, for good")
    } else if ids.any(|id| observed.tombstones.has_token(observed.identity(id))) {
        (
            RevocationSource::Ledger,
            "this token was revoked before, and an earlier state of it was restored; it stays refused, for good",
        )
    } else {
        return None;
    };
    status.revocation = Some(RevocationStatus {
        requested_at: now,
        enforced_at: None,
        verifiers: None,
        reason: observed.token.spec.revocation_reason.unwrap_or(RevocationReason::Unspecified),
        source,
        actor: None,
        lock: None,
    });
    Some(why)
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
