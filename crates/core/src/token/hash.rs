//! The hash that is stored instead of a token.
//!
//! HMAC-SHA256 (RFC 2104), keyed with a pepper, over namespace, name and the whole token, each preceded by its length.
//! A token has 256 random bits, so a slow password hash would add nothing. The key makes a status worthless to an
//! attacker who can read it, and useless for forging to one who can write it. Namespace and name bind the hash to its
//! object: copied into the status of another ApiToken, it verifies nothing there.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::pepper::{PepperId, Peppers};
use super::{Plaintext, Token};

const ALGORITHM: &str = "hmac-sha256";
/// Separates token hashes from anything else that is keyed with the same pepper. Its text can never change: every
/// stored hash depends on it.
const HASH_DOMAIN: &[u8] = b"tokenward/proof/v1";

/// The stored hash of a token: `hmac-sha256:<pepper id>:<base64url>`. Not a secret: it reveals nothing of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash {
    /// The pepper that keys it.
    pub pepper: PepperId,
    pub mac: [u8; 32],
}

impl Hash {
    /// Parses a hash as a status stores it. `None`: it is not of that form.
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

impl Peppers {
    /// The hash of a new token, under the current pepper.
    pub fn hash(&self, namespace: &str, name: &str, token: &Plaintext) -> Option<Hash> {
        let pepper = self.current();
        let mac = self.mac(&pepper, HASH_DOMAIN, &hash_fields(namespace, name, token.expose()))?;
        Some(Hash { pepper, mac })
    }

    /// The hash of a token under the given pepper. `None`: there is no pepper of that id.
    pub(crate) fn hash_with(
        &self,
        pepper: &PepperId,
        namespace: &str,
        name: &str,
        token: &Token<'_>,
    ) -> Option<Hash> {
        let mac = self.mac(pepper, HASH_DOMAIN, &hash_fields(namespace, name, token.expose()))?;
        Some(Hash { pepper: *pepper, mac })
    }

    /// Whether a presented token is the one that was hashed, under any of the peppers, in constant time.
    pub fn verify(&self, namespace: &str, name: &str, token: &Token<'_>, mac: &[u8; 32]) -> bool {
        self.verify_mac(HASH_DOMAIN, &hash_fields(namespace, name, token.expose()), mac)
    }
}

fn hash_fields<'a>(namespace: &'a str, name: &'a str, token: &'a str) -> [&'a [u8]; 3] {
    [namespace.as_bytes(), name.as_bytes(), token.as_bytes()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::token::format::{KeyId, Prefix, make};

    fn peppers(byte: u8) -> Peppers {
        Peppers::from_data(&Peppers::new_data(&[byte; 32])).expect("peppers")
    }

    proptest! {
        #[test]
        fn a_hash_verifies_its_token_and_object_only(
            ns in "[a-z]{1,8}", name in "[a-z]{1,8}", other_ns in "[a-z]{1,8}", other_name in "[a-z]{1,8}",
            secret: [u8; 32], other_secret: [u8; 32],
        ) {
            let peppers = peppers(1);
            let key_id = KeyId::from_bytes([3; 16]);
            let plaintext = make(&Prefix::default(), key_id, &secret);
            let other = make(&Prefix::default(), key_id, &other_secret);
            let token = Token::parse(plaintext.expose()).expect("token");
            let hash = peppers.hash(&ns, &name, &plaintext).expect("hash");
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
    fn retired_peppers_still_verify() {
        let plaintext = make(&Prefix::default(), KeyId::from_bytes([0; 16]), &[0; 32]);
        let token = Token::parse(plaintext.expose()).expect("token");
        let old = peppers(1).hash("ns", "name", &plaintext).expect("hash");
        let mut data = Peppers::new_data(&[1; 32]);
        data.insert("p2".to_owned(), vec![2; 32]);
        data.insert("current".to_owned(), b"p2".to_vec());
        let rotated = Peppers::from_data(&data).expect("peppers");
        assert!(rotated.verify("ns", "name", &token, &old.mac));
        assert_eq!(rotated.hash("ns", "name", &plaintext).expect("hash").pepper.as_str(), "p2");
    }
}
