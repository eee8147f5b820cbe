//! Signatures of Standard Webhooks 1.0: `v1` by HMAC-SHA256, `v1a` by ed25519, over `id.timestamp.body`.
//!
//! The text of a key begins with its kind: `whsec_` and 24 to 64 bytes in base64, or `whsk_` and an ed25519
//! seed of 32 bytes, with or without the 32 bytes of the public key after it. Several keys, separated by blanks, sign
//! side by side, which is how a key is replaced without a gap.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use ring::signature::{Ed25519KeyPair, KeyPair};
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::crd::SigningAlgorithm;

const HMAC_PREFIX: &str = "whsec_";
const ED25519_PREFIX: &str = "whsk_";
const PUBLIC_KEY_PREFIX: &str = "whpk_";
/// How many keys one text may contain, all of which sign.
const MAX_KEYS: usize = 4;
/// How many random bytes a new key of either kind is made of.
pub const NEW_KEY_BYTES: usize = 32;

/// The signing keys, the newest first. Redacted in Debug. The caller wipes the text that they were parsed from.
pub struct SigningKeys(Vec<SigningKey>);

enum SigningKey {
    // Keyed once, since cloning this state is cheaper than the two compressions with which a key is set up.
    Symmetric(Box<Hmac<Sha256>>),
    Asymmetric(Box<Ed25519KeyPair>),
}

/// Why a text is not a list of signing keys. Contains nothing of the text, which may be secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// There is no key, or there are more than one text may contain.
    #[error("it must contain 1 to {MAX_KEYS} signing keys, separated by blanks")]
    Count,
    /// The key has neither prefix.
    #[error("a signing key starts with whsec_ (HMAC-SHA256) or whsk_ (ed25519)")]
    Prefix,
    /// The part after the prefix is not base64.
    #[error("what follows the prefix of a signing key must be base64")]
    Base64,
    /// The length is outside of what the specification allows.
    #[error("a whsec_ key must have 24 to 64 bytes")]
    Length,
    #[error("a whsk_ key must be an ed25519 seed of 32 bytes, or that and its public key")]
    Ed25519,
}

impl SigningKeys {
    /// Reads one key, or several separated by blanks.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let keys: Vec<SigningKey> =
            text.split_whitespace().map(SigningKey::parse).collect::<Result<_, _>>()?;
        if (1..=MAX_KEYS).contains(&keys.len()) { Ok(Self(keys)) } else { Err(KeyError::Count) }
    }

    /// Adds the keys that these have replaced, which still sign.
    pub fn and(mut self, older: Self) -> Self {
        self.0.extend(older.0);
        self
    }

    /// The header `webhook-signature`: one signature for each key.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let head = format!("{id}.{timestamp}.");
        let mut signatures = String::with_capacity(96 * self.0.len());
        for key in &self.0 {
            if !signatures.is_empty() {
                signatures.push(' ');
            }
            key.sign(head.as_bytes(), body, &mut signatures);
        }
        signatures
    }

    /// The newest key's public part, if it has one.
    pub fn public_key(&self) -> Option<String> {
        match self.0.first()? {
            SigningKey::Symmetric(_) => None,
            SigningKey::Asymmetric(pair) => {
                Some(format!("{PUBLIC_KEY_PREFIX}{}", STANDARD.encode(pair.public_key())))
            }
        }
    }
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKeys({}, redacted)", self.0.len())
    }
}

impl SigningKey {
    fn parse(text: &str) -> Result<Self, KeyError> {
        let decode = |text: &str| STANDARD.decode(text).map(Zeroizing::new).map_err(|_| KeyError::Base64);
        if let Some(text) = text.strip_prefix(HMAC_PREFIX) {
            let key = decode(text)?;
            if !(24..=64).contains(&key.len()) {
                return Err(KeyError::Length);
            }
            let keyed = Hmac::new_from_slice(&key).map_err(|_| KeyError::Length)?;
            return Ok(Self::Symmetric(Box::new(keyed)));
        }
        let key = decode(text.strip_prefix(ED25519_PREFIX).ok_or(KeyError::Prefix)?)?;
        let pair = match key.split_at_checked(32) {
            Some((seed, [])) => Ed25519KeyPair::from_seed_unchecked(seed),
            Some((seed, public)) => Ed25519KeyPair::from_seed_and_public_key(seed, public),
            None => return Err(KeyError::Ed25519),
        };
        Ok(Self::Asymmetric(Box::new(pair.map_err(|_| KeyError::Ed25519)?)))
    }

    fn sign(&self, head: &[u8], body: &[u8], signatures: &mut String) {
        match self {
            Self::Symmetric(keyed) => {
                let mut mac = (**keyed).clone();
                mac.update(head);
                mac.update(body);
                signatures.push_str("v1,");
                STANDARD.encode_string(mac.finalize().into_bytes(), signatures);
            }
            Self::Asymmetric(pair) => {
                signatures.push_str("v1a,");
                STANDARD.encode_string(pair.sign(&[head, body].concat()), signatures);
            }
        }
    }
}

/// The text of a new key, from random bytes.
pub fn new_key(algorithm: SigningAlgorithm, random: &[u8; NEW_KEY_BYTES]) -> Zeroizing<String> {
    let prefix = match algorithm {
        SigningAlgorithm::HmacSha256 => HMAC_PREFIX,
        SigningAlgorithm::Ed25519 => ED25519_PREFIX,
    };
    let encoded = Zeroizing::new(STANDARD.encode(random));
    // With room for all of it, since a string that grows leaves a copy of its beginning in freed memory.
    let mut text = Zeroizing::new(String::with_capacity(prefix.len() + encoded.len()));
    text.push_str(prefix);
    text.push_str(&encoded);
    text
}

#[cfg(test)]
mod tests {
    use ring::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;

    /// The test vector of the published libraries.
    #[test]
    fn the_signature_of_the_published_test_vector() {
        let keys = SigningKeys::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a key");
        let signature = keys.sign(ID, 1614265330, BODY);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(keys.public_key(), None);
    }

    #[test]
    fn ed25519_is_verified_by_the_public_key() {
        let text = new_key(SigningAlgorithm::Ed25519, &[7; 32]);
        let keys = SigningKeys::parse(&text).expect("a key");
        let public = keys.public_key().expect("a public key");
        let public = STANDARD.decode(public.strip_prefix("whpk_").expect("its prefix")).expect("base64");
        let signature = keys.sign(ID, 1, BODY);
        let signature = STANDARD.decode(signature.strip_prefix("v1a,").expect("v1a")).expect("base64");
        let signed = [format!("{ID}.1.").as_bytes(), BODY].concat();
        UnparsedPublicKey::new(&ED25519, &public).verify(&signed, &signature).expect("it verifies");
        // The long form of the same key.
        let long = format!("whsk_{}", STANDARD.encode([&[7; 32][..], &public].concat()));
        assert_eq!(SigningKeys::parse(&long).expect("a key").sign(ID, 1, BODY), keys.sign(ID, 1, BODY));
    }

    #[test]
    fn several_keys_sign_side_by_side() {
        let [new, old] = [1, 2].map(|byte| new_key(SigningAlgorithm::HmacSha256, &[byte; 32]));
        let parse = |text: &str| SigningKeys::parse(text).expect("keys");
        let both = parse(&new).and(parse(&old)).sign(ID, 1, BODY);
        assert_eq!(both, format!("{} {}", parse(&new).sign(ID, 1, BODY), parse(&old).sign(ID, 1, BODY)));
        assert_eq!(parse(&format!("{}\n{}\n", *new, *old)).sign(ID, 1, BODY), both);
    }

    #[test]
    fn an_invalid_key_is_rejected_and_not_repeated() {
        let encoded = |bytes: usize| STANDARD.encode(vec![1; bytes]);
        let cases = [
            (String::new(), KeyError::Count),
            (format!("whsec_{} ", encoded(32)).repeat(5), KeyError::Count),
            ("hunter2".to_owned(), KeyError::Prefix),
            (format!("whpk_{}", encoded(32)), KeyError::Prefix),
            ("whsec_hunter2!".to_owned(), KeyError::Base64),
            (format!("whsec_{}", encoded(23)), KeyError::Length),
            (format!("whsec_{}", encoded(65)), KeyError::Length),
            (format!("whsk_{}", encoded(31)), KeyError::Ed25519),
            // A public key that is not this seed's.
            (format!("whsk_{}", encoded(64)), KeyError::Ed25519),
        ];
        for (text, expected) in cases {
            let error = SigningKeys::parse(&text).expect_err("no key");
            assert_eq!(error, expected, "{text}");
            assert!(!error.to_string().contains("hunter2"));
        }
        assert!(!format!("{:?}", SigningKeys::parse(&format!("whsec_{}", encoded(24)))).contains("AQEB"));
    }
}
