//! The peppers: the secret keys of all token hashes and seals.

use std::collections::BTreeMap;
use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;

/// The length of a pepper.
const PEPPER_BYTES: usize = 32;
/// The key of the pepper Secret that names the current pepper.
const CURRENT: &str = "current";

/// Separates ids from whatever else is hashed with a pepper.
const ID_DOMAIN: &[u8] = b"tokenward/pepper-id/v1";

/// The name of a pepper: 1 to 16 lower-case letters and digits. Stored inline, so that it is `Copy`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PepperId([u8; 16]);

impl PepperId {
    /// Parses an id. `None`: it is not of that form, or it is `current`, which is not an id.
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let mut id = [0; 16];
        id.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        (!text.is_empty() && text.bytes().all(allowed) && text != CURRENT).then_some(Self(id))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        let length = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
        // parse admits only ASCII.
        std::str::from_utf8(&self.0[..length]).unwrap_or_default()
    }
}

impl fmt::Debug for PepperId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PepperId({})", self.as_str())
    }
}

/// Why the pepper Secret can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PepperError {
    /// The key `current` is missing, or does not name another key.
    #[error("its key `current` must name one of its other keys")]
    NoCurrent,
    /// A key is not a pepper id.
    #[error("its key {0:?} is not a pepper id (1 to 16 lower-case letters and digits)")]
    Id(String),
    /// A value is not 32 bytes long.
    #[error("its key {0:?} must hold exactly 32 bytes")]
    Length(String),
}

/// The current pepper, under which new hashes are made, and retired ones, which still verify old hashes.
#[derive(Clone)]
pub struct Peppers {
    current: PepperId,
    // Each Hmac is keyed once: to clone its state is cheaper than the two compressions of a key schedule.
    keys: BTreeMap<PepperId, Hmac<Sha256>>,
}

impl Peppers {
    /// Parses the data of the pepper Secret: `current` names a key, every other key is a pepper of 32 bytes.
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

    /// The data of a new pepper Secret, which [`Self::from_data`] parses. Its id comes from the pepper, so that no two
    /// peppers have the same, and a hash that was made under a lost one can be recognised.
    pub fn new_data(pepper: &[u8; PEPPER_BYTES]) -> BTreeMap<String, Vec<u8>> {
        let digest = Sha256::new().chain_update(ID_DOMAIN).chain_update(pepper).finalize();
        let id = digest[..4].iter().fold("p".to_owned(), |id, byte| format!("{id}{byte:02x}"));
        [(CURRENT.to_owned(), id.clone().into_bytes()), (id, pepper.to_vec())].into()
    }

    /// The ids of all peppers.
    pub fn ids(&self) -> impl Iterator<Item = PepperId> {
        self.keys.keys().copied()
    }

    /// Whether there is a pepper of this id.
    pub fn contains(&self, id: &PepperId) -> bool {
        self.keys.contains_key(id)
    }

    /// The pepper under which new hashes are made.
    pub fn current(&self) -> PepperId {
        self.current
    }

    /// HMAC-SHA256 over a domain and fields. Each is preceded by its length, so that no two lists of fields give the
    /// same input. `None`: there is no pepper of that id.
    pub(super) fn mac(&self, pepper: &PepperId, domain: &[u8], fields: &[&[u8]]) -> Option<[u8; 32]> {
        Some(mac(self.keys.get(pepper)?, domain, fields))
    }

    /// Whether `expected` is the MAC under any of the peppers, compared in constant time.
    ///
    /// The current pepper is tried first. There are few, so the index need not store for each of a million hashes
    /// which pepper it was made under.
    pub(super) fn verify_mac(&self, domain: &[u8], fields: &[&[u8]], expected: &[u8; 32]) -> bool {
        let current = self.keys.get(&self.current);
        let retired = self.keys.iter().filter(|(id, _)| **id != self.current).map(|(_, key)| key);
        current.into_iter().chain(retired).any(|key| are_equal(&mac(key, domain, fields), expected))
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

/// Compares in constant time, and by words: by bytes, it would take as long as one of the hash's compressions.
fn are_equal(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let ((one, _), (other, _)) = (one.as_chunks(), other.as_chunks());
    let pairs = one.iter().zip(other).map(|(a, b)| u64::from_ne_bytes(*a).ct_eq(&u64::from_ne_bytes(*b)));
    pairs.fold(Choice::from(1), |all, equal| all & equal).into()
}

impl fmt::Debug for Peppers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peppers(current {}, {} in all, redacted)", self.current.as_str(), self.keys.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn one_bit_makes_the_difference(mac: [u8; 32], byte in 0usize..32, bit in 0u8..8) {
            let mut other = mac;
            prop_assert!(are_equal(&mac, &other));
            other[byte] ^= 1 << bit;
            prop_assert!(!are_equal(&mac, &other));
        }
    }

    #[test]
    fn two_peppers_have_two_ids() {
        let id = |byte| Peppers::from_data(&Peppers::new_data(&[byte; 32])).expect("peppers").current();
        assert_eq!(id(1), id(1));
        assert_ne!(id(1), id(2));
        assert_eq!(id(1).as_str().len(), 9);
    }

    #[test]
    fn a_damaged_pepper_secret_says_what_is_wrong() {
        let mut data = Peppers::new_data(&[1; 32]);
        let peppers = Peppers::from_data(&data).expect("peppers");
        data.remove("current");
        assert_eq!(Peppers::from_data(&data).err(), Some(PepperError::NoCurrent));
        data.insert("current".to_owned(), b"p9".to_vec());
        assert_eq!(Peppers::from_data(&data).err(), Some(PepperError::NoCurrent));
        data.insert("P-1".to_owned(), vec![0; 32]);
        assert_eq!(Peppers::from_data(&data).err(), Some(PepperError::Id("P-1".to_owned())));
        data.remove("P-1");
        data.insert("p1".to_owned(), vec![0; 31]);
        assert_eq!(Peppers::from_data(&data).err(), Some(PepperError::Length("p1".to_owned())));
        assert!(!format!("{:?}", peppers).contains("[1,"));
    }
}
