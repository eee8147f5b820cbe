//! The annotation that binds a Secret to the version that it contains.
//!
//! Whoever may write Secrets in a namespace could label one as ours. The seal is keyed with the pepper, so a
//! Secret that carries a valid one was written by the controller, for this very object and version; and a status
//! that was lost can be rebuilt from it without a rotation.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;

use super::hash::Hash;
use super::pepper::{PepperId, Peppers};

const SEAL_DOMAIN: &[u8] = b"tokenward/seal/v2";
/// The domain of seals before they had scopes and the revocation. They are verified, and no longer made.
const SEAL_DOMAIN_V1: &[u8] = b"tokenward/seal/v1";

/// The facts that a seal authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    /// The uid of the ApiToken, so that a recreated one of the same name is not mistaken for it.
    pub uid: &'a str,
    /// The public id of the ApiToken, `status.tokenId`.
    pub token_id: &'a str,
    /// When the version was issued, as text.
    pub issued_at: &'a str,
    /// The number of the version that the Secret contains.
    pub version: i64,
    /// The key id of that version.
    pub key_id: &'a str,
    /// The scopes that the version was issued with, separated by spaces. `None`: the seal is of the first form, which covers
    /// neither these nor `revoked`.
    pub scopes: Option<&'a str>,
    /// Whether the token is revoked: then the Secret is ours, and what it contains never works again.
    pub revoked: bool,
    /// The stored hash of its token, under the pepper of the seal.
    pub hash: &'a Hash,
}

/// A seal, as the annotation has it: `<pepper id>:<base64url>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    pepper: PepperId,
    mac: [u8; 32],
}

impl Seal {
    /// Makes a seal under the pepper of the stored hash. `None`: there is no pepper of that id.
    pub fn make(peppers: &Peppers, sealed: &Sealed<'_>) -> Option<Self> {
        let pepper = sealed.hash.pepper;
        let mac = mac(peppers, &pepper, sealed)?;
        Some(Self { pepper, mac })
    }

    /// The pepper that keys it.
    pub fn pepper(&self) -> &PepperId {
        &self.pepper
    }

    /// Parses an annotation. `None`: it is not of that form.
    pub fn parse(text: &str) -> Option<Self> {
        let (pepper, mac) = text.split_once(':')?;
        let mac = URL_SAFE_NO_PAD.decode(mac).ok()?.try_into().ok()?;
        Some(Self { pepper: PepperId::parse(pepper)?, mac })
    }

    /// Whether it authenticates these facts, in constant time.
    pub fn verify(&self, peppers: &Peppers, sealed: &Sealed<'_>) -> bool {
        mac(peppers, &self.pepper, sealed).is_some_and(|made| made.ct_eq(&self.mac).into())
    }
}

fn mac(peppers: &Peppers, pepper: &PepperId, sealed: &Sealed<'_>) -> Option<[u8; 32]> {
    let Sealed { namespace, name, uid, token_id, issued_at, version, key_id, scopes, revoked, hash } = sealed;
    let (version, revoked) = (version.to_be_bytes(), [u8::from(*revoked)]);
    let [namespace, name, uid, token_id, issued_at, key_id] =
        [namespace, name, uid, token_id, issued_at, key_id].map(|field| field.as_bytes());
    let mut fields = vec![namespace, name, uid, token_id, issued_at, &version, key_id];
    if let Some(scopes) = scopes {
        fields.extend([scopes.as_bytes(), &revoked]);
    }
    fields.push(&hash.mac);
    peppers.mac(pepper, if scopes.is_some() { SEAL_DOMAIN } else { SEAL_DOMAIN_V1 }, &fields)
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.pepper.as_str(), URL_SAFE_NO_PAD.encode(self.mac))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peppers(byte: u8) -> Peppers {
        Peppers::from_data(&Peppers::new_data(&[byte; 32])).expect("peppers")
    }

    fn hash(peppers: &Peppers, byte: u8) -> Hash {
        Hash { pepper: peppers.current(), mac: [byte; 32] }
    }

    fn sealed(hash: &Hash) -> Sealed<'_> {
        Sealed {
            namespace: "ns",
            name: "n",
            uid: "u",
            token_id: "tok_1",
            issued_at: "t",
            version: 1,
            key_id: "k",
            scopes: Some("a:b c:d"),
            revoked: false,
            hash,
        }
    }

    #[test]
    fn a_seal_authenticates_every_field() {
        let peppers = peppers(1);
        let (hash, other_hash) = (hash(&peppers, 1), hash(&peppers, 2));
        let sealed = sealed(&hash);
        let seal =
            Seal::parse(&Seal::make(&peppers, &sealed).expect("seal").to_string()).expect("stored form");
        assert!(seal.verify(&peppers, &sealed));
        for other in [
            Sealed { namespace: "other", ..sealed },
            Sealed { name: "other", ..sealed },
            Sealed { uid: "other", ..sealed },
            Sealed { token_id: "other", ..sealed },
            Sealed { issued_at: "other", ..sealed },
            Sealed { version: 2, ..sealed },
            Sealed { key_id: "other", ..sealed },
            Sealed { scopes: Some("a:b"), ..sealed },
            Sealed { scopes: None, ..sealed },
            Sealed { revoked: true, ..sealed },
            Sealed { hash: &other_hash, ..sealed },
            Sealed { namespace: "n", name: "sn", ..sealed },
        ] {
            assert!(!seal.verify(&peppers, &other), "{other:?}");
        }
    }

    #[test]
    fn a_seal_of_another_pepper_does_not_verify() {
        let (one, other) = (peppers(1), peppers(2));
        let hash = hash(&other, 1);
        let seal = Seal::make(&other, &sealed(&hash)).expect("seal");
        assert!(!seal.verify(&one, &sealed(&hash)));
        // Nor does the name of a pepper make it the same.
        let renamed = Seal { pepper: one.current(), ..seal };
        assert!(!renamed.verify(&one, &sealed(&hash)));
        assert_eq!(Seal::parse("nonsense"), None);
        assert_eq!(Seal::parse("p1:AAAA"), None);
    }
}
