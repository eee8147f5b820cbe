//! An entry of the index as bytes, for the checkpoint of a verifier. Only the process that wrote it, and those of its build that
//! come after it, read it.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use triomphe::ThinArc;

use super::{Entry, Head, Indexed, Limits, ScopePool, Standing, Version};
use crate::lock::Memo;
use crate::token::KeyId;
use crate::tombstone::{TokenIdentity, Tombstones};

/// The number of this form. Another one for each change of what is packed, or of what it means.
pub const FORM: u32 = 1;

/// A token with those of its versions that the index has.
#[derive(Debug, Serialize, Deserialize)]
struct Packed<'a> {
    /// The bytes of the entry.
    bytes: &'a [u8],
    token_id_at: u16,
    facets: u16,
    versions: u8,
    standing: Standing,
    expires_at: i64,
    created_at: u32,
    #[serde(borrow)]
    indexed: Vec<PackedVersion<'a>>,
    limits: Option<Limits>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PackedVersion<'a> {
    key_id: &'a str,
    hash: [u8; 32],
    ends_at: i64,
    granted: &'a str,
    /// `None`: what is granted.
    issued: Option<&'a str>,
}

/// Bytes that are no entry, or an entry that can't be written as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("it has something that is no token of this build")]
pub struct NotAnEntry;

impl Entry {
    /// Appends this token and its versions in the index to `bytes`.
    pub fn pack(&self, versions: &[(KeyId, Version)], bytes: Vec<u8>) -> Result<Vec<u8>, NotAnEntry> {
        let head = self.head();
        let indexed = versions.iter().map(|(key_id, version)| PackedVersion {
            key_id: key_id.as_str(),
            hash: version.hash,
            ends_at: version.ends_at,
            granted: version.scopes.as_str(),
            issued: version.scopes.issued_otherwise(),
        });
        let packed = Packed {
            bytes: &self.0.slice,
            token_id_at: head.token_id_at,
            facets: head.facets,
            versions: head.versions,
            standing: head.standing,
            expires_at: head.expires_at,
            created_at: head.created_at,
            indexed: indexed.collect(),
            limits: head.limits.as_deref().cloned(),
        };
        postcard::to_extend(&packed, bytes).map_err(|_| NotAnEntry)
    }

    /// The token that is packed at the beginning of `bytes`, and what follows it. What is among the tombstones stays revoked.
    pub fn unpack<'b>(
        bytes: &'b [u8],
        pool: &mut ScopePool,
        tombstones: &Tombstones,
    ) -> Result<(Indexed, &'b [u8]), NotAnEntry> {
        let (packed, rest) = postcard::take_from_bytes::<Packed<'_>>(bytes).map_err(|_| NotAnEntry)?;
        let entry = Self::of_packed(&packed, packed.standing);
        let entry = match tombstones.has_token(entry.identity()) {
            true => Self::of_packed(&packed, Standing::Revoked),
            false => entry,
        };
        let version = |version: PackedVersion<'_>| {
            let key_id = KeyId::parse(version.key_id).map_err(|_| NotAnEntry)?;
            let is_revoked = tombstones.has_version(entry.identity(), version.key_id);
            let version = Version {
                entry: entry.clone(),
                hash: version.hash,
                ends_at: if is_revoked { i64::MIN } else { version.ends_at },
                scopes: pool.intern(version.granted.into(), version.issued.map(Into::into)),
                held: Memo::default(),
            };
            Ok((key_id, version))
        };
        let versions = packed.indexed.into_iter().map(version).collect::<Result<_, _>>()?;
        Ok((Indexed { entry, versions, lacks_pepper: false }, rest))
    }

    fn of_packed(packed: &Packed<'_>, standing: Standing) -> Self {
        let head = Head {
            limits: packed.limits.clone().map(Box::new),
            expires_at: packed.expires_at,
            seen_in: 0,
            created_at: packed.created_at,
            token_id_at: packed.token_id_at,
            facets: packed.facets,
            versions: packed.versions,
            standing,
        };
        Self(ThinArc::from_header_and_slice(head, packed.bytes))
    }

    fn identity(&self) -> TokenIdentity<'_> {
        let (namespace, name) = self.object();
        TokenIdentity { namespace, name, token_id: self.token_id() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::WireToken;
    use crate::token::Peppers;

    fn entry(name: &str) -> Indexed {
        let text = format!(
            r#"{{"metadata":{{"namespace":"ns","name":"{name}","labels":{{"a":"b"}},"creationTimestamp":"2026-01-01T00:00:00Z"}},
                "spec":{{"scopes":["a:b"],"audiences":["shop"],"owner":{{"team":"t"}},"constraints":{{"cidrs":["10.0.0.0/8"]}}}},
                "status":{{"tokenId":"tok_1","versions":[
                    {{"version":1,"keyId":"AAAAAAAAAAAA","hash":"","state":"Active","issuedAt":"2026-01-01T00:00:00Z"}}]}}}}"#
        );
        let token: WireToken = serde_json::from_str(&text).expect("an ApiToken");
        let peppers = Peppers::from_data(&Peppers::new_data(&[1; 32])).expect("peppers");
        Entry::of(&token, &peppers, 7, &mut ScopePool::default(), &Tombstones::default())
    }

    /// What identifies a token, and what locks compare, is the same; in which list it was seen, is not known.
    #[test]
    fn an_entry_is_the_same_once_it_is_unpacked() {
        let Indexed { entry, .. } = entry("name");
        let packed = entry.pack(&[], b"before".to_vec()).expect("packed");
        let mut packed = packed.strip_prefix(b"before").expect("what was there").to_vec();
        packed.extend(b"after");
        let (unpacked, rest) =
            Entry::unpack(&packed, &mut ScopePool::default(), &Tombstones::default()).expect("an entry");
        let unpacked = unpacked.entry;
        assert_eq!(rest, b"after");
        assert_eq!((unpacked.object(), unpacked.token_id()), (("ns", "name"), "tok_1"));
        assert!(unpacked.key_ids().eq(entry.key_ids()) && unpacked.key_ids().count() == 1);
        assert_eq!(unpacked.subject_of_locks().facets.0, entry.subject_of_locks().facets.0);
        assert_eq!(unpacked.subject_of_locks().facets.0.len(), 2);
        assert_eq!(unpacked.subject_of_locks().created_at, entry.subject_of_locks().created_at);
        assert_eq!((unpacked.limits(), unpacked.standing()), (entry.limits(), entry.standing()));
        assert_eq!((unpacked.expires_at(), unpacked.seen_in()), (entry.expires_at(), 0));
    }

    /// Though it be packed as one that works.
    #[test]
    fn what_was_revoked_stays_so() {
        let Indexed { entry, .. } = entry("name");
        let packed = entry.pack(&[], Vec::new()).expect("packed");
        let (of_it, of_another) = (Tombstones::default(), Tombstones::default());
        of_it.extend([entry.identity().token()]);
        of_another.extend([TokenIdentity { name: "other", ..entry.identity() }.token()]);
        for (tombstones, expected) in [(of_it, Standing::Revoked), (of_another, Standing::Good)] {
            let unpacked = Entry::unpack(&packed, &mut ScopePool::default(), &tombstones).expect("an entry");
            assert_eq!(unpacked.0.entry.standing(), expected);
        }
    }

    /// Where this fails, another build could not read what this one wrote: give the form another number.
    #[test]
    fn the_form_is_what_its_number_says() {
        let Indexed { entry, .. } = entry("name");
        let packed = entry.pack(&[], Vec::new()).expect("packed");
        let after_bytes = &packed[1 + usize::from(packed[0])..];
        let expected = "07 02 01 00 feffffffffffffffff01 80f2d6ca06 00 01 01 04 73686f70 01 00 0a000000 08";
        let hex: String = after_bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((FORM, hex), (1, expected.replace(' ', "")));
    }

    #[test]
    fn no_bytes_panic() {
        let Indexed { entry, .. } = entry("name");
        let packed = entry.pack(&[], Vec::new()).expect("packed");
        for at in 0..packed.len() {
            assert_eq!(
                Entry::unpack(&packed[..at], &mut ScopePool::default(), &Tombstones::default()).err(),
                Some(NotAnEntry),
                "{at}"
            );
            for bit in 0..8 {
                let mut other = packed.clone();
                other[at] ^= 1 << bit;
                if let Ok((indexed, _)) =
                    Entry::unpack(&other, &mut ScopePool::default(), &Tombstones::default())
                {
                    let entry = indexed.entry;
                    let _ =
                        (entry.object(), entry.token_id(), entry.key_ids().count(), entry.subject_of_locks());
                }
            }
        }
    }
}
