//! What locks do to a token: those that revoke are recorded in its status, from where they hold without the lock; those that
//! suspend are told there.

use std::sync::Arc;

use jiff::Timestamp;

use super::observed::Observed;
use crate::crd::{ApiTokenStatus, LockAction, RevocationSource, RevocationStatus, TokenVersion};
use crate::lock::{Candidate, Lock};

/// What locks end for good.
pub(super) enum Ended {
    /// The whole token, as its newest secret is among what a lock stops.
    Token(Arc<Lock>),
    /// Only older secrets of it, by their numbers.
    Versions(Vec<(i64, Arc<Lock>)>),
}

/// What the locks end of a token that is not revoked yet.
pub(super) fn ended(observed: &Observed<'_>, status: &ApiTokenStatus) -> Ended {
    if observed.locks.is_empty() || status.revocation.is_some() {
        return Ended::Versions(Vec::new());
    }
    let candidate = Candidate::of(observed.token, Some(status));
    let revokes = |lock: &Arc<Lock>| lock.action() == LockAction::Revoke;
    if let Some(lock) = candidate.lock_on_current(observed.locks).filter(revokes) {
        return Ended::Token(lock);
    }
    let live = status.versions.iter().filter(|version| version.state.is_live());
    let ended = live.filter_map(|version| {
        Some((version.version, candidate.lock_on(version, observed.locks).filter(revokes)?))
    });
    Ended::Versions(ended.collect())
}

/// The lock because of which the content of the Secret is refused until the lock is deleted.
pub(super) fn suspending(observed: &Observed<'_>, status: &ApiTokenStatus) -> Option<Arc<Lock>> {
    if observed.locks.is_empty() || status.revocation.is_some() {
        return None;
    }
    let lock = Candidate::of(observed.token, Some(status)).lock_on_content(observed.locks);
    lock.filter(|lock| lock.action() == LockAction::Suspend)
}

/// Whether a lock refuses one secret of the token.
pub(super) fn is_locked(observed: &Observed<'_>, status: &ApiTokenStatus, version: &TokenVersion) -> bool {
    !observed.locks.is_empty()
        && Candidate::of(observed.token, Some(status)).lock_on(version, observed.locks).is_some()
}

/// The record of a revocation by a lock.
pub(super) fn revocation(lock: &Lock, now: Timestamp) -> RevocationStatus {
    RevocationStatus {
        requested_at: now,
        enforced_at: None,
        verifiers: None,
        reason: lock.reason(),
        source: RevocationSource::Lock,
        actor: lock.requested_by().map(str::to_owned),
        lock: Some(lock.reference()),
    }
}
