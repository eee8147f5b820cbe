//! The state that a verifier decides by, and the one check that every endpoint makes against it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;

use crate::index::Index;
use tokenward_core::check;
use tokenward_core::check::{Audience, Code, Decision, decide};
use tokenward_core::lock::Locks;
use tokenward_core::token::{Peppers, Token};

/// The index, the locks, and the pepper in use.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub index: Index,
    /// Empty until the pepper's Secret was read.
    pub peppers: ArcSwapOption<Peppers>,
    /// The locks that stop tokens, whatever their entries in the index say.
    pub locks: ArcSwap<Locks>,
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
