//! The MAC of a version: what its secret may do is what the controller recorded.
//!
//! The token hash binds a plaintext to its ApiToken, and no more. Whoever writes a status could still give an issued
//! secret other scopes, a later issue or a longer life. So each version carries an HMAC over those facts, and
//! without a valid one it is refused. It does not say that the facts are the latest: an earlier status of the very object
//! verifies, until the controller has replaced it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use subtle::ConstantTimeEq;

use super::Peppers;
use super::hash::Hash;

const DOMAIN: &[u8] = b"tokenward/version/v1";

/// The ApiToken that a version belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    /// A recreated ApiToken of the same name is another one.
    pub uid: &'a str,
    /// The public id of the ApiToken, `status.tokenId`.
    pub token_id: &'a str,
}

/// The facts of a version that a check depends on.
#[derive(Clone, Copy, Debug)]
pub struct VersionFacts<'a> {
    pub owner: Owner<'a>,
    pub version: i64,
    pub key_id: &'a str,
    /// The stored hash of the token. The MAC is made under the pepper of this hash.
    pub hash: &'a Hash,
    /// The name of the state in the API.
    pub state: &'a str,
    /// The scopes with which it was issued.
    pub scopes: &'a [String],
    pub issued_at: Timestamp,
    pub retire_at: Option<Timestamp>,
}

/// The result of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacCheck {
    Valid,
    /// It is missing, or was not made for these facts.
    Invalid,
    /// The pepper is not known here, so nobody can tell.
    UnknownPepper,
}

impl VersionFacts<'_> {
    /// The MAC, as `status.versions[].mac` has it: base64url. `None`: the pepper is not known.
    pub fn mac(&self, peppers: &Peppers) -> Option<String> {
        Some(URL_SAFE_NO_PAD.encode(self.bytes(peppers)?))
    }

    /// Verifies a stored MAC, in constant time.
    pub fn verify(&self, peppers: &Peppers, mac: &str) -> MacCheck {
        let Some(expected) = self.bytes(peppers) else { return MacCheck::UnknownPepper };
        let stored = URL_SAFE_NO_PAD.decode(mac).unwrap_or_default();
        if expected.ct_eq(&*stored).into() { MacCheck::Valid } else { MacCheck::Invalid }
    }

    fn bytes(&self, peppers: &Peppers) -> Option<[u8; 32]> {
        let Owner { namespace, name, uid, token_id } = self.owner;
        let nanoseconds = |instant: Timestamp| instant.as_nanosecond().to_be_bytes();
        let retire_at = self.retire_at.map(nanoseconds);
        peppers.mac(
            &self.hash.pepper,
            DOMAIN,
            &[
                namespace.as_bytes(),
                name.as_bytes(),
                uid.as_bytes(),
                token_id.as_bytes(),
                &self.version.to_be_bytes(),
                self.key_id.as_bytes(),
                &self.hash.mac,
                self.state.as_bytes(),
                // No scope contains a space.
                self.scopes.join(" ").as_bytes(),
                &nanoseconds(self.issued_at),
                retire_at.as_ref().map_or(&[], |bytes| &bytes[..]),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peppers(byte: u8) -> Peppers {
        Peppers::from_data(&Peppers::new_data(&[byte; 32])).expect("peppers")
    }

    #[test]
    fn a_mac_authenticates_every_fact() {
        let peppers = peppers(1);
        let hash = |byte| Hash { pepper: peppers.current(), mac: [byte; 32] };
        let at = |second| Timestamp::from_second(second).expect("an instant");
        let (one, other) = (hash(1), hash(2));
        let scopes = |list: &[&str]| list.iter().map(|scope| (*scope).to_owned()).collect::<Vec<_>>();
        let (issued, fewer, more) =
            (scopes(&["a:b", "c:d"]), scopes(&["a:b"]), scopes(&["a:b", "c:d", "e:f"]));
        let owner = Owner { namespace: "ns", name: "n", uid: "u", token_id: "tok_1" };
        let facts = VersionFacts {
            owner,
            version: 1,
            key_id: "k",
            hash: &one,
            state: "Active",
            scopes: &issued,
            issued_at: at(1),
            retire_at: None,
        };
        let mac = facts.mac(&peppers).expect("a MAC");
        assert_eq!(facts.verify(&peppers, &mac), MacCheck::Valid);
        for facts in [
            VersionFacts { owner: Owner { namespace: "other", ..owner }, ..facts },
            VersionFacts { owner: Owner { name: "other", ..owner }, ..facts },
            VersionFacts { owner: Owner { uid: "other", ..owner }, ..facts },
            VersionFacts { owner: Owner { token_id: "other", ..owner }, ..facts },
            VersionFacts { owner: Owner { namespace: "n", name: "sn", ..owner }, ..facts },
            VersionFacts { version: 2, ..facts },
            VersionFacts { key_id: "other", ..facts },
            VersionFacts { hash: &other, ..facts },
            VersionFacts { state: "Retiring", ..facts },
            VersionFacts { scopes: &fewer, ..facts },
            VersionFacts { scopes: &more, ..facts },
            VersionFacts { issued_at: at(2), ..facts },
            VersionFacts { retire_at: Some(at(9)), ..facts },
        ] {
            assert_eq!(facts.verify(&peppers, &mac), MacCheck::Invalid, "{facts:?}");
        }
        for invalid in ["", "!", "AAAA", &mac[1..], &format!("{mac}A")] {
            assert_eq!(facts.verify(&peppers, invalid), MacCheck::Invalid, "{invalid}");
        }
    }

    #[test]
    fn a_pepper_that_is_not_there_is_not_a_wrong_mac() {
        let (here, elsewhere) = (peppers(1), peppers(2));
        let hash = Hash { pepper: elsewhere.current(), mac: [1; 32] };
        let facts = VersionFacts {
            owner: Owner { namespace: "ns", name: "n", uid: "u", token_id: "tok_1" },
            version: 1,
            key_id: "k",
            hash: &hash,
            state: "Active",
            scopes: &[],
            issued_at: Timestamp::UNIX_EPOCH,
            retire_at: None,
        };
        let mac = facts.mac(&elsewhere).expect("a MAC");
        assert_eq!(facts.verify(&elsewhere, &mac), MacCheck::Valid);
        assert_eq!(facts.verify(&here, &mac), MacCheck::UnknownPepper);
        assert_eq!(facts.mac(&here), None);
    }
}
