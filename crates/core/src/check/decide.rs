//! Decides whether a presented token is valid for a request. Nothing else allows one.

use std::net::IpAddr;

use jiff::Timestamp;

use super::entry::{Limits, Standing};
use super::{Code, Entry, Version};
use crate::crd::LockAction;
use crate::lock::Locks;
use crate::token::scope::any_covers;
use crate::token::{KeyId, Peppers, Token};

/// The request to check a token.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The token that a client presented.
    pub token: Token<'a>,
    /// The required scopes. The token must have all of them.
    pub scopes: &'a [&'a str],
    /// The service that received the token.
    pub audience: Audience<'a>,
    /// The address of the client that presented the token, if known.
    pub client: Option<IpAddr>,
}

/// The service that received a token.
#[derive(Clone, Copy, Debug)]
pub enum Audience<'a> {
    /// This one.
    Is(&'a str),
    /// Nobody says. A token with audiences is denied: whoever does not identify itself with one of them must reject it
    /// (RFC 7519 section 4.1.3).
    Unnamed,
    /// The caller compares the audiences itself.
    LeftToCaller,
}

impl<'a> Audience<'a> {
    /// The service that the caller names, if it names one.
    pub fn of(named: Option<&'a str>) -> Self {
        named.map_or(Self::Unnamed, Self::Is)
    }
}

/// Whether the token is valid for a request.
#[derive(Clone, Copy, Debug)]
pub enum Decision<'e> {
    /// The token is valid, and satisfies every requirement of the request.
    Allow(Identity<'e>),
    /// The first rule that denied the request.
    Deny(Code),
}

/// The token and version that a presented text was verified against.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'e> {
    /// The ApiToken, as the index knows it.
    pub entry: &'e Entry,
    /// The version of it that was presented.
    pub version: &'e Version,
    /// The key id of that version.
    pub key_id: KeyId,
}

impl<'e> Identity<'e> {
    /// The scopes that both the version and the spec grant, separated by spaces.
    pub fn scopes(&self) -> &'e str {
        self.version.scopes.as_str()
    }

    /// The scopes of [`Self::scopes`], one by one.
    pub fn each_scope(&self) -> impl Iterator<Item = &'e str> {
        self.version.scopes.iter()
    }

    /// The services that the token is for. Empty: any.
    pub fn audiences(&self) -> &'e [Box<str>] {
        self.entry.limits().map_or(&[], |limits| &limits.audiences)
    }

    /// When the version was issued, to the second.
    pub fn issued_at(&self) -> Option<Timestamp> {
        self.entry.issued_at(self.key_id)
    }

    /// When the version stops working, as of the current spec and status. `None`: never.
    pub fn ends_at(&self) -> Option<Timestamp> {
        // i64::MAX stands for never, and is out of the range of a Timestamp.
        Timestamp::from_millisecond(self.entry.expires_at().min(self.version.ends_at)).ok()
    }
}

/// Decides among the versions that have the presented key id.
///
/// There may be several, since a key id can be copied into another status. The one whose hash the token matches
/// counts; if there is none, the token does not exist.
pub fn decide<'e>(
    candidates: impl IntoIterator<Item = &'e Version>,
    peppers: &Peppers,
    locks: &Locks,
    request: &Request<'_>,
    now: Timestamp,
) -> Decision<'e> {
    let verified = candidates.into_iter().find(|version| {
        let (namespace, name) = version.entry.object();
        peppers.verify(namespace, name, &request.token, &version.hash)
    });
    let Some(version) = verified else { return Decision::Deny(Code::NotFound) };
    let identity = Identity { entry: &version.entry, version, key_id: request.token.key_id() };
    match denial(identity, locks, request, now.as_millisecond()) {
        Some(code) => Decision::Deny(code),
        None => Decision::Allow(identity),
    }
}

/// The first rule that denies the request. `None`: allow.
fn denial(
    Identity { entry, version, key_id }: Identity<'_>,
    locks: &Locks,
    request: &Request<'_>,
    now: i64,
) -> Option<Code> {
    let held = version.held_by(locks, key_id);
    if entry.standing() == Standing::Revoked || held == Some(LockAction::Revoke) {
        return Some(Code::Revoked);
    }
    if now >= entry.expires_at() {
        return Some(Code::Expired);
    }
    if entry.standing() == Standing::Suspended || held == Some(LockAction::Suspend) {
        return Some(Code::Suspended);
    }
    if now >= version.ends_at {
        return Some(Code::Retired);
    }
    if let Some(code) = entry.limits().and_then(|limits| exceeded(limits, request)) {
        return Some(code);
    }
    if !request.scopes.iter().all(|scope| any_covers(version.scopes.iter(), scope)) {
        return Some(Code::InsufficientScope);
    }
    None
}

/// The first limit that denies the request.
fn exceeded(limits: &Limits, request: &Request<'_>) -> Option<Code> {
    let Limits { audiences, networks } = limits;
    let in_network = || request.client.is_some_and(|client| networks.iter().any(|net| net.contains(&client)));
    let is_meant_for_it = || match request.audience {
        Audience::Is(service) => audiences.iter().any(|listed| **listed == *service),
        Audience::Unnamed => false,
        Audience::LeftToCaller => true,
    };
    if !networks.is_empty() && !in_network() {
        return Some(Code::IpNotAllowed);
    }
    if !audiences.is_empty() && !is_meant_for_it() {
        return Some(Code::AudienceMismatch);
    }
    None
}

#[cfg(test)]
mod tests {
    use crate::tombstone::Tombstones;
    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;
    use crate::check::{Indexed, ScopePool};
    use crate::crd::{
        ApiToken, ApiTokenSpec, ApiTokenStatus, Constraints, Rotation, RotationReason, RotationStatus,
        TokenVersion, VersionState,
    };
    use crate::lifecycle::authenticate;
    use crate::token::format;
    use crate::token::format::{KeyId, Prefix};
    use crate::token::{Peppers, Plaintext};

    const NOW: i64 = 1_800_000_000_000;

    fn at(offset: i64) -> Timestamp {
        Timestamp::from_millisecond(NOW + offset).expect("an instant")
    }

    fn peppers() -> Peppers {
        Peppers::from_data(&Peppers::new_data(&[1; 32])).expect("peppers")
    }

    fn plaintext(byte: u8) -> Plaintext {
        format::make(&Prefix::default(), KeyId::from_bytes([byte; 16]), &[byte; 32])
    }

    /// An ApiToken with one secret that was issued a second ago.
    fn token() -> ApiToken {
        let hash = peppers().hash("ns", "name", &plaintext(1)).expect("hash");
        let mut token =
            ApiToken::new("name", ApiTokenSpec { scopes: vec!["orders:*".to_owned()], ..Default::default() });
        token.metadata.namespace = Some("ns".to_owned());
        token.status = Some(ApiTokenStatus {
            versions: vec![TokenVersion {
                version: 1,
                key_id: KeyId::from_bytes([1; 16]).to_string(),
                hash: hash.to_string(),
                state: VersionState::Active,
                scopes: vec!["orders:*".to_owned()],
                issued_at: at(-1000),
                retire_at: None,
                reason: RotationReason::Created,
                mac: String::new(),
            }],
            ..Default::default()
        });
        token
    }

    /// The versions that checks know of an ApiToken.
    fn versions(token: &ApiToken) -> Vec<Version> {
        let mut token = token.clone();
        if let Some(status) = &mut token.status {
            authenticate(status, &token.metadata, &peppers());
        }
        indexed(&token)
    }

    /// The same, by the MACs that the status has.
    fn indexed(token: &ApiToken) -> Vec<Version> {
        let Indexed { versions, .. } =
            Entry::of(&token.into(), &peppers(), 0, &mut ScopePool::default(), &Tombstones::default());
        versions.into_iter().map(|(_, version)| version).collect()
    }

    fn with(change: impl FnOnce(&mut ApiTokenSpec, &mut TokenVersion)) -> Vec<Version> {
        let mut token = token();
        change(&mut token.spec, &mut token.status.as_mut().expect("status").versions[0]);
        versions(&token)
    }

    fn check(versions: &[Version], scopes: &[&str]) -> Option<Code> {
        let text = plaintext(1);
        denial_of(
            versions,
            &Request {
                token: Token::parse(text.expose()).expect("token"),
                scopes,
                audience: Audience::Unnamed,
                client: None,
            },
        )
    }

    /// A check by these versions, and by what a checkpoint makes of them: they must decide alike.
    fn denial_of(versions: &[Version], request: &Request<'_>) -> Option<Code> {
        let by = |versions: &[Version]| match decide(versions, &peppers(), &Locks::default(), request, at(0))
        {
            Decision::Allow(_) => None,
            Decision::Deny(code) => Some(code),
        };
        let denial = by(versions);
        assert_eq!(denial, by(&versions.iter().map(restored).collect::<Vec<_>>()), "from a checkpoint");
        denial
    }

    fn restored(version: &Version) -> Version {
        let of_entry = [(version.entry.key_ids().next().expect("a key id"), version.clone())];
        let packed = version.entry.pack(&of_entry, Vec::new()).expect("packed");
        let unpacked = Entry::unpack(&packed, &mut ScopePool::default(), &Tombstones::default());
        let (mut indexed, rest) = unpacked.expect("an entry");
        assert!(rest.is_empty());
        indexed.versions.pop().expect("a version").1
    }

    fn rotation(not_before: Timestamp) -> Option<Rotation> {
        Some(Rotation { not_before: Some(not_before), ..Default::default() })
    }

    #[test]
    fn every_rule_at_its_boundary() {
        let retiring = |offset| {
            with(move |_, version| {
                version.state = VersionState::Retiring;
                version.retire_at = Some(at(offset));
            })
        };
        let table: [(&str, Vec<Version>, Option<Code>); 17] = [
            ("active", with(|_, _| {}), None),
            ("pending", with(|_, version| version.state = VersionState::Pending), None),
            ("revoked by the spec", with(|spec, _| spec.revoked = Some(true)), Some(Code::Revoked)),
            ("not revoked", with(|spec, _| spec.revoked = Some(false)), None),
            ("expired now", with(|spec, _| spec.expires_at = Some(at(0))), Some(Code::Expired)),
            ("expires in 1 ms", with(|spec, _| spec.expires_at = Some(at(1))), None),
            ("suspended", with(|spec, _| spec.suspend = Some(true)), Some(Code::Suspended)),
            ("retires now", retiring(0), Some(Code::Retired)),
            ("retires in 1 ms", retiring(1), None),
            ("retiring without an end", with(|_, v| v.state = VersionState::Retiring), Some(Code::Retired)),
            ("retired", with(|_, v| v.state = VersionState::Retired), Some(Code::Retired)),
            ("revoked version", with(|_, v| v.state = VersionState::Revoked), Some(Code::Retired)),
            ("issued 1 ms before the cut", with(|s, _| s.rotation = rotation(at(-999))), Some(Code::Retired)),
            ("issued at the cut", with(|s, _| s.rotation = rotation(at(-1000))), None),
            ("cut is now", with(|s, _| s.rotation = rotation(at(0))), Some(Code::Retired)),
            ("cut is in 1 ms", with(|s, _| s.rotation = rotation(at(1))), None),
            ("unreadable hash", with(|_, v| v.hash = "hmac-sha256:p1:!".to_owned()), Some(Code::NotFound)),
        ];
        for (what, versions, expected) in table {
            assert_eq!(check(&versions, &[]), expected, "{what}");
        }
    }

    #[test]
    fn a_revocation_in_the_status_is_effective_without_the_spec() {
        let mut token = token();
        let status = token.status.as_mut().expect("status");
        status.revocation = Some(
            serde_json::from_value(serde_json::json!({
                "requestedAt": at(0), "reason": "KeyCompromise", "source": "Bulk",
            }))
            .expect("revocation"),
        );
        assert_eq!(check(&versions(&token), &[]), Some(Code::Revoked));
    }

    #[test]
    fn what_the_recorded_cut_has_ended_stays_ended() {
        for (what, recorded, cut, expected) in [
            ("moved into the future", at(-1), Some(at(1)), Some(Code::Retired)),
            ("removed", at(-1), None, Some(Code::Retired)),
            ("both are still to come", at(1), Some(at(2)), None),
            ("recorded before the issue", at(-2000), Some(at(1)), None),
        ] {
            let mut token = token();
            token.spec.rotation = cut.and_then(rotation);
            token.status.as_mut().expect("a status").rotation =
                Some(RotationStatus { not_before: Some(recorded), ..Default::default() });
            assert_eq!(check(&versions(&token), &[]), expected, "{what}");
        }
    }

    #[test]
    fn a_version_that_somebody_else_has_changed_is_unknown() {
        let mut signed = token();
        let metadata = signed.metadata.clone();
        authenticate(signed.status.as_mut().expect("a status"), &metadata, &peppers());
        assert_eq!(check(&indexed(&signed), &[]), None);
        type Change<'a> = &'a dyn Fn(&mut ApiToken, &mut TokenVersion);
        let changed = |change: Change<'_>| {
            let mut token = signed.clone();
            let mut version = token.status.as_mut().expect("a status").versions.remove(0);
            change(&mut token, &mut version);
            token.status.as_mut().expect("a status").versions.push(version);
            check(&indexed(&token), &[])
        };
        assert_eq!(changed(&|_, _| {}), None);
        let changes: [Change<'_>; 8] = [
            &|_, version| version.scopes.push("payments:*".to_owned()),
            &|_, version| version.issued_at = at(-999),
            &|_, version| version.retire_at = Some(at(1000)),
            &|_, version| version.state = VersionState::Pending,
            &|_, version| version.version = 2,
            &|_, version| version.mac.clear(),
            &|token, _| token.metadata.uid = Some("another".to_owned()),
            &|token, _| token.status.as_mut().expect("a status").token_id = Some("tok_another".to_owned()),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            assert_eq!(changed(change), Some(Code::NotFound), "change {index}");
        }
        // What is no fact of the secret is shown, and not checked.
        assert_eq!(changed(&|_, version| version.reason = RotationReason::Trigger), None);
    }

    #[test]
    fn a_scope_needs_both_the_secret_and_the_spec() {
        let table: [(&[&str], &[&str], &str, bool); 5] = [
            (&["orders:*"], &["orders:*"], "orders:read", true),
            (&["orders:read"], &["orders:*"], "orders:read", true),
            (&["orders:read"], &["orders:*"], "orders:write", false),
            (&["orders:*", "audit:read"], &["orders:*"], "audit:read", false),
            (&["audit:read"], &["orders:*"], "orders:read", false),
        ];
        for (spec_scopes, issued, required, allowed) in table {
            let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            let entry = with(|spec, version| {
                spec.scopes = owned(spec_scopes);
                version.scopes = owned(issued);
            });
            assert_eq!(
                check(&entry, &[required]).is_none(),
                allowed,
                "{spec_scopes:?} {issued:?} {required}"
            );
        }
    }

    #[test]
    fn audiences_and_networks() {
        let text = plaintext(1);
        let token = Token::parse(text.expose()).expect("token");
        let check = |versions: &[Version], audience, client: Option<&str>| {
            let client = client.map(|ip| ip.parse().expect("an address"));
            denial_of(versions, &Request { token, scopes: &[], audience: Audience::of(audience), client })
        };
        let bound = with(|spec, _| spec.audiences = Some(vec!["billing".to_owned()]));
        assert_eq!(check(&bound, Some("billing"), None), None);
        assert_eq!(check(&bound, Some("search"), None), Some(Code::AudienceMismatch));
        assert_eq!(check(&bound, None, None), Some(Code::AudienceMismatch));
        let left = Request { token, scopes: &[], audience: Audience::LeftToCaller, client: None };
        assert_eq!(denial_of(&bound, &left), None);
        for named in [None, Some("search")] {
            assert_eq!(check(&with(|_, _| {}), named, None), None, "{named:?}");
        }
        let cidrs = |list: &[&str]| {
            let cidrs = Some(list.iter().map(|s| (*s).to_owned()).collect());
            with(|spec, _| spec.constraints = Some(Constraints { cidrs }))
        };
        let inside = cidrs(&["10.0.0.0/8", "2001:db8::/32"]);
        assert_eq!(check(&inside, None, Some("10.1.2.3")), None);
        assert_eq!(check(&inside, None, Some("2001:db8::1")), None);
        assert_eq!(check(&inside, None, Some("11.0.0.1")), Some(Code::IpNotAllowed));
        assert_eq!(check(&inside, None, None), Some(Code::IpNotAllowed));
        assert_eq!(check(&cidrs(&["nonsense"]), None, Some("10.1.2.3")), Some(Code::IpNotAllowed));
    }

    #[test]
    fn a_copied_hash_verifies_nothing_elsewhere_and_hides_no_other() {
        let mut copy = token();
        copy.metadata.name = Some("thief".to_owned());
        copy.spec.scopes = vec!["payments:*".to_owned()];
        let (copy, real) = (versions(&copy), versions(&token()));
        assert_eq!(check(&copy, &[]), Some(Code::NotFound));
        let text = plaintext(1);
        let request = Request {
            token: Token::parse(text.expose()).expect("token"),
            scopes: &["orders:read"],
            audience: Audience::Unnamed,
            client: None,
        };
        assert_eq!(denial_of(&[&copy[..], &real].concat(), &request), None);
        assert_eq!(denial_of(&[&real[..], &copy].concat(), &request), None);
    }

    #[test]
    fn another_secret_under_the_same_key_id_is_unknown() {
        let forged = format::make(&Prefix::default(), KeyId::from_bytes([1; 16]), &[9; 32]);
        let request = Request {
            token: Token::parse(forged.expose()).expect("token"),
            scopes: &[],
            audience: Audience::Unnamed,
            client: None,
        };
        assert_eq!(denial_of(&with(|_, _| {}), &request), Some(Code::NotFound));
    }

    #[test]
    fn effective_scopes_are_those_of_both() {
        let versions = with(|spec, version| {
            spec.scopes = vec!["orders:read".to_owned(), "audit:*".to_owned()];
            version.scopes = vec!["orders:*".to_owned(), "audit:read".to_owned(), "tokens:read".to_owned()];
        });
        let version = &versions[0];
        let identity = Identity { entry: &version.entry, version, key_id: KeyId::from_bytes([1; 16]) };
        assert_eq!(identity.scopes(), "audit:read orders:read");
        assert_eq!(identity.each_scope().collect::<Vec<_>>(), ["audit:read", "orders:read"]);
    }

    #[test]
    fn a_secret_that_has_lost_its_scopes_has_none() {
        let versions = with(|spec, version| {
            spec.scopes = vec!["audit:read".to_owned()];
            version.scopes = vec!["orders:read".to_owned()];
        });
        let version = &versions[0];
        let identity = Identity { entry: &version.entry, version, key_id: KeyId::from_bytes([1; 16]) };
        assert_eq!((identity.scopes(), identity.each_scope().count()), ("", 0));
    }

    proptest! {
        /// What ends a token ends it whatever else is set.
        #[test]
        fn an_end_is_an_end(
            revoked: bool, suspended: bool, expires in -2i64..3, cut in -1003i64..-997, retire in -2i64..3,
            state in 0usize..5,
        ) {
            let states = [VersionState::Pending, VersionState::Active, VersionState::Retiring, VersionState::Retired, VersionState::Revoked];
            let entry = with(|spec, version| {
                spec.revoked = Some(revoked);
                spec.suspend = Some(suspended);
                spec.expires_at = Some(at(expires));
                spec.rotation = rotation(at(cut));
                version.state = states[state];
                version.retire_at = Some(at(retire));
            });
            let works = !revoked && !suspended && expires > 0 && cut <= -1000
                && state <= 2 && retire > 0;
            prop_assert_eq!(check(&entry, &[]).is_none(), works);
        }

        /// Taking scopes away never allows more.
        #[test]
        fn narrowing_never_widens(all in proptest::collection::vec("(a|b):(c|d|[*])", 1..5), keep: u8, required in "(a|b):(c|d)") {
            let narrowed: Vec<String> =
                all.iter().enumerate().filter(|(i, _)| keep & (1 << i) != 0).map(|(_, s)| s.clone()).collect();
            let wide = with(|spec, version| { spec.scopes.clone_from(&all); version.scopes.clone_from(&all); });
            let narrow = with(|spec, version| { spec.scopes = narrowed; version.scopes.clone_from(&all); });
            if check(&narrow, &[&required]).is_none() {
                prop_assert_eq!(check(&wide, &[&required]), None);
            }
        }

        /// The clock only ever ends things, apart from the reversible ones.
        #[test]
        fn time_ends_and_never_revives(expires in 0i64..10, retire in 0i64..10, cut in 0i64..10, earlier in 0i64..10, later in 0i64..10) {
            prop_assume!(earlier <= later);
            let entry = with(|spec, version| {
                spec.expires_at = Some(at(expires));
                spec.rotation = rotation(at(cut));
                version.state = VersionState::Retiring;
                version.retire_at = Some(at(retire));
            });
            let text = plaintext(1);
            let request = Request { token: Token::parse(text.expose()).expect("token"), scopes: &[], audience: Audience::Unnamed, client: None };
            let allowed = |offset| matches!(decide(&entry, &peppers(), &Locks::default(), &request, at(0) + SignedDuration::from_millis(offset)), Decision::Allow(_));
            if allowed(later) {
                prop_assert!(allowed(earlier));
            }
        }
    }
}
