//! What was revoked is remembered apart from the object that says so, since a restore may bring back an earlier state of it.
//!
//! The controller keeps tombstones in the ledger, beside the pepper, where they outlive the ApiTokens; each verifier keeps those
//! of what it has seen revoked for as long as it runs, or its checkpoint is there. A tombstone only ever ends: it is made of what the object itself says, so
//! whoever writes a status can end with it nothing but that object.

use std::collections::HashSet;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use sha2::{Digest, Sha256};

const DOMAIN: &[u8] = b"tokenward/tombstone/v1";

/// The size of a tombstone in bytes.
pub const TOMBSTONE_BYTES: usize = 16;

/// Says that a token or one of its secrets was revoked. Not a secret: it is a digest of public names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tombstone([u8; TOMBSTONE_BYTES]);

impl Tombstone {
    /// That of a stored digest.
    pub const fn from_bytes(bytes: [u8; TOMBSTONE_BYTES]) -> Self {
        Self(bytes)
    }

    /// The digest, to be stored.
    pub const fn as_bytes(&self) -> &[u8; TOMBSTONE_BYTES] {
        &self.0
    }
}

/// An ApiToken by what stays the same when it is restored: its names and `status.tokenId`, which its MACs and seals contain.
#[derive(Clone, Copy, Debug)]
pub struct TokenIdentity<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub token_id: &'a str,
}

impl TokenIdentity<'_> {
    /// The tombstone of the token with all its secrets.
    pub fn token(&self) -> Tombstone {
        self.digest(b"")
    }

    /// The tombstone of one secret.
    pub fn version(&self, key_id: &str) -> Tombstone {
        self.digest(key_id.as_bytes())
    }

    fn digest(&self, key_id: &[u8]) -> Tombstone {
        let mut digest = Sha256::new_with_prefix(DOMAIN);
        for field in [self.namespace.as_bytes(), self.name.as_bytes(), self.token_id.as_bytes(), key_id] {
            // With its length, so that no two lists of fields are one text.
            digest.update((field.len() as u64).to_be_bytes());
            digest.update(field);
        }
        let digest: [u8; 32] = digest.finalize().into();
        let mut bytes = [0; TOMBSTONE_BYTES];
        bytes.copy_from_slice(&digest[..TOMBSTONE_BYTES]);
        Tombstone(bytes)
    }
}

/// A set of tombstones, 16 bytes each and what the table needs. None is ever removed.
#[derive(Debug, Default)]
pub struct Tombstones(RwLock<HashSet<Tombstone>>);

impl Tombstones {
    /// Adds them. Returns those that are new.
    pub fn extend(&self, tombstones: impl IntoIterator<Item = Tombstone>) -> Vec<Tombstone> {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        tombstones.into_iter().filter(|tombstone| known.insert(*tombstone)).collect()
    }

    /// Whether the token was revoked.
    pub fn has_token(&self, identity: TokenIdentity<'_>) -> bool {
        self.has(|| identity.token())
    }

    /// Whether this secret of the token was revoked by itself.
    pub fn has_version(&self, identity: TokenIdentity<'_>, key_id: &str) -> bool {
        self.has(|| identity.version(key_id))
    }

    /// Whether the token or this secret of it was revoked.
    pub fn has_either(&self, identity: TokenIdentity<'_>, key_id: &str) -> bool {
        self.has_token(identity) || self.has_version(identity, key_id)
    }

    /// A digest costs more than the look-up, and most often there is none to look for.
    fn has(&self, tombstone: impl FnOnce() -> Tombstone) -> bool {
        let known = self.read();
        !known.is_empty() && known.contains(&tombstone())
    }

    /// Those of these that are not among them.
    pub fn lacking(&self, tombstones: impl IntoIterator<Item = Tombstone>) -> Vec<Tombstone> {
        let known = self.read();
        tombstones.into_iter().filter(|tombstone| !known.contains(tombstone)).collect()
    }

    /// All of them, in no order.
    pub fn all(&self) -> Vec<Tombstone> {
        self.read().iter().copied().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, HashSet<Tombstone>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tombstone_is_of_one_token_or_secret() {
        let identity = TokenIdentity { namespace: "ns", name: "n", token_id: "tok_1" };
        let all = [
            identity.token(),
            identity.version("k"),
            identity.version("l"),
            TokenIdentity { namespace: "other", ..identity }.token(),
            TokenIdentity { name: "other", ..identity }.token(),
            TokenIdentity { namespace: "nsn", name: "", ..identity }.token(),
            TokenIdentity { token_id: "tok_2", ..identity }.token(),
        ];
        let tombstones = Tombstones::default();
        assert_eq!(tombstones.extend(all), all, "no two are the same");
        assert_eq!(tombstones.extend(all), []);
        assert_eq!(tombstones.all().len(), all.len());
    }

    #[test]
    fn that_of_a_token_ends_all_its_secrets() {
        let identity = TokenIdentity { namespace: "ns", name: "n", token_id: "tok_1" };
        let tombstones = Tombstones::default();
        assert!(!tombstones.has_either(identity, "k"));
        tombstones.extend([identity.version("k")]);
        assert!(tombstones.has_either(identity, "k") && !tombstones.has_either(identity, "l"));
        tombstones.extend([identity.token()]);
        assert!(tombstones.has_either(identity, "l"));
        assert!(!tombstones.has_either(TokenIdentity { namespace: "other", ..identity }, "l"));
    }
}
