//! What the status of a lock says.

use jiff::Timestamp;

use super::{Lock, Progress};
use crate::crd::{ConditionType, Conditions, LockAction, Outcome, TokenLockStatus, VerifierCount};
use crate::instant::to_millisecond;
use crate::proof::Confirmations;

/// How far a lock has come with all tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tokens that the lock stops and that have it on their own record.
    pub latched: i64,
    /// Tokens that the lock stops and that don't have it on their own record yet.
    pub outstanding: i64,
    /// Tokens within its reach that can't be read, so that nobody can tell whether it matches them. Verifiers refuse them anyway.
    pub unreadable: i64,
}

impl Tally {
    /// Counts a token.
    pub fn add(&mut self, progress: Progress) {
        match progress {
            Progress::Unmatched => {}
            Progress::Outstanding => self.outstanding += 1,
            Progress::Latched => self.latched += 1,
        }
    }

    /// Whether the lock has to stay, if it revokes: without it, a token would work again.
    pub fn holds(&self) -> bool {
        self.outstanding > 0 || self.unreadable > 0
    }
}

/// The status of a lock. It is as before if nothing has changed.
///
/// `confirmations` are of the lock as last read; `None`: the controller knows of no verifiers.
pub fn report(
    before: Option<&TokenLockStatus>,
    lock: &Lock,
    tally: Tally,
    confirmations: Option<&Confirmations>,
    generation: Option<i64>,
    now: Timestamp,
) -> TokenLockStatus {
    let Tally { latched, outstanding, unreadable } = tally;
    let matched = latched + outstanding;
    let (done, doing) = match lock.action() {
        LockAction::Suspend => ("Suspended", "Suspending"),
        LockAction::Revoke => ("Revoked", "Revoking"),
    };
    let stops = match matched {
        1 => "stops 1 ApiToken".to_owned(),
        _ => format!("stops {matched} ApiTokens"),
    };
    let ready = if outstanding > 0 {
        Outcome::no(doing, format!("{stops} at every verifier; {latched} of them by their own record, too"))
    } else if unreadable > 0 && lock.action() == LockAction::Revoke {
        Outcome::no(
            "Unreadable",
            format!(
                "{stops}; whether it matches {unreadable} more is not known, as they can't be read: mend or delete them"
            ),
        )
    } else if matched == 0 {
        Outcome::yes("NoMatch", "no ApiToken matches")
    } else {
        let then = match lock.action() {
            LockAction::Suspend => "until it is deleted",
            LockAction::Revoke => "for good, also once it is deleted",
        };
        Outcome::yes(done, format!("{stops}, {then}"))
    };
    let former = before.map_or(&[][..], |before| &before.conditions);
    let mut conditions = Conditions::after(former, generation, now);
    conditions.set(ConditionType::Ready, ready.clone());
    if !ready.status {
        let type_ = if outstanding > 0 { ConditionType::Reconciling } else { ConditionType::Stalled };
        conditions.set(type_, Outcome { status: true, reason: ready.reason });
    }
    // Once it is enforced, it stays so: a verifier that starts later reads the lock before it decides anything.
    let enforced_at = before.and_then(|before| before.enforced_at);
    let is_complete = confirmations.is_none_or(Confirmations::are_complete);
    // In milliseconds, as every instant in a status.
    let enforced_at = enforced_at.or(is_complete.then_some(to_millisecond(now)));
    let was_enforced = before.is_some_and(|before| before.enforced_at.is_some());
    let verifiers = match before {
        Some(before) if was_enforced => before.verifiers,
        _ => confirmations.map(Confirmations::counts),
    };
    conditions.set(ConditionType::Enforced, enforced(enforced_at, verifiers, confirmations));
    TokenLockStatus {
        enforced_at,
        verifiers,
        observed_generation: generation,
        matched: Some(matched),
        latched: Some(latched),
        conditions: conditions.into_vec(),
    }
}

/// The condition Enforced: whether every verifier obeys the lock.
fn enforced(
    at: Option<Timestamp>,
    verifiers: Option<VerifierCount>,
    confirmations: Option<&Confirmations>,
) -> Outcome {
    match (at, verifiers, confirmations) {
        (Some(at), Some(VerifierCount { asked, .. }), _) => Outcome::yes(
            "Confirmed",
            format!("{asked} of {asked} verifiers had confirmed by {at} that they obey it"),
        ),
        (Some(_), None, _) => {
            Outcome::yes("Recorded", "the controller knows of no verifiers, so it has asked none")
        }
        (None, _, Some(confirmations)) => Outcome::no("Unconfirmed", confirmations.message()),
        (None, _, None) => Outcome::no("Unconfirmed", "no verifier was asked yet"),
    }
}
