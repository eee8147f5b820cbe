//! Proof that what was written is in force: each verifier tells up to which resourceVersion it knows everything, and what was
//! written at one that is not later is known to it.
//!
//! resourceVersions of one resource are ordered integers (KEP-5504, in force since Kubernetes 1.35, and in fact before). A
//! verifier says how far it has come; the controller counts. This proves what verifiers have said, and not that one which somebody
//! has taken over obeys.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::crd::VerifierCount;
use crate::instant::to_second;

/// Where a verifier tells it, on its telemetry port. The query is `nonce=` and a random text.
pub const PATH: &str = "/watermark";
/// The header of the answer with its MAC ([`crate::token::statement`]).
pub const MAC_HEADER: &str = "x-tokenward-mac";

/// Names that are given of verifiers that have not confirmed.
const NAMES: usize = 3;

/// How far a verifier has come, in its own words.
///
/// One that has not read all yet, and refuses every check, has not come far: it may begin to serve by a list that is older than
/// what was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Watermark {
    /// Up to where it knows ApiTokens.
    pub tokens: Vec<Position>,
    /// Up to where it knows TokenLocks.
    pub locks: Vec<Position>,
    /// Up to where it knows ClusterTokenLocks. `None`: it does not follow them.
    pub cluster_locks: Option<u64>,
    /// `--max-staleness`, in seconds.
    pub max_staleness: i64,
    /// Whether it refuses every check once it is stale.
    pub denies_when_stale: bool,
}

/// The place up to which a watch has come.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    /// `None`: all namespaces.
    pub namespace: Option<String>,
    /// Everything up to it is known.
    pub resource_version: u64,
}

/// What was written, and has to be known to every verifier.
#[derive(Clone, Copy, Debug)]
pub enum Written<'a> {
    /// An ApiToken of this namespace.
    Token { namespace: &'a str, resource_version: u64 },
    /// A TokenLock of this namespace; `None`: a ClusterTokenLock.
    Lock { namespace: Option<&'a str>, resource_version: u64 },
}

impl Written<'_> {
    /// The resourceVersion of what was written.
    pub fn resource_version(&self) -> u64 {
        match self {
            Self::Token { resource_version, .. } | Self::Lock { resource_version, .. } => *resource_version,
        }
    }
}

/// A verifier, as far as it was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The name of its pod, or its address.
    pub name: String,
    /// What it said last.
    pub last: Option<Watermark>,
    /// Since when it does not answer. `None`: it does.
    pub silent_since: Option<Timestamp>,
}

/// How many verifiers have confirmed something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confirmations {
    /// The number of verifiers that may decide checks.
    pub asked: i64,
    /// How many of them have confirmed.
    pub confirmed: i64,
    /// The others, for people: who, since when, and what bounds it.
    pub missing: Vec<String>,
}

impl Confirmations {
    /// Counts the verifiers that know what was written `at` an instant.
    pub fn count(verifiers: &[Heard], written: Written<'_>, at: Timestamp) -> Self {
        let mut counted = Self { asked: len(verifiers.len()), ..Self::default() };
        for verifier in verifiers {
            match &verifier.last {
                // What it once knew, it knows.
                Some(last) if last.knows(written) => counted.confirmed += 1,
                _ => counted.missing.push(verifier.excuse(at)),
            }
        }
        counted
    }

    /// Whether none is missing.
    pub fn are_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// The numbers, as a status has them.
    pub fn counts(&self) -> VerifierCount {
        VerifierCount { asked: self.asked, confirmed: self.confirmed }
    }

    /// Who has confirmed and who has not, for people.
    pub fn message(&self) -> String {
        let Self { asked, confirmed, missing } = self;
        let counts = format!("{confirmed} of {asked} verifiers have confirmed it");
        if missing.is_empty() {
            return counts;
        }
        let named = missing.get(..NAMES).unwrap_or(missing).join("; ");
        let more = if missing.len() > NAMES { "; …" } else { "" };
        format!("{counts}; {named}{more}")
    }
}

impl Watermark {
    fn knows(&self, written: Written<'_>) -> bool {
        let covers = |position: &&Position, namespace: &str| {
            position.namespace.as_deref().is_none_or(|own| own == namespace)
        };
        match written {
            // Of a namespace that it does not watch it accepts nothing.
            Written::Token { namespace, resource_version } => self
                .tokens
                .iter()
                .find(|position| covers(position, namespace))
                .is_none_or(|position| position.resource_version >= resource_version),
            Written::Lock { namespace: Some(namespace), resource_version } => self
                .locks
                .iter()
                .find(|position| covers(position, namespace))
                .is_none_or(|position| position.resource_version >= resource_version),
            Written::Lock { namespace: None, resource_version } => {
                self.cluster_locks.is_some_and(|known| known >= resource_version)
            }
        }
    }
}

impl Heard {
    /// Why it has not confirmed, and what bounds that.
    fn excuse(&self, at: Timestamp) -> String {
        let state = match self.silent_since {
            Some(since) => format!("{} is silent since {}", self.name, to_second(since)),
            None => format!("{} does not know it yet", self.name),
        };
        let bound = match &self.last {
            Some(last) if last.denies_when_stale => {
                let denies = at.checked_add(SignedDuration::from_secs(last.max_staleness)).unwrap_or(at);
                format!("if it is cut off, it denies every check from {} on", to_second(denies))
            }
            Some(_) => "nothing bounds that, with --stale-policy serve".to_owned(),
            None => "it has never answered".to_owned(),
        };
        format!("{state} ({bound})")
    }
}

fn len(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("an instant")
    }

    fn watermark(tokens: &[(Option<&str>, u64)]) -> Watermark {
        let position = |(namespace, resource_version): &(Option<&str>, u64)| Position {
            namespace: namespace.map(str::to_owned),
            resource_version: *resource_version,
        };
        let tokens: Vec<_> = tokens.iter().map(position).collect();
        let locks = tokens.clone();
        Watermark { tokens, locks, cluster_locks: Some(7), max_staleness: 60, denies_when_stale: true }
    }

    fn confirms(last: Option<Watermark>, written: Written<'_>) -> bool {
        let heard = Heard { name: "a".to_owned(), last, silent_since: None };
        Confirmations::count(&[heard], written, at(0)).are_complete()
    }

    #[test]
    fn a_verifier_confirms_what_it_knows() {
        let token = |namespace, resource_version| Written::Token { namespace, resource_version };
        let lock = |namespace, resource_version| Written::Lock { namespace, resource_version };
        let all = || Some(watermark(&[(None, 5)]));
        let some = || Some(watermark(&[(Some("a"), 5), (Some("b"), 9)]));
        for (last, written, expected) in [
            (all(), token("a", 5), true),
            (all(), token("a", 6), false),
            (None, token("a", 1), false),
            (some(), token("a", 6), false),
            (some(), token("b", 6), true),
            (some(), token("elsewhere", 6), true),
            (all(), lock(Some("a"), 5), true),
            (all(), lock(Some("a"), 6), false),
            (all(), lock(None, 7), true),
            (all(), lock(None, 8), false),
            (all().map(|last| Watermark { cluster_locks: None, ..last }), lock(None, 1), false),
        ] {
            assert_eq!(confirms(last.clone(), written), expected, "{last:?} {written:?}");
        }
    }

    #[test]
    fn who_has_not_confirmed_is_named_with_what_bounds_it() {
        let heard = |name: &str, last, silent_since| Heard { name: name.to_owned(), last, silent_since };
        let serves = Watermark { denies_when_stale: false, ..watermark(&[(None, 1)]) };
        let verifiers = [
            heard("a", Some(watermark(&[(None, 9)])), Some(at(1))),
            heard("b", Some(watermark(&[(None, 1)])), Some(at(2))),
            heard("c", Some(serves), None),
            heard("d", None, Some(at(3))),
        ];
        let written = Written::Token { namespace: "ns", resource_version: 9 };
        let counted = Confirmations::count(&verifiers, written, at(100));
        assert_eq!((counted.asked, counted.confirmed), (4, 1));
        assert_eq!(
            counted.message(),
            "1 of 4 verifiers have confirmed it; \
             b is silent since 1970-01-01T00:00:02Z (if it is cut off, it denies every check from 1970-01-01T00:02:40Z on); \
             c does not know it yet (nothing bounds that, with --stale-policy serve); \
             d is silent since 1970-01-01T00:00:03Z (it has never answered)"
        );
    }
}
