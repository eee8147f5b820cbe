//! Locks: a TokenLock or ClusterTokenLock stops every token that it matches, at once and with one write.
//!
//! Verifiers and the controller decide by the same function, [`Locks::on`]. A verifier applies a lock when its watch brings it,
//! and needs no pass over its tokens: what a lock does to a secret is worked out at the next check of it, and remembered until
//! the locks change. The controller records it in each token's own status, so that a Revoke lock is not needed for ever.
//!
//! A lock can stop tokens, and never free or grant.

mod candidate;
mod criteria;
mod facet;
mod memo;
mod report;
mod set;

use std::cmp::Ordering;
use std::fmt;

use kube_core::Resource;

pub use self::candidate::{Candidate, Progress};
use self::criteria::Criteria;
pub use self::facet::{Facet, Facets, facets};
pub use self::memo::Memo;
pub use self::report::{Tally, report};
pub use self::set::Locks;
use crate::crd::{AnyLock, LockAction, LockKind, LockRef, LockSpec, RevocationReason};
use crate::token::KeyId;

/// A token as locks see it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    /// `status.tokenId`. Empty if it has none yet.
    pub token_id: &'a str,
    /// `metadata.creationTimestamp`, in seconds since the epoch.
    pub created_at: i64,
    /// Its labels and its owner.
    pub facets: Facets<'a>,
}

/// A secret of a token, as locks see it.
#[derive(Clone, Copy, Debug)]
pub struct SubjectVersion<'a> {
    pub key_id: KeyId,
    /// In seconds since the epoch, rounded down.
    pub issued_at: i64,
    /// What it was issued with, separated by spaces: narrowing the spec is no way out of a lock.
    pub scopes: &'a str,
}

/// A TokenLock or ClusterTokenLock, prepared for matching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// `None`: it is a ClusterTokenLock.
    namespace: Option<String>,
    name: String,
    uid: String,
    action: LockAction,
    reason: RevocationReason,
    message: Option<String>,
    requested_by: Option<String>,
    /// In seconds since the epoch.
    created_at: i64,
    criteria: Criteria,
}

impl Lock {
    /// Prepares a lock as the API server has it.
    pub fn of<K: AnyLock + Resource>(lock: &K) -> Self {
        let LockSpec { matches, action, reason, message, requested_by } = lock.lock();
        let metadata = lock.meta();
        let created_at = metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second());
        Self {
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            action: *action,
            reason: reason.unwrap_or(RevocationReason::Unspecified),
            message: message.clone(),
            requested_by: requested_by.clone(),
            created_at,
            criteria: Criteria::of(matches, created_at),
        }
    }

    /// Whether it stops a secret of a token.
    pub fn stops(&self, subject: &Subject<'_>, version: &SubjectVersion<'_>) -> bool {
        self.reaches(subject.namespace)
            && self.criteria.match_token(subject)
            && self.criteria.match_version(subject, version)
    }

    /// Whether it stops a token that has no secret yet, or none that works. `scopes` are those of its spec, separated by spaces.
    pub fn stops_unissued(&self, subject: &Subject<'_>, scopes: &str) -> bool {
        self.reaches(subject.namespace)
            && self.criteria.match_token(subject)
            && self.criteria.match_unissued(subject, scopes)
    }

    /// `None`: it is a ClusterTokenLock.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The lock as the record of a token names it.
    pub fn reference(&self) -> LockRef {
        let kind = if self.namespace.is_some() { LockKind::TokenLock } else { LockKind::ClusterTokenLock };
        LockRef { kind, name: self.name.clone(), uid: self.uid.clone() }
    }

    pub fn action(&self) -> LockAction {
        self.action
    }

    pub fn reason(&self) -> RevocationReason {
        self.reason
    }

    /// Who created it, as far as it says.
    pub fn requested_by(&self) -> Option<&str> {
        self.requested_by.as_deref()
    }

    /// Why, for people.
    pub fn why(&self) -> &str {
        self.message.as_deref().unwrap_or_else(|| self.reason.as_str())
    }

    fn reaches(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|own| own == namespace)
    }

    /// The order in which one of several locks counts: what revokes before what suspends, then the oldest.
    fn precedence(&self, other: &Self) -> Ordering {
        let key = |lock: &Self| (lock.action != LockAction::Revoke, lock.created_at);
        key(self)
            .cmp(&key(other))
            .then_with(|| (&self.namespace, &self.name).cmp(&(&other.namespace, &other.name)))
    }
}

/// Kind and name, for people: `TokenLock incident-7`, `ClusterTokenLock incident-7`.
impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reference().fmt(f)
    }
}

#[cfg(test)]
mod tests;
