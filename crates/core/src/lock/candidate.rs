//! ApiTokens as the controller has them, matched against locks.

use std::sync::Arc;

use super::{Facet, Facets, Lock, Locks, Subject, SubjectVersion, facets};
use crate::crd::{
    ApiToken, ApiTokenStatus, ConditionType, LockAction, TokenVersion, VersionState, find_condition,
};
use crate::token::KeyId;

/// An ApiToken that locks may stop.
#[derive(Debug)]
pub struct Candidate<'a> {
    token: &'a ApiToken,
    status: Option<&'a ApiTokenStatus>,
    facets: Vec<Facet>,
}

/// How far a lock has come with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The lock stops nothing of it.
    Unmatched,
    /// Verifiers refuse it because of the lock, and its own status does not say so yet.
    Outstanding,
    /// Its own status says so.
    Latched,
}

impl<'a> Candidate<'a> {
    /// `status` may be one that is to be written.
    pub fn of(token: &'a ApiToken, status: Option<&'a ApiTokenStatus>) -> Self {
        let facets = facets(token.metadata.labels.as_ref(), token.spec.owner.as_ref());
        Self { token, status, facets }
    }

    /// The lock on a secret.
    pub fn lock_on(&self, version: &TokenVersion, locks: &Locks) -> Option<Arc<Lock>> {
        self.with(version, |version| locks.on(&self.subject(), &version).cloned())?
    }

    /// The lock on the token as a whole: on its newest secret that may work, or on the first that it would get.
    pub fn lock_on_current(&self, locks: &Locks) -> Option<Arc<Lock>> {
        self.lock_on_issued(self.newest(), locks)
    }

    /// The lock on what the Secret contains or, before it contains any, on the token as a whole.
    pub fn lock_on_content(&self, locks: &Locks) -> Option<Arc<Lock>> {
        self.lock_on_issued(self.content(), locks)
    }

    fn lock_on_issued(&self, version: Option<&TokenVersion>, locks: &Locks) -> Option<Arc<Lock>> {
        match version {
            Some(version) => self.lock_on(version, locks),
            None => locks.on_unissued(&self.subject(), &self.token.spec.scopes.join(" ")).cloned(),
        }
    }

    /// How far a lock has come.
    pub fn progress(&self, lock: &Lock) -> Progress {
        if let Some(revocation) = self.status.and_then(|status| status.revocation.as_ref()) {
            let by = revocation.lock.as_ref().is_some_and(|by| by.uid == lock.uid());
            return if by { Progress::Latched } else { Progress::Unmatched };
        }
        // Whose deletion has been requested is refused for good already.
        if self.token.metadata.deletion_timestamp.is_some() || !self.is_stopped_by(lock) {
            return Progress::Unmatched;
        }
        let is_refused = || {
            self.status
                .and_then(|status| find_condition(&status.conditions, ConditionType::Active))
                .is_some_and(|active| active.status == "False")
        };
        match lock.action() {
            LockAction::Suspend if is_refused() => Progress::Latched,
            LockAction::Suspend | LockAction::Revoke => Progress::Outstanding,
        }
    }

    /// Whether a lock stops the token, or any secret of it that may work.
    fn is_stopped_by(&self, lock: &Lock) -> bool {
        let subject = self.subject();
        if self.newest().is_none() {
            return lock.stops_unissued(&subject, &self.token.spec.scopes.join(" "));
        }
        let stops = |version| self.with(version, |version| lock.stops(&subject, &version)) == Some(true);
        match lock.action() {
            LockAction::Revoke => self.live().any(stops),
            // What is told is whether the content of the Secret works.
            LockAction::Suspend => self.content().is_some_and(stops),
        }
    }

    /// The secret that the Secret contains; the newest that may work, if none has been delivered yet.
    fn content(&self) -> Option<&'a TokenVersion> {
        self.live().find(|version| version.state == VersionState::Active).or(self.newest())
    }

    /// The newest secret that may work.
    fn newest(&self) -> Option<&'a TokenVersion> {
        self.live().max_by_key(|version| version.version)
    }

    /// The secrets that may work.
    fn live(&self) -> impl Iterator<Item = &'a TokenVersion> + use<'a> {
        self.status.into_iter().flat_map(|status| &status.versions).filter(|version| version.state.is_live())
    }

    fn subject(&self) -> Subject<'_> {
        let metadata = &self.token.metadata;
        Subject {
            namespace: metadata.namespace.as_deref().unwrap_or_default(),
            name: metadata.name.as_deref().unwrap_or_default(),
            token_id: self.status.and_then(|status| status.token_id.as_deref()).unwrap_or_default(),
            created_at: metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            facets: Facets(&self.facets),
        }
    }

    /// Passes a secret to `f`, as locks see it. `None`: its key id can't be read, so it does not work.
    fn with<T>(&self, version: &TokenVersion, f: impl FnOnce(SubjectVersion<'_>) -> T) -> Option<T> {
        let key_id = KeyId::parse(&version.key_id).ok()?;
        let scopes = version.scopes.join(" ");
        Some(f(SubjectVersion { key_id, issued_at: version.issued_at.as_second(), scopes: &scopes }))
    }
}
