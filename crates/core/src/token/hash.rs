//! The proof that is stored instead of a token, and the peppers under which it is made.
//!
//! HMAC-SHA256 (RFC 2104) over namespace, name and the whole token, each with its length before it. A token has
//! 256 random bits, so a slow password hash would add nothing; the key makes a read status worthless to an
//! attacker and a written one useless for forging. Namespace and name bind the proof to its object: copied into
//! another ApiToken's status, it proves nothing there.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;

use super::{Plaintext, Token};

const ALGORITHM: &str = "hmac-sha256";
const PEPPER_BYTES: usize = 32;
const CURRENT: &str = "current";
/// Set apart what else is ever keyed with the same pepper.
const HASH_DOMAIN: &[u8] = b"tokenward/proof/v1";

/// The name of a pepper: 1 to 16 lower-case letters and digits. Stored inline, so that it is `Copy`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PepperId([u8; 16]);

impl PepperId {
    /// Checks a text.
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let mut id = [0; 16];
        id.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        (!text.is_empty() && text.bytes().all(allowed) && text != CURRENT).then_some(Self(id))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        let length = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
        // Only ASCII is admitted.
        std::str::from_utf8(&self.0[..length]).unwrap_or_default()
    }
}

impl fmt::Debug for PepperId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PepperId({})", self.as_str())
    }
}

/// A stored proof: `hmac-sha256:<pepper id>:<base64url>`. Public: it tells nothing of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash {
    /// Under which pepper it was made.
    pub pepper: PepperId,
    /// The 32 bytes.
    pub mac: [u8; 32],
}

impl Hash {
    /// Reads a proof as it stands in a status. `None`: not of that form.
    pub fn parse(text: &str) -> Option<Self> {
        let (pepper, mac) = text.strip_prefix(ALGORITHM)?.strip_prefix(':')?.split_once(':')?;
        let mac = URL_SAFE_NO_PAD.decode(mac).ok()?.try_into().ok()?;
        Some(Self { pepper: PepperId::parse(pepper)?, mac })
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ALGORITHM}:{}:{}", self.pepper.as_str(), URL_SAFE_NO_PAD.encode(self.mac))
    }
}

/// Why the pepper Secret can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PepperError {
    /// No `current`, or it names nothing.
    #[error("its key `current` must name one of its other keys")]
    NoCurrent,
    /// A key's name.
    #[error("its key {0:?} is not a pepper id (1 to 16 lower-case letters and digits)")]
    Id(String),
    /// A key's value.
    #[error("its key {0:?} must hold exactly 32 bytes")]
    Length(String),
}

/// The peppers: one under which new proofs are made, and retired ones under which old proofs still hold.
#[derive(Clone)]
pub struct Peppers {
    current: PepperId,
    // Keyed once: a clone of the state costs less than the two compressions of a key schedule.
    keys: BTreeMap<PepperId, Hmac<Sha256>>,
}

impl Peppers {
    /// Reads the pepper Secret's data: `current` names a key, every other key is a pepper of 32 bytes.
    pub fn from_data<V: AsRef<[u8]>>(data: &BTreeMap<String, V>) -> Result<Self, PepperError> {
        let mut keys = BTreeMap::new();
        for (name, value) in data.iter().filter(|(name, _)| *name != CURRENT) {
            let id = PepperId::parse(name).ok_or_else(|| PepperError::Id(name.clone()))?;
            let value = value.as_ref();
            if value.len() != PEPPER_BYTES {
                return Err(PepperError::Length(name.clone()));
            }
            let key = Hmac::new_from_slice(value).map_err(|_| PepperError::Length(name.clone()))?;
            keys.insert(id, key);
        }
        let current = data
            .get(CURRENT)
            .and_then(|name| std::str::from_utf8(name.as_ref()).ok())
            .and_then(|name| PepperId::parse(name.trim()))
            .filter(|id| keys.contains_key(id))
            .ok_or(PepperError::NoCurrent)?;
        Ok(Self { current, keys })
    }

    /// The data of a new pepper Secret, for [`Self::from_data`].
    pub fn new_data(pepper: &[u8; PEPPER_BYTES]) -> BTreeMap<String, Vec<u8>> {
        [(CURRENT.to_owned(), b"p1".to_vec()), ("p1".to_owned(), pepper.to_vec())].into()
    }

    /// The proof of a token under one of the peppers. `None`: no pepper of that id.
    pub fn hash_with(
        &self,
        pepper: &PepperId,
        namespace: &str,
        name: &str,
        token: &Token<'_>,
    ) -> Option<Hash> {
        let mac = self.mac(pepper, HASH_DOMAIN, &hash_fields(namespace, name, token.expose()))?;
        Some(Hash { pepper: *pepper, mac })
    }

    /// The proof of a new token, under the current pepper.
    pub fn hash(&self, namespace: &str, name: &str, token: &Plaintext) -> Option<Hash> {
        let mac = self.mac(&self.current, HASH_DOMAIN, &hash_fields(namespace, name, token.expose()))?;
        Some(Hash { pepper: self.current, mac })
    }

    /// Whether a presented token is the one that a stored proof stands for, in constant time.
    ///
    /// Every pepper is tried, the current one first: there are few, and an index of a million proofs need not keep a
    /// million times which it was.
    pub fn verify(&self, namespace: &str, name: &str, token: &Token<'_>, proof: &[u8; 32]) -> bool {
        let current = self.keys.get(&self.current);
        let retired = self.keys.iter().filter(|(id, _)| **id != self.current).map(|(_, key)| key);
        let fields = hash_fields(namespace, name, token.expose());
        current.into_iter().chain(retired).any(|key| are_equal(&mac(key, HASH_DOMAIN, &fields), proof))
    }

    /// HMAC-SHA256 over a domain and fields, each with its length before it, so that no two lists of fields
    /// give the same input. `None`: no pepper of that id.
    pub(super) fn mac(&self, pepper: &PepperId, domain: &[u8], fields: &[&[u8]]) -> Option<[u8; 32]> {
        Some(mac(self.keys.get(pepper)?, domain, fields))
    }
}

fn mac(key: &Hmac<Sha256>, domain: &[u8], fields: &[&[u8]]) -> [u8; 32] {
    let mut mac = key.clone();
    for field in std::iter::once(&domain).chain(fields) {
        mac.update(&(field.len() as u64).to_be_bytes());
        mac.update(field);
    }
    mac.finalize().into_bytes().into()
}

/// In constant time, and by words: by bytes, it would take as long as one of the hash's compressions.
fn are_equal(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let ((one, _), (other, _)) = (one.as_chunks(), other.as_chunks());
    let pairs = one.iter().zip(other).map(|(a, b)| u64::from_ne_bytes(*a).ct_eq(&u64::from_ne_bytes(*b)));
    pairs.fold(Choice::from(1), |all, equal| all & equal).into()
}

fn hash_fields<'a>(namespace: &'a str, name: &'a str, token: &'a str) -> [&'a [u8]; 3] {
    [namespace.as_bytes(), name.as_bytes(), token.as_bytes()]
}

impl fmt::Debug for Peppers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peppers(current {}, {} in all, redacted)", self.current.as_str(), self.keys.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::format::{KeyId, Prefix, make};
    use super::*;

    fn peppers(byte: u8) -> Peppers {
        Peppers::from_data(&Peppers::new_data(&[byte; 32])).expect("peppers")
    }

    proptest! {
        #[test]
        fn one_bit_makes_the_difference(mac: [u8; 32], byte in 0usize..32, bit in 0u8..8) {
            let mut other = mac;
            prop_assert!(are_equal(&mac, &other));
            other[byte] ^= 1 << bit;
            prop_assert!(!are_equal(&mac, &other));
        }
    }

    proptest! {
        #[test]
        fn a_proof_holds_for_its_token_and_object_only(
            ns in "[a-z]{1,8}", name in "[a-z]{1,8}", other_ns in "[a-z]{1,8}", other_name in "[a-z]{1,8}",
            secret: [u8; 32], other_secret: [u8; 32],
        ) {
            let peppers = peppers(1);
            let key_id = KeyId::from_bytes([3; 16]);
            let plaintext = make(&Prefix::default(), key_id, &secret);
            let other = make(&Prefix::default(), key_id, &other_secret);
            let token = Token::parse(plaintext.expose()).expect("token");
            let hash = peppers.hash(&ns, &name, &plaintext).expect("proof");
            let stored = Hash::parse(&hash.to_string()).expect("stored form").mac;
            prop_assert!(peppers.verify(&ns, &name, &token, &stored));
            prop_assert_eq!(peppers.verify(&other_ns, &other_name, &token, &stored), (&other_ns, &other_name) == (&ns, &name));
            let other = Token::parse(other.expose()).expect("token");
            prop_assert_eq!(peppers.verify(&ns, &name, &other, &stored), secret == other_secret);
            prop_assert!(!super::tests::peppers(2).verify(&ns, &name, &token, &stored));
        }

        #[test]
        fn no_hash_text_panics(text in "\\PC*") {
            let _ = Hash::parse(&text);
        }
    }

    /// `ab` + `c` and `a` + `bc` are different objects.
    #[test]
    fn fields_do_not_run_together() {
        let peppers = peppers(1);
        let plaintext = make(&Prefix::default(), KeyId::from_bytes([0; 16]), &[0; 32]);
        assert_ne!(peppers.hash("ab", "c", &plaintext), peppers.hash("a", "bc", &plaintext));
    }

    #[test]
    fn retired_peppers_still_prove() {
        let plaintext = make(&Prefix::default(), KeyId::from_bytes([0; 16]), &[0; 32]);
        let token = Token::parse(plaintext.expose()).expect("token");
        let old = peppers(1).hash("ns", "name", &plaintext).expect("proof");
        let mut data = Peppers::new_data(&[1; 32]);
        data.insert("p2".to_owned(), vec![2; 32]);
        data.insert("current".to_owned(), b"p2".to_vec());
        let rotated = Peppers::from_data(&data).expect("peppers");
        assert!(rotated.verify("ns", "name", &token, &old.mac));
        assert_eq!(rotated.hash("ns", "name", &plaintext).expect("proof").pepper.as_str(), "p2");
    }

    #[test]
    fn a_damaged_pepper_secret_says_what_is_wrong() {
        let mut data = Peppers::new_data(&[1; 32]);
        data.remove("current");
        assert_eq!(Peppers::from_data(&data).err(), Some(PepperError::NoCurrent));
        data.insert("current".to_owned(), b"p9".to_vec());
        assert_eq!(Peppers::from_data(&data).err(), Some(PepperError::NoCurrent));
        data.insert("P-1".to_owned(), vec![0; 32]);
        assert_eq!(Peppers::from_data(&data).err(), Some(PepperError::Id("P-1".to_owned())));
        data.remove("P-1");
        data.insert("p1".to_owned(), vec![0; 31]);
        assert_eq!(Peppers::from_data(&data).err(), Some(PepperError::Length("p1".to_owned())));
        assert!(!format!("{:?}", peppers(1)).contains("[1,"));
    }
}
