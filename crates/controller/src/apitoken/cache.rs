//! What is remembered of each token between two looks at it. Losing it costs a read or a new draw, never a token.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use tokenward_core::crd::ApiToken;
use tokenward_core::lifecycle::{OwnSecret, Refusal, SecretState, Spec};
use tokenward_core::outbox::events::Receipts;
use tokenward_core::token::{KeyId, Plaintext};

/// The memories of all tokens, by uid.
#[derive(Default)]
pub(crate) struct StateCache(Mutex<HashMap<String, Memory>>);

/// What is remembered of one token.
#[derive(Default)]
pub(crate) struct Memory {
    /// Minted and made known, not delivered yet.
    pub(crate) held: Option<(KeyId, Plaintext)>,
    /// The refusal of the last attempt to write the Secret.
    pub(crate) refusal: Option<Refusal>,
    /// What a Secret was found to hold.
    pub(crate) inspected: Option<Inspected>,
    /// The resourceVersion of the last status that this process wrote. Older ones are echoes.
    pub(crate) written: Option<u64>,
    /// How often in a row something failed.
    pub(crate) failures: u32,
    /// A Secret is known to be in the way that the watch, which sees labelled ones only, does not show.
    pub(crate) look: bool,
    /// What TokenWebhooks have accepted and the status does not say yet.
    pub(crate) receipts: Receipts,
}

/// What a Secret was found to hold, as long as nothing that was looked at has changed.
pub(crate) struct Inspected {
    resource_version: Option<String>,
    question: u64,
    finding: OwnSecret,
}

impl StateCache {
    /// Reads or changes what is remembered of a token.
    pub(crate) fn with<T>(&self, uid: &str, f: impl FnOnce(&mut Memory) -> T) -> T {
        // A panic elsewhere leaves plain data behind.
        let mut memories = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match memories.get_mut(uid) {
            Some(memory) => f(memory),
            None => f(memories.entry(uid.to_owned()).or_default()),
        }
    }

    /// The same for a token of which something is remembered.
    pub(crate) fn with_known<T>(&self, uid: &str, f: impl FnOnce(&mut Memory) -> T) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(uid).map(f)
    }

    /// Forgets a token that is gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

impl Inspected {
    /// Remembers what was found, if the Secret is ours. The metadata is left to the watch's cache.
    pub(crate) fn of(state: &SecretState, token: &ApiToken, spec: &Spec) -> Option<Self> {
        let own = state.ours()?;
        Some(Self {
            resource_version: own.metadata.resource_version.clone(),
            question: question(token, spec),
            finding: OwnSecret { metadata: Default::default(), ..own.clone() },
        })
    }

    /// What was found, if it was this Secret and the same question.
    pub(crate) fn recall(
        &self,
        resource_version: Option<&str>,
        token: &ApiToken,
        spec: &Spec,
    ) -> Option<OwnSecret> {
        let same =
            self.resource_version.as_deref() == resource_version && self.question == question(token, spec);
        (same && resource_version.is_some()).then(|| self.finding.clone())
    }
}

/// All that a Secret was held against.
fn question(token: &ApiToken, spec: &Spec) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&spec.token_key, &spec.previous_key).hash(&mut hasher);
    for version in token.status.iter().flat_map(|status| &status.versions) {
        (&version.key_id, &version.hash).hash(&mut hasher);
    }
    hasher.finish()
}
