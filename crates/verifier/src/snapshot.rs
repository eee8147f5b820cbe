//! What a verifier knows at one moment, and the one check that every endpoint makes against it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;

use crate::index::Index;
use tokenward_core::check;
use tokenward_core::check::{Code, Decision, decide};
use tokenward_core::token::{Peppers, Token};

/// The index and the pepper in use.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The tokens.
    pub index: Index,
    /// The peppers, once they were read.
    pub peppers: ArcSwapOption<Peppers>,
    listed: AtomicBool,
    stale: AtomicBool,
}

/// What is asked of a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct TokenCheck<'a> {
    /// What a client presented as its token. It may be junk, or no text at all.
    pub presented: &'a [u8],
    /// The scopes that are needed, all of them.
    pub scopes: &'a [&'a str],
    /// The service for which it is presented.
    pub audience: Option<&'a str>,
    /// The client's address, where it is known.
    pub client: Option<IpAddr>,
}

/// Why a snapshot answers nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The tokens or the pepper were not read yet.
    NotReady,
    /// Nothing was heard from the API server for too long, and the operator wants no answers from then on.
    Stale,
}

impl Unavailable {
    /// The word for machines.
    pub fn error(self) -> &'static str {
        match self {
            Self::NotReady => "not_ready",
            Self::Stale => "stale",
        }
    }

    /// The sentence for people.
    pub fn message(self) -> &'static str {
        match self {
            Self::NotReady => "the tokens are not known yet",
            Self::Stale => "nothing was heard from the API server for longer than --max-staleness",
        }
    }
}

impl Snapshot {
    /// Whether the index has shown a full list. Before that, nothing it lacks may be called unknown.
    pub fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Acquire)
    }

    /// Says that the index shows a full list.
    pub fn set_listed(&self) {
        self.listed.store(true, Ordering::Release);
    }

    /// Says whether the snapshot is too old to answer from.
    pub fn set_stale(&self, stale: bool) {
        self.stale.store(stale, Ordering::Release);
    }

    /// Makes a check, and passes the decision to `f` while its entry is borrowed.
    pub fn decide<T>(
        &self,
        check: &TokenCheck<'_>,
        f: impl FnOnce(Decision<'_>) -> T,
    ) -> Result<T, Unavailable> {
        if self.stale.load(Ordering::Acquire) {
            return Err(Unavailable::Stale);
        }
        let peppers = self.peppers.load();
        let peppers = peppers.as_deref().filter(|_| self.is_listed()).ok_or(Unavailable::NotReady)?;
        let Some(token) = std::str::from_utf8(check.presented).ok().and_then(Token::parse) else {
            return Ok(f(Decision::Deny(Code::NotFound)));
        };
        let TokenCheck { scopes, audience, client, .. } = *check;
        let request = check::Request { token, scopes, audience, client };
        let now = Timestamp::now();
        Ok(self.index.claimants(token.key_id(), |claimants| f(decide(claimants, peppers, &request, now))))
    }
}
