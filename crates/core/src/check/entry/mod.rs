//! An entry of the verifier's index: what a check needs of a token, in little memory.
//!
//! A verifier has up to millions of these. So a token is one allocation, to which its versions point. Its strings are
//! stored in it end to end, lists of scopes are interned, and limits, which few tokens have, are boxed.

use std::fmt;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use triomphe::ThinArc;

pub mod packed;
pub mod scopes;
pub mod wire;

use self::scopes::{ScopePool, Scopes};
use self::wire::WireToken;
use crate::crd::{LockAction, VersionState};
use crate::lock::{Facet, Facets, Locks, Memo, Subject, SubjectVersion, facets};
use crate::token::scope::granted_by_both;
use crate::token::{Hash, KeyId, MacCheck, Owner, Peppers, VersionFacts};
use crate::tombstone::{TokenIdentity, Tombstones};

/// The record of a version in the bytes of its token: the key id, and the second of its issue.
const KEY_ID: usize = 12;
const RECORD: usize = KEY_ID + size_of::<u32>();

/// A token in the index. A clone is another handle to the same token.
///
/// The bytes are the namespace, a slash, the name, `status.tokenId`, what locks compare of labels and owner, and for each
/// version its key id and when it was issued, in seconds since the epoch.
#[derive(Clone)]
pub struct Entry(ThinArc<Head, u8>);

/// The fixed-size part, before the strings.
struct Head {
    limits: Option<Box<Limits>>,
    /// In milliseconds since the epoch; `i64::MAX` stands for never.
    expires_at: i64,
    seen_in: u32,
    /// In seconds since the epoch.
    created_at: u32,
    token_id_at: u16,
    facets: u16,
    versions: u8,
    standing: Standing,
}

/// Whether a token may work at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Standing {
    Good,
    Suspended,
    Revoked,
}

/// The constraints and audiences of a token. An empty list sets no limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Limits {
    pub(super) audiences: Box<[Box<str>]>,
    pub(super) networks: Box<[IpNet]>,
}

/// A version of a token that may work.
#[derive(Clone, Debug)]
pub struct Version {
    /// The token that it is a version of.
    pub entry: Entry,
    /// The stored hash, without its pepper id.
    pub(super) hash: [u8; 32],
    /// When it stops working, by `retireAt` or `rotation.notBefore`, in milliseconds since the epoch.
    pub(super) ends_at: i64,
    /// The scopes that both the version and the spec grant, and those that it was issued with.
    pub(super) scopes: Scopes,
    held: Memo,
}

/// An ApiToken as the index has it.
#[derive(Debug)]
pub struct Indexed {
    pub entry: Entry,
    /// Its versions by key id. One that can't be parsed, or whose MAC is not valid, is left out, which denies it.
    pub versions: Vec<(KeyId, Version)>,
    /// Whether one was left out because its pepper is not known: with that pepper, it may be valid.
    pub lacks_pepper: bool,
}

impl Entry {
    /// Builds the entry of an ApiToken. `seen_in` numbers the list of objects in which the feed saw the token. What is revoked is
    /// noted in `tombstones`, and what is among them stays so.
    pub fn of(
        token: &WireToken,
        peppers: &Peppers,
        seen_in: u32,
        pool: &mut ScopePool,
        tombstones: &Tombstones,
    ) -> Indexed {
        let status = token.status.as_ref();
        let versions = status.map_or(&[][..], |status| &status.versions);
        let read = versions.iter().filter_map(|version| {
            Some((KeyId::parse(&version.key_id).ok()?, version.issued_at.parse::<Timestamp>().ok()?, version))
        });
        // The CRD admits 8.
        let read: Vec<_> = read.take(usize::from(u8::MAX)).collect();
        let token_id = status.and_then(|status| status.token_id.as_deref()).unwrap_or_default();
        let mut bytes = format!("{}/{}", token.metadata.namespace, token.metadata.name).into_bytes();
        let token_id_at = bytes.len();
        bytes.extend(token_id.bytes());
        let facets = facets(token.metadata.labels.as_ref(), token.spec.owner.as_ref());
        // An object of the API server has room for no more.
        let facets = facets.get(..usize::from(u16::MAX)).unwrap_or(&facets);
        bytes.extend(facets.as_flattened());
        for (key_id, issued_at, _) in &read {
            bytes.extend(key_id.as_str().bytes());
            bytes.extend(u32::try_from(issued_at.as_second()).unwrap_or_default().to_be_bytes());
        }
        let identity =
            TokenIdentity { namespace: &token.metadata.namespace, name: &token.metadata.name, token_id };
        let head = Head {
            limits: Limits::of(token),
            expires_at: millisecond(token.spec.expires_at).unwrap_or(i64::MAX),
            seen_in,
            created_at: created_at(token),
            facets: u16::try_from(facets.len()).unwrap_or(u16::MAX),
            // Kubernetes admits names of 253 characters.
            token_id_at: u16::try_from(token_id_at).unwrap_or(u16::MAX),
            versions: u8::try_from(read.len()).unwrap_or(u8::MAX),
            standing: Standing::of(token, identity, tombstones),
        };
        let entry = Self(ThinArc::from_header_and_slice(head, &bytes));
        // What the recorded one has ended stays ended, whatever the spec says by now.
        let recorded = token.status.as_ref().and_then(|status| status.rotation.as_ref());
        let cuts = [token.spec.rotation.as_ref(), recorded].map(|rotation| {
            rotation.and_then(|rotation| rotation.not_before).map_or(i64::MIN, next_millisecond)
        });
        let owner = Owner {
            namespace: &token.metadata.namespace,
            name: &token.metadata.name,
            uid: &token.metadata.uid,
            token_id,
        };
        let mut lacks_pepper = false;
        let versions = read.into_iter().filter_map(|(key_id, issued_at, version)| {
            let (hash, state) = (Hash::parse(&version.hash)?, version.state.known()?);
            let facts = VersionFacts {
                owner,
                version: version.version,
                key_id: &version.key_id,
                hash: &hash,
                state: state.as_str(),
                scopes: &version.scopes,
                issued_at,
                retire_at: version.retire_at,
            };
            match facts.verify(peppers, &version.mac) {
                MacCheck::Valid => {}
                MacCheck::Invalid => return None,
                MacCheck::UnknownPepper => {
                    lacks_pepper = true;
                    return None;
                }
            }
            let state = match state {
                VersionState::Revoked => {
                    tombstones.extend([identity.version(&version.key_id)]);
                    state
                }
                _ if tombstones.has_version(identity, &version.key_id) => VersionState::Revoked,
                _ => state,
            };
            let version = Version {
                entry: entry.clone(),
                hash: hash.mac,
                ends_at: ends_at(state, version.retire_at, issued_at, &cuts),
                scopes: pool.share(&granted_by_both(&version.scopes, &token.spec.scopes), &version.scopes),
                held: Memo::default(),
            };
            Some((key_id, version))
        });
        let versions = versions.collect();
        Indexed { entry, versions, lacks_pepper }
    }

    /// `<namespace>/<name>` of the ApiToken.
    pub fn subject(&self) -> &str {
        self.text(0..usize::from(self.head().token_id_at))
    }

    /// The namespace of the ApiToken.
    pub fn namespace(&self) -> &str {
        self.object().0
    }

    /// The name of the ApiToken.
    pub fn name(&self) -> &str {
        self.object().1
    }

    /// Namespace and name of the ApiToken.
    pub fn object(&self) -> (&str, &str) {
        self.subject().split_once('/').unwrap_or_default()
    }

    /// `status.tokenId` of the ApiToken. Empty if it has none.
    pub fn token_id(&self) -> &str {
        self.text(usize::from(self.head().token_id_at)..self.facets_at())
    }

    /// The key ids under which the index has this token.
    pub fn key_ids(&self) -> impl Iterator<Item = KeyId> {
        self.records().map(|(key_id, _)| key_id)
    }

    /// When the version of a key id was issued, to the second.
    pub fn issued_at(&self, key_id: KeyId) -> Option<Timestamp> {
        let (_, issued_at) = self.records().find(|(id, _)| *id == key_id)?;
        Timestamp::from_second(issued_at.into()).ok()
    }

    /// Whether both are handles of one entry.
    pub fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self.head(), other.head())
    }

    /// The number of the list in which the feed saw it, as given to [`Self::of`].
    pub fn seen_in(&self) -> u32 {
        self.head().seen_in
    }

    pub(super) fn limits(&self) -> Option<&Limits> {
        self.head().limits.as_deref()
    }

    pub(super) fn standing(&self) -> Standing {
        self.head().standing
    }

    pub(super) fn expires_at(&self) -> i64 {
        self.head().expires_at
    }

    fn head(&self) -> &Head {
        &self.0.header.header
    }

    fn records_at(&self) -> usize {
        self.0.slice.len().saturating_sub(RECORD * usize::from(self.head().versions))
    }

    fn facets_at(&self) -> usize {
        self.records_at().saturating_sub(size_of::<Facet>() * usize::from(self.head().facets))
    }

    fn facets(&self) -> Facets<'_> {
        let bytes = self.0.slice.get(self.facets_at()..self.records_at()).unwrap_or_default();
        Facets(bytes.as_chunks().0)
    }

    /// The token as locks see it.
    fn subject_of_locks(&self) -> Subject<'_> {
        let (namespace, name) = self.object();
        let created_at = self.head().created_at.into();
        Subject { namespace, name, token_id: self.token_id(), created_at, facets: self.facets() }
    }

    fn records(&self) -> impl Iterator<Item = (KeyId, u32)> {
        let (records, _) = self.0.slice.get(self.records_at()..).unwrap_or_default().as_chunks::<RECORD>();
        records.iter().filter_map(|record| {
            let (key_id, issued_at) = record.split_at(KEY_ID);
            let key_id = KeyId::parse(std::str::from_utf8(key_id).ok()?).ok()?;
            Some((key_id, u32::from_be_bytes(issued_at.try_into().ok()?)))
        })
    }

    fn text(&self, range: std::ops::Range<usize>) -> &str {
        // All ranges are those of strings that were written here.
        self.0.slice.get(range).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

impl Version {
    /// What the locks do to it.
    pub(super) fn held_by(&self, locks: &Locks, key_id: KeyId) -> Option<LockAction> {
        if locks.is_empty() {
            return None;
        }
        self.held.recall(locks, || {
            // One that is older than all locks, should it have none.
            let issued_at = self.entry.issued_at(key_id).map_or(i64::MIN, Timestamp::as_second);
            let version = SubjectVersion { key_id, issued_at, scopes: self.scopes.issued() };
            Some(locks.on(&self.entry.subject_of_locks(), &version)?.action())
        })
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({})", self.subject())
    }
}

impl Standing {
    /// A revocation is effective from the request on, even before the controller has handled it, and for as long as anybody
    /// remembers it. A deletion revokes too, also while it waits for a finalizer.
    fn of(token: &WireToken, identity: TokenIdentity<'_>, tombstones: &Tombstones) -> Self {
        let recorded = token.status.as_ref().is_some_and(|status| status.revocation.is_some());
        let revoked = token.spec.revoked == Some(true) || recorded;
        // Without an id there is no secret yet that could come back.
        if revoked && !identity.token_id.is_empty() {
            tombstones.extend([identity.token()]);
        }
        if revoked || token.metadata.deletion_timestamp.is_some() || tombstones.has_token(identity) {
            Self::Revoked
        } else if token.spec.suspend == Some(true) {
            Self::Suspended
        } else {
            Self::Good
        }
    }
}

impl Limits {
    fn of(token: &WireToken) -> Option<Box<Self>> {
        let audiences: Box<[Box<str>]> =
            token.spec.audiences.iter().flatten().map(|audience| audience.as_str().into()).collect();
        let cidrs = token.spec.constraints.as_ref().and_then(|constraints| constraints.cidrs.as_deref());
        let cidrs = cidrs.unwrap_or_default();
        let mut networks: Box<[IpNet]> = cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect();
        if networks.is_empty() && !cidrs.is_empty() {
            // Networks that can't be parsed must not mean any network. No client has this address.
            networks = Box::new([IpNet::from(ipnet::Ipv4Net::from(std::net::Ipv4Addr::UNSPECIFIED))]);
        }
        let limits = !audiences.is_empty() || !networks.is_empty();
        limits.then(|| Box::new(Self { audiences, networks }))
    }
}

/// In seconds since the epoch. An object without it is taken for old, so that locks reach it.
fn created_at(token: &WireToken) -> u32 {
    let created_at = token.metadata.creation_timestamp.map(Timestamp::as_second);
    created_at.and_then(|second| u32::try_from(second).ok()).unwrap_or_default()
}

/// When a version stops working: at `retireAt`, or at a `rotation.notBefore` after its issue, whichever is first.
fn ends_at(state: VersionState, retire_at: Option<Timestamp>, issued_at: Timestamp, cuts: &[i64]) -> i64 {
    let retires_at = match state {
        VersionState::Pending | VersionState::Active => millisecond(retire_at).unwrap_or(i64::MAX),
        // Without `retireAt` the overlap is over.
        VersionState::Retiring => millisecond(retire_at).unwrap_or(i64::MIN),
        // In the index, so that a check can deny with `RETIRED`.
        VersionState::Retired | VersionState::Revoked => i64::MIN,
    };
    let issued_at = issued_at.as_millisecond();
    cuts.iter().copied().filter(|cut| issued_at < *cut).chain([retires_at]).min().unwrap_or(retires_at)
}

/// The first whole millisecond that is not before an instant: rounded down, a cut would miss what was issued in it.
fn next_millisecond(instant: Timestamp) -> i64 {
    let before = instant.as_millisecond();
    before.saturating_add(i64::from(instant.as_nanosecond() > i128::from(before) * 1_000_000))
}

fn millisecond(instant: Option<Timestamp>) -> Option<i64> {
    instant.map(Timestamp::as_millisecond)
}
