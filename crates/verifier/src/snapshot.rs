//! The state that a verifier decides by, and the one check that every endpoint makes against it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;

use crate::at_least::{AtLeast, Unmet, require};
use crate::index::Index;
use crate::watermark::Marks;
use tokenward_core::check;
use tokenward_core::check::{Audience, Code, Decision, Version, decide};
use tokenward_core::lock::Locks;
use tokenward_core::token::{Peppers, Token};

/// The index, the locks, and the pepper in use.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub index: Index,
    /// Empty until the pepper's Secret was read.
    pub peppers: ArcSwapOption<Peppers>,
    /// The peppers by which the entries of the index were made.
    pub(crate) index_peppers: ArcSwapOption<Peppers>,
    /// The locks that stop tokens, whatever their entries in the index say.
    pub locks: ArcSwap<Locks>,
    /// How far the index and the locks have come.
    pub(crate) marks: Marks,
    tokens_listed: AtomicBool,
    locks_listed: AtomicBool,
    stale: AtomicBool,
}

/// A presented token, and what is required of it.
#[derive(Clone, Copy, Debug)]
pub struct TokenCheck<'a> {
    /// What a client presented as its token: any bytes, not necessarily UTF-8.
    pub presented: &'a [u8],
    /// All of these are required.
    pub scopes: &'a [&'a str],
    /// The service for which it is presented.
    pub audience: Audience<'a>,
    /// The client's address, if it is known. Without it, a token with `constraints.cidrs` is denied.
    pub client: Option<IpAddr>,
}

/// Why a snapshot makes no decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The list of tokens, that of locks or the pepper has not been read yet.
    NotReady,
    /// The API server was silent for longer than `--max-staleness`, and `--stale-policy` is `deny`.
    Stale,
}

impl Unavailable {
    /// The error code, for programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotReady => "not_ready",
            Self::Stale => "stale",
        }
    }

    /// The explanation, for people.
    pub fn message(self) -> &'static str {
        match self {
            Self::NotReady => "the tokens and the locks on them are not known yet",
            Self::Stale => {
                "nothing readable was received from the API server for longer than --max-staleness"
            }
        }
    }
}

impl Snapshot {
    /// An empty snapshot, and the marks of what will fill it.
    pub(crate) fn of(marks: Marks) -> Self {
        Self { marks, ..Self::default() }
    }

    /// Whether the index contains a full list. Until then, a token that it lacks is not known to be invalid.
    pub fn are_tokens_listed(&self) -> bool {
        self.tokens_listed.load(Ordering::Acquire)
    }

    /// Sets whether the index contains a full list.
    pub fn set_tokens_listed(&self, listed: bool) {
        self.tokens_listed.store(listed, Ordering::Release);
    }

    /// Whether all locks are known. Until then, a token is not known to be valid.
    pub fn are_locks_listed(&self) -> bool {
        self.locks_listed.load(Ordering::Acquire)
    }

    /// Sets whether all locks are known.
    pub fn set_locks_listed(&self, listed: bool) {
        self.locks_listed.store(listed, Ordering::Release);
    }

    /// Sets whether the snapshot is too old to decide by.
    pub fn set_stale(&self, stale: bool) {
        self.stale.store(stale, Ordering::Release);
    }

    /// Whether everything is known that a request about these tokens asks for. Of each, the namespaces count of the ApiTokens
    /// that claim it. One that nobody claims may be of any: so every watch counts.
    pub(crate) fn knows<'t>(
        &self,
        at_least: AtLeast,
        presented: impl IntoIterator<Item = &'t str>,
    ) -> Result<(), Unmet> {
        if at_least == AtLeast::default() {
            return Ok(());
        }
        let mut namespaces = BTreeSet::new();
        let mut are_claimed = true;
        for presented in presented {
            let key_id = Token::parse(presented).map(|token| token.key_id());
            let claimed =
                key_id.map(|key_id| self.index.claimants(key_id, namespaces_of)).unwrap_or_default();
            are_claimed &= !claimed.is_empty();
            namespaces.extend(claimed);
        }
        require(at_least, &self.marks, are_claimed.then_some(&namespaces))
    }

    /// Makes a check, and passes the decision to `f`, because it borrows the token's entry.
    pub fn decide<T>(
        &self,
        check: &TokenCheck<'_>,
        f: impl FnOnce(Decision<'_>) -> T,
    ) -> Result<T, Unavailable> {
        if self.stale.load(Ordering::Acquire) {
            return Err(Unavailable::Stale);
        }
        let peppers = self.peppers.load();
        let is_listed = self.are_tokens_listed() && self.are_locks_listed();
        let peppers = peppers.as_deref().filter(|_| is_listed).ok_or(Unavailable::NotReady)?;
        let Some(token) = std::str::from_utf8(check.presented).ok().and_then(Token::parse) else {
            return Ok(f(Decision::Deny(Code::NotFound)));
        };
        let TokenCheck { scopes, audience, client, .. } = *check;
        let request = check::Request { token, scopes, audience, client };
        let locks = self.locks.load();
        let now = Timestamp::now();
        Ok(self
            .index
            .claimants(token.key_id(), |claimants| f(decide(claimants, peppers, &locks, &request, now))))
    }
}

fn namespaces_of(claimants: &[Version]) -> Vec<String> {
    claimants.iter().map(|version| version.entry.namespace().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::fixture::{Fixture, plaintext, spec};
    use crate::watermark::Mark;

    /// A token that is known is of one namespace; any other may be of each.
    #[test]
    fn the_watch_counts_of_the_tokens_own_namespace() {
        let mark = |namespace: &str, position: u64| {
            let mark = Mark::default();
            mark.applied(position);
            (Some(namespace.to_owned()), mark)
        };
        let marks = Marks { tokens: vec![mark("quiet", 3), mark("team", 9)], ..Marks::default() };
        let snapshot = std::sync::Arc::new(Snapshot::of(marks));
        let fixture = Fixture { snapshot, ..Fixture::unready(&[]) };
        fixture.with(1, spec());
        let (known, unknown) = (plaintext(1), plaintext(2));
        let (known, unknown) = (known.expose(), unknown.expose());
        for (version, presented, expected) in [
            (9, &[known][..], true),
            (9, &[known, known], true),
            (10, &[known], false),
            (9, &[unknown], false),
            (9, &[known, unknown], false),
            (9, &["junk"], false),
            (3, &[known, unknown, "junk"], true),
        ] {
            let at_least = AtLeast { api_tokens: Some(version), ..AtLeast::default() };
            let met = fixture.snapshot.knows(at_least, presented.iter().copied()).is_ok();
            assert_eq!(met, expected, "{version} {}", presented.len());
        }
    }
}
