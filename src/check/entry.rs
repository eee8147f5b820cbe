//! What a check needs to know of a token, in little memory: no whole object is kept.

use ipnet::IpNet;
use jiff::Timestamp;

use crate::crd::{ApiToken, TokenVersion, VersionState};
use crate::token::{Hash, KeyId};

/// A token, as checks know it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The ApiToken's namespace.
    pub namespace: Box<str>,
    /// The ApiToken's name.
    pub name: Box<str>,
    /// `status.tokenId`.
    pub token_id: Box<str>,
    /// The scopes of the spec, separated by spaces: one allocation instead of one each.
    pub(super) scopes: Box<str>,
    pub(super) audiences: Box<[Box<str>]>,
    pub(super) networks: Box<[IpNet]>,
    pub(super) revoked: bool,
    pub(super) suspended: bool,
    /// Instants in milliseconds since the epoch; the extremes stand for never.
    pub(super) expires_at: i64,
    pub(super) not_before: i64,
    pub(super) versions: Box<[Version]>,
}

/// One secret of a token that may work.
#[derive(Clone, Debug, PartialEq)]
pub struct Version {
    /// Its key id.
    pub key_id: KeyId,
    pub(super) hash: Hash,
    pub(super) issued_at: i64,
    pub(super) retire_at: i64,
    /// The scopes with which it was issued; `None` where they are the spec's.
    pub(super) scopes: Option<Box<str>>,
}

impl Entry {
    /// Takes from an ApiToken what checks need. What can't be read is left out: that denies.
    pub fn of(token: &ApiToken) -> Self {
        let text = |value: &Option<String>| value.as_deref().unwrap_or_default().into();
        let (spec, status) = (&token.spec, token.status.as_ref());
        let scopes: Box<str> = spec.scopes.join(" ").into();
        let versions = status.map_or(&[][..], |status| &status.versions);
        let versions = versions.iter().filter_map(|version| Version::of(version, &scopes)).collect();
        let cidrs = spec
            .constraints
            .as_ref()
            .and_then(|constraints| constraints.cidrs.as_deref())
            .unwrap_or_default();
        let mut networks: Box<[IpNet]> = cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect();
        if networks.is_empty() && !cidrs.is_empty() {
            // Networks that can't be read must not mean any network: no client comes from this one.
            networks = Box::new([IpNet::from(ipnet::Ipv4Net::from(std::net::Ipv4Addr::UNSPECIFIED))]);
        }
        Self {
            namespace: text(&token.metadata.namespace),
            name: text(&token.metadata.name),
            token_id: status.map(|status| text(&status.token_id)).unwrap_or_default(),
            scopes,
            audiences: spec.audiences.iter().flatten().map(|audience| audience.as_str().into()).collect(),
            networks,
            // From the request on, whatever the controller has made of it yet.
            // A deletion revokes too, also one that waits for somebody's finalizer.
            revoked: spec.revoked == Some(true)
                || status.is_some_and(|status| status.revocation.is_some())
                || token.metadata.deletion_timestamp.is_some(),
            suspended: spec.suspend == Some(true),
            expires_at: millisecond(spec.expires_at).unwrap_or(i64::MAX),
            not_before: spec.rotation.as_ref().and_then(|r| r.not_before).map_or(i64::MIN, next_millisecond),
            versions,
        }
    }

    /// The key ids under which this token is looked up.
    pub fn key_ids(&self) -> impl Iterator<Item = KeyId> {
        self.versions.iter().map(|version| version.key_id)
    }

    /// The scopes of the spec.
    pub(super) fn scopes(&self) -> impl Iterator<Item = &str> {
        self.scopes.split_ascii_whitespace()
    }
}

impl Version {
    fn of(version: &TokenVersion, spec_scopes: &str) -> Option<Self> {
        let scopes = version.scopes.join(" ");
        let retire_at = match version.state {
            VersionState::Pending | VersionState::Active => {
                millisecond(version.retire_at).unwrap_or(i64::MAX)
            }
            // Without an end it has none left.
            VersionState::Retiring => millisecond(version.retire_at).unwrap_or(i64::MIN),
            // Kept, so that the code can say what became of it.
            VersionState::Retired | VersionState::Revoked => i64::MIN,
        };
        Some(Self {
            key_id: KeyId::parse(&version.key_id).ok()?,
            hash: Hash::parse(&version.hash)?,
            issued_at: millisecond(Some(version.issued_at))?,
            retire_at,
            scopes: (scopes != spec_scopes).then(|| scopes.into()),
        })
    }

    /// The scopes with which it was issued.
    pub(super) fn scopes<'a>(&'a self, entry: &'a Entry) -> impl Iterator<Item = &'a str> {
        self.scopes.as_deref().unwrap_or(&entry.scopes).split_ascii_whitespace()
    }
}

/// The first whole millisecond that is not before an instant: rounded down, a cut would miss what was issued in it.
fn next_millisecond(instant: Timestamp) -> i64 {
    let before = instant.as_millisecond();
    before.saturating_add(i64::from(instant.as_nanosecond() > i128::from(before) * 1_000_000))
}

fn millisecond(instant: Option<Timestamp>) -> Option<i64> {
    instant.map(Timestamp::as_millisecond)
}
