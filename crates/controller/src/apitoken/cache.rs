//! The state of each token in memory between two reconciliations. Losing it costs a read or a new token, never one that
//! was delivered.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

use tokenward_core::crd::ApiToken;
use tokenward_core::lifecycle::{Contests, OwnSecret, Rejection, SecretState, Spec};
use tokenward_core::outbox::events::Receipts;
use tokenward_core::token::{KeyId, Peppers, Plaintext};
use tokenward_runtime::sync::lock;

/// The states of all tokens, by uid.
#[derive(Default)]
pub(crate) struct StateCache(Mutex<HashMap<String, TokenState>>);

/// The state of one token.
#[derive(Default)]
pub(crate) struct TokenState {
    /// A token that was generated and recorded in the status, but is not in the Secret yet.
    pub(crate) minted: Option<(KeyId, Plaintext)>,
    /// Why the API server rejected the last write of the Secret.
    pub(crate) rejection: Option<Rejection>,
    /// What somebody else changed back when it was last repaired.
    pub(crate) contests: Contests,
    /// The last inspection of the Secret.
    pub(crate) inspected: Option<Inspected>,
    /// The resourceVersion of the last write of this process. The watch may still deliver older ones.
    pub(crate) written: Option<u64>,
    /// The resourceVersion by which verifiers have to know that it is revoked. One of a later write of ours would do too, and
    /// each write would then need another confirmation.
    pub(crate) revoked_at: Option<u64>,
    /// How often its reconciliation has failed in a row.
    pub(crate) failures: u32,
    /// Whether to read the Secret before creating one: there may be one without labels, which the watch does not see.
    pub(crate) recheck_secret: bool,
    /// Which events TokenWebhooks have accepted, where the status does not reflect it yet.
    pub(crate) receipts: Receipts,
}

/// The result of inspecting a Secret, valid as long as nothing that it depends on has changed.
pub(crate) struct Inspected {
    resource_version: Option<String>,
    expected: u64,
    secret: OwnSecret,
}

impl StateCache {
    /// Changes the state of a token, which is new if there is none. A look alone must not make one: nothing would remove it
    /// if the token was deleted meanwhile.
    pub(crate) fn with<T>(&self, uid: &str, f: impl FnOnce(&mut TokenState) -> T) -> T {
        let mut states = lock(&self.0);
        match states.get_mut(uid) {
            Some(state) => f(state),
            None => f(states.entry(uid.to_owned()).or_default()),
        }
    }

    /// Reads or changes the state of a token, if there is one.
    pub(crate) fn with_existing<T>(&self, uid: &str, f: impl FnOnce(&mut TokenState) -> T) -> Option<T> {
        lock(&self.0).get_mut(uid).map(f)
    }

    /// Removes the state of a deleted token.
    pub(crate) fn remove(&self, uid: &str) {
        lock(&self.0).remove(uid);
    }

    /// All tokens were listed: these. The others were deleted. What was written before may be gone, since etcd may have been
    /// restored, so no resourceVersion is waited for any more; a write by an outdated object is rejected anyway.
    pub(crate) fn relisted(&self, present: &HashSet<String>) {
        lock(&self.0).retain(|uid, state| {
            (state.written, state.revoked_at) = (None, None);
            present.contains(uid)
        });
    }
}

impl Inspected {
    /// The result of an inspection, if the Secret is ours. Its metadata is in the watch's cache already.
    pub(crate) fn of(state: &SecretState, token: &ApiToken, spec: &Spec, peppers: &Peppers) -> Option<Self> {
        let own = state.ours()?;
        Some(Self {
            resource_version: own.metadata.resource_version.clone(),
            expected: fingerprint(token, spec, peppers),
            secret: OwnSecret { metadata: Default::default(), ..own.clone() },
        })
    }

    /// The result, if it is of this version of the Secret and of the same token.
    pub(crate) fn if_current(
        &self,
        resource_version: Option<&str>,
        token: &ApiToken,
        spec: &Spec,
        peppers: &Peppers,
    ) -> Option<OwnSecret> {
        let same = self.resource_version.as_deref() == resource_version
            && self.expected == fingerprint(token, spec, peppers);
        (same && resource_version.is_some()).then(|| self.secret.clone())
    }
}

/// A hash of all that a Secret is compared with: parts of the token, and which peppers there are.
fn fingerprint(token: &ApiToken, spec: &Spec, peppers: &Peppers) -> u64 {
    let mut hasher = DefaultHasher::new();
    peppers.ids().for_each(|id| id.hash(&mut hasher));
    (&spec.token_key, &spec.previous_key, &spec.data, spec.creation_policy as u8).hash(&mut hasher);
    for version in token.status.iter().flat_map(|status| &status.versions) {
        (&version.key_id, &version.hash).hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_remembered_of_tokens_that_are_gone() {
        let cache = StateCache::default();
        assert_eq!(cache.with_existing("looked-at", |state| state.failures), None);
        for uid in ["deleted", "listed", "gone"] {
            cache.with(uid, |state| state.failures = 1);
        }
        cache.remove("deleted");
        cache.with("listed", |state| (state.written, state.revoked_at) = (Some(7), Some(7)));
        cache.relisted(&HashSet::from(["listed".to_owned(), "new".to_owned()]));
        let known = |uid: &str| cache.with_existing(uid, |_| ()).is_some();
        assert_eq!(["deleted", "listed", "gone", "new"].map(known), [false, true, false, false]);
        assert_eq!(
            cache.with_existing("listed", |state| (state.written, state.revoked_at)),
            Some((None, None))
        );
    }
}
