//! The conditions and the phase of an ApiToken. All are derived from one [`Cause`], so they never contradict each
//! other.

use std::sync::Arc;

use jiff::Timestamp;

use super::authentication::missing_pepper;
use super::locked::{is_locked, suspending};
use super::observed::{Observed, RejectionKind, SecretState};
use super::revoke::{is_late, is_recorded};
use super::rotate::Due;
use super::transitions::{Transition, add_condition_changes, add_expiry_notice};
use super::versions::{active, overlaps, pending, retiring};
use crate::crd::{
    ApiTokenStatus, ConditionType, Conditions, CreationPolicy, OnRevoke, Outcome, Phase, Reason,
    RevocationSource, RevocationStatus, RotationReason, TokenVersion, VerifierCount,
};
use crate::lock::Lock;
use crate::token::PepperId;

/// Why a token is not simply active: the first of these that applies.
#[derive(Clone, Debug)]
enum Cause {
    Revoked,
    Invalid(String),
    /// The Secret is not ours, and belongs to this.
    Foreign(Option<String>),
    /// The Secret is somebody else's, who has not agreed that it is written, or there is none yet. The name of the ApiToken.
    NoConsent(String),
    /// These keys of it are theirs.
    Taken(Vec<String>),
    Awaited(String),
    Rejected(RejectionKind, String),
    /// The active version, or the Secret, can't be verified without this pepper.
    PepperMissing(PepperId),
    Expired(Timestamp),
    Throttled {
        reason: RotationReason,
        until: Timestamp,
        stalled: bool,
    },
    Minting,
    Damaged(RotationReason),
    /// Somebody else changes this back each time it is written.
    Contested(String),
    Suspended(Suspension),
    None,
}

/// What suspends a token.
#[derive(Clone, Debug)]
enum Suspension {
    Spec,
    Lock(Arc<Lock>),
}

impl Suspension {
    fn of(observed: &Observed<'_>, status: &ApiTokenStatus) -> Option<Self> {
        if observed.suspended() { Some(Self::Spec) } else { suspending(observed, status).map(Self::Lock) }
    }

    fn lock(&self) -> Option<&Arc<Lock>> {
        match self {
            Self::Spec => None,
            Self::Lock(lock) => Some(lock),
        }
    }

    /// Until when the token is refused, for people.
    fn until(&self) -> String {
        match self {
            Self::Spec => "refused until suspend is false".to_owned(),
            Self::Lock(lock) => format!("refused until {lock} is deleted ({})", lock.why()),
        }
    }
}

fn cause(
    observed: &Observed<'_>,
    status: &ApiTokenStatus,
    suspension: Option<&Suspension>,
    due: Due,
    now: Timestamp,
) -> Cause {
    if status.revocation.is_some() {
        return Cause::Revoked;
    }
    if let Err(invalid) = &observed.spec {
        return Cause::Invalid(invalid.to_string());
    }
    if let Some(at) = observed.token.spec.expires_at.filter(|_| observed.expired(now)) {
        return Cause::Expired(at);
    }
    if let Some(rejection) = &observed.rejection {
        return Cause::Rejected(rejection.kind, rejection.message.clone());
    }
    if let Some(pepper) = active(status).and_then(|version| missing_pepper(observed, version)) {
        return Cause::PepperMissing(pepper);
    }
    let merges = observed.spec.as_ref().is_ok_and(|spec| spec.creation_policy == CreationPolicy::Merge);
    let name = || observed.token.metadata.name.clone().unwrap_or_default();
    match (&observed.secret, due) {
        (SecretState::Foreign(None), _) if merges => Cause::NoConsent(name()),
        (SecretState::Taken(keys), _) => Cause::Taken(keys.clone()),
        (SecretState::Absent, _) if merges => Cause::Awaited(name()),
        (SecretState::Foreign(owner), _) => Cause::Foreign(owner.clone()),
        (SecretState::UnknownPepper(pepper), _) => Cause::PepperMissing(*pepper),
        (SecretState::Unreadable(message), _) => Cause::Rejected(RejectionKind::Forbidden, message.clone()),
        (_, Due::Throttled { reason, until, stalled }) => Cause::Throttled { reason, until, stalled },
        _ if pending(status).is_some() || active(status).is_none() => Cause::Minting,
        (SecretState::Absent, _) => Cause::Damaged(RotationReason::SecretMissing),
        (SecretState::Ours(_), _) if observed.secret.key_id().is_none() => {
            Cause::Damaged(RotationReason::SecretTampered)
        }
        _ => match observed.contested(now) {
            Some((over, _)) => Cause::Contested(over),
            None => suspension.cloned().map_or(Cause::None, Cause::Suspended),
        },
    }
}

/// Writes conditions and phase, and adds the transitions that follow from their changes.
pub(super) fn describe(
    status: &mut ApiTokenStatus,
    observed: &Observed<'_>,
    due: Due,
    transitions: &mut Vec<Transition>,
    now: Timestamp,
) {
    let suspension = Suspension::of(observed, status);
    let suspension = suspension.as_ref();
    let cause = cause(observed, status, suspension, due, now);
    let secret = observed.spec.as_ref().map_or("the Secret", |spec| &spec.secret_name);
    let stalled = stalled(&cause, secret);
    // Told together with the confirmations, for one write less, unless these take too long.
    let is_late = status.revocation.as_ref().is_some_and(|revocation| is_late(revocation.requested_at, now));
    let is_recorded = is_enforced(status) || (is_late && is_recorded(observed, now));
    let ready = ready(&cause, stalled.as_ref(), status, secret, is_recorded);
    let delivered = delivered(observed, status, secret, &cause);
    let active = active_now(&cause, suspension, status, &delivered);
    let overlap = overlaps(working_overlaps(observed, status, suspension));
    let phase = phase(&cause, stalled.is_some(), suspension.is_some(), overlap.is_some(), status);

    let lock = suspension.and_then(Suspension::lock).cloned();
    add_condition_changes(status, &active, lock, stalled.as_ref(), transitions);
    add_expiry_notice(status, observed, transitions, now);

    let before = std::mem::take(&mut status.conditions);
    let mut conditions = Conditions::after(&before, status.observed_generation, now);
    conditions.set(ConditionType::Ready, ready.clone());
    conditions.set(ConditionType::Active, active);
    conditions.set(ConditionType::Delivered, delivered);
    // The others are present only while they are true, as kstatus expects.
    if let Some(revocation) = &status.revocation {
        let reason = if is_enforced(status) { "Enforced" } else { "Requested" };
        let by = match (&revocation.lock, revocation.source) {
            (Some(lock), _) => format!(" by {lock}"),
            (None, RevocationSource::Ledger) => {
                " by the ledger, as it was revoked before a restore".to_owned()
            }
            (None, _) => String::new(),
        };
        let (at, why) = (revocation.requested_at, revocation.reason.as_str());
        let message = format!("revoked at {at}{by} ({why})");
        conditions.set(ConditionType::Revoked, Outcome::yes(reason, message));
        conditions.set(ConditionType::Enforced, enforced(observed, revocation, now));
    }
    if let Some(message) = overlap {
        conditions.set(ConditionType::Rotating, Outcome::yes("Overlap", message));
    }
    if let Some(reason) = stalled {
        conditions.set(ConditionType::Stalled, Outcome { status: true, reason });
    } else if !ready.status {
        conditions.set(ConditionType::Reconciling, Outcome { status: true, reason: ready.reason });
    }
    status.conditions = conditions.into_vec();
    status.phase = Some(phase);
}

/// The condition Enforced of a revoked token: whether every verifier refuses it.
fn enforced(observed: &Observed<'_>, revocation: &RevocationStatus, now: Timestamp) -> Outcome {
    match (revocation.enforced_at, revocation.verifiers, &observed.confirmations) {
        (Some(at), Some(VerifierCount { asked, .. }), _) => Outcome::yes(
            "Confirmed",
            format!("{asked} of {asked} verifiers had confirmed by {at} that they refuse it"),
        ),
        (Some(_), None, _) => {
            Outcome::yes("Recorded", "recorded; the controller knows of no verifiers, so it has asked none")
        }
        (None, Some(_), Some(confirmations)) if is_late(revocation.requested_at, now) => {
            Outcome::no("Unconfirmed", confirmations.message())
        }
        (None, ..) => {
            Outcome::no("Pending", "verifiers refuse it as soon as they see it; none has confirmed that yet")
        }
    }
}

fn is_enforced(status: &ApiTokenStatus) -> bool {
    status.revocation.as_ref().is_some_and(|revocation| revocation.enforced_at.is_some())
}

fn current(status: &ApiTokenStatus) -> Option<i64> {
    active(status).map(|version| version.version)
}

/// The replaced versions that still work.
fn working_overlaps<'s>(
    observed: &Observed<'_>,
    status: &'s ApiTokenStatus,
    suspension: Option<&Suspension>,
) -> impl Iterator<Item = &'s TokenVersion> {
    let works = status.revocation.is_none() && suspension.is_none();
    retiring(status).filter(move |version| works && !is_locked(observed, status, version))
}

/// Why the condition Stalled is true. `None`: nobody has to act.
fn stalled(cause: &Cause, secret: &str) -> Option<Reason> {
    let reason = match cause {
        Cause::Invalid(message) => Reason::new("InvalidSpec", message.clone()),
        Cause::Foreign(Some(owner)) => Reason::new(
            "SecretConflict",
            format!(
                "Secret {secret} belongs to {owner}, so it is not written; create an ApiToken with another secret.name"
            ),
        ),
        Cause::Foreign(None) => Reason::new(
            "SecretConflict",
            format!(
                "Secret {secret} exists and is not tokenward's, so it is not written; create an ApiToken with another secret.name or, if nothing uses the Secret, delete it"
            ),
        ),
        Cause::NoConsent(token) => Reason::new(
            "SecretConflict",
            format!(
                "Secret {secret} lacks the label tokenward.dev/token={token}, so it is not written; its owner agrees by adding it"
            ),
        ),
        Cause::Taken(keys) => Reason::new(
            "SecretConflict",
            format!(
                "Secret {secret} has a value of somebody else under {}, which is not overwritten; remove it there, or choose another key in secret.keys or secret.template",
                keys.join(", ")
            ),
        ),
        Cause::PepperMissing(pepper) => Reason::new(
            "PepperMissing",
            format!(
                "Secret {secret} needs pepper {}, which Secret tokenward-pepper does not contain; restore that pepper from a backup or, if it is lost for good, delete Secret {secret} and change rotation.trigger, which mints a new secret",
                pepper.as_str()
            ),
        ),
        Cause::Rejected(RejectionKind::Forbidden, message) => Reason::new(
            "Forbidden",
            format!("the API server denied the controller access to Secret {secret}: {message}"),
        ),
        Cause::Rejected(RejectionKind::Invalid, message) => {
            Reason::new("SecretInvalid", format!("the API server does not accept Secret {secret}: {message}"))
        }
        Cause::Contested(over) => Reason::new(
            "Contested",
            format!(
                "somebody else, a mutating policy or another controller, changes back what tokenward writes: {over}; make it leave that alone. It is tried again every 5 minutes, and at once if the spec changes"
            ),
        ),
        Cause::Throttled { reason, until, stalled: true } => Reason::new(
            damage_reason(*reason),
            format!(
                "Secret {secret} was broken too often within an hour ({}); find out by what. The next repair is at {until}; to have it now, change rotation.trigger",
                damage(*reason)
            ),
        ),
        _ => return None,
    };
    Some(reason)
}

/// The condition Ready: whether the spec is realised.
fn ready(
    cause: &Cause,
    stalled: Option<&Reason>,
    status: &ApiTokenStatus,
    secret: &str,
    is_recorded: bool,
) -> Outcome {
    if let Some(reason) = stalled {
        return Outcome { status: false, reason: reason.clone() };
    }
    let current = current(status);
    match cause {
        Cause::Revoked if is_recorded => Outcome::yes("Revoked", "revoked for good"),
        Cause::Revoked => Outcome::no("Revoking", "the revocation is being recorded"),
        Cause::Expired(at) if status.versions.is_empty() => Outcome::yes(
            "Expired",
            format!("expiresAt {at} had passed before a secret was minted; set a later one"),
        ),
        Cause::Expired(at) => Outcome::yes("Expired", format!("expired at {at}, as the spec says")),
        Cause::Throttled { reason, until, .. } => Outcome::no(
            damage_reason(*reason),
            format!("{}; a new secret is minted at {until}", damage(*reason)),
        ),
        Cause::Awaited(token) => Outcome::no(
            "SecretNotFound",
            format!(
                "waiting for Secret {secret} with the label tokenward.dev/token={token}; creationPolicy Merge writes into the Secret of somebody else"
            ),
        ),
        Cause::Damaged(reason) => Outcome::no(damage_reason(*reason), damage(*reason)),
        Cause::Minting => match current {
            Some(_) => Outcome::no("Rotating", "a new secret is on its way into the Secret"),
            None => Outcome::no("Minting", "the first secret is on its way into the Secret"),
        },
        Cause::Suspended(Suspension::Spec) => Outcome::yes("Suspended", "suspended, as the spec says"),
        Cause::Suspended(Suspension::Lock(lock)) => {
            Outcome::yes("Suspended", format!("suspended, as {lock} says"))
        }
        Cause::Invalid(_)
        | Cause::Foreign(_)
        | Cause::NoConsent(_)
        | Cause::Taken(_)
        | Cause::Contested(_)
        | Cause::Rejected(..)
        | Cause::PepperMissing(_)
        | Cause::None => {
            Outcome::yes("Active", format!("Secret {secret} holds version {}", current.unwrap_or_default()))
        }
    }
}

/// The condition Active: whether a check with the Secret's content succeeds.
fn active_now(
    cause: &Cause,
    suspension: Option<&Suspension>,
    status: &ApiTokenStatus,
    delivered: &Outcome,
) -> Outcome {
    match (cause, suspension) {
        (Cause::Revoked, _) => Outcome::no("Revoked", "every secret of this token is refused, for good"),
        (Cause::Expired(at), _) => Outcome::no("Expired", format!("refused since {at}")),
        (Cause::PepperMissing(pepper), _) => Outcome::no(
            "PepperMissing",
            format!("refused, as pepper {} is not there to verify it", pepper.as_str()),
        ),
        (_, Some(suspension)) => Outcome::no("Suspended", suspension.until()),
        _ if current(status).is_none() => Outcome::no("Pending", "no secret has been delivered yet"),
        _ if !delivered.status => delivered.clone(),
        _ => Outcome::yes("Active", "a check with the Secret's content succeeds"),
    }
}

fn phase(cause: &Cause, stalled: bool, suspended: bool, rotates: bool, status: &ApiTokenStatus) -> Phase {
    match cause {
        Cause::Revoked => Phase::Revoked,
        Cause::Expired(_) => Phase::Expired,
        // It works all the same.
        _ if stalled && !matches!(cause, Cause::Contested(_)) => Phase::Failed,
        _ if suspended => Phase::Suspended,
        _ if current(status).is_none() => Phase::Pending,
        _ if rotates || pending(status).is_some() => Phase::Rotating,
        _ => Phase::Active,
    }
}

/// The condition Delivered: whether the Secret contains a version of the status.
fn delivered(observed: &Observed<'_>, status: &ApiTokenStatus, secret: &str, cause: &Cause) -> Outcome {
    let deletes = observed.spec.as_ref().is_ok_and(|spec| spec.on_revoke == OnRevoke::Delete);
    let contained = observed.secret.key_id().and_then(|key_id| status.version_of(key_id.as_str()));
    match (cause, contained) {
        (Cause::Revoked, None) if deletes => {
            Outcome::no("Deleted", format!("Secret {secret} is deleted, as secret.onRevoke says"))
        }
        (_, Some(version)) => {
            Outcome::yes("Delivered", format!("Secret {secret} holds version {}", version.version))
        }
        (Cause::Awaited(_), _) => Outcome::no("SecretNotFound", format!("there is no Secret {secret} yet")),
        (Cause::NoConsent(_), _) => Outcome::no(
            "SecretConflict",
            format!("Secret {secret} may not be written without its owner's label"),
        ),
        (Cause::Taken(keys), _) => Outcome::no(
            "SecretConflict",
            format!("Secret {secret} has {} from somebody else", keys.join(", ")),
        ),
        (Cause::Foreign(_), _) => {
            Outcome::no("SecretConflict", format!("Secret {secret} is not tokenward's"))
        }
        (Cause::Rejected(RejectionKind::Forbidden, _), _) => {
            Outcome::no("Forbidden", format!("Secret {secret} may not be read or written"))
        }
        (Cause::Rejected(RejectionKind::Invalid, _), _) => {
            Outcome::no("SecretInvalid", format!("Secret {secret} is not accepted"))
        }
        _ => match (&observed.secret, active(status)) {
            (_, None) => Outcome::no("Pending", "no secret has been delivered yet"),
            (SecretState::Absent, _) => Outcome::no("SecretMissing", damage(RotationReason::SecretMissing)),
            _ => Outcome::no("SecretTampered", damage(RotationReason::SecretTampered)),
        },
    }
}

fn damage_reason(reason: RotationReason) -> &'static str {
    match reason {
        RotationReason::SecretTampered => "SecretTampered",
        _ => "SecretMissing",
    }
}

fn damage(reason: RotationReason) -> &'static str {
    match reason {
        RotationReason::SecretTampered => "the Secret contains something other than what tokenward wrote",
        _ => "the Secret is gone",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::{RevocationReason, RevocationStatus, TokenVersion, VersionState};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("an instant")
    }

    fn status(states: &[VersionState]) -> ApiTokenStatus {
        let version = |(index, state): (usize, &VersionState)| TokenVersion {
            version: i64::try_from(index).expect("few") + 1,
            key_id: String::new(),
            hash: String::new(),
            state: *state,
            scopes: Vec::new(),
            issued_at: at(0),
            retire_at: (*state == VersionState::Retiring).then(|| at(60)),
            reason: RotationReason::Created,
            mac: String::new(),
        };
        ApiTokenStatus { versions: states.iter().enumerate().map(version).collect(), ..Default::default() }
    }

    fn revoked(enforced_at: Option<Timestamp>) -> ApiTokenStatus {
        ApiTokenStatus {
            revocation: Some(RevocationStatus {
                requested_at: at(0),
                enforced_at,
                reason: RevocationReason::Unspecified,
                source: RevocationSource::Spec,
                actor: None,
                verifiers: None,
                lock: None,
            }),
            ..status(&[VersionState::Revoked])
        }
    }

    fn throttled(stalled: bool) -> Cause {
        Cause::Throttled { reason: RotationReason::SecretTampered, until: at(9), stalled }
    }

    fn rejected(kind: RejectionKind) -> Cause {
        Cause::Rejected(kind, "no".to_owned())
    }

    #[test]
    fn causes_that_stall() {
        for (cause, expected) in [
            (Cause::Invalid("why".to_owned()), Some("InvalidSpec")),
            (Cause::Foreign(None), Some("SecretConflict")),
            (Cause::NoConsent("t".to_owned()), Some("SecretConflict")),
            (Cause::Taken(vec!["password".to_owned()]), Some("SecretConflict")),
            (Cause::Awaited("t".to_owned()), None),
            (Cause::Contested("label x".to_owned()), Some("Contested")),
            (rejected(RejectionKind::Forbidden), Some("Forbidden")),
            (rejected(RejectionKind::Invalid), Some("SecretInvalid")),
            (throttled(true), Some("SecretTampered")),
            (throttled(false), None),
            (Cause::Revoked, None),
            (Cause::Expired(at(1)), None),
            (Cause::Minting, None),
            (Cause::Damaged(RotationReason::SecretMissing), None),
            (Cause::Suspended(Suspension::Spec), None),
            (Cause::None, None),
        ] {
            let reason = stalled(&cause, "s").map(|reason| reason.code);
            assert_eq!(reason, expected, "{cause:?}");
        }
    }

    #[test]
    fn ready_by_cause() {
        let active = || status(&[VersionState::Active]);
        for (cause, status, expected) in [
            (Cause::None, active(), (true, "Active")),
            (Cause::Suspended(Suspension::Spec), active(), (true, "Suspended")),
            (Cause::Expired(at(1)), active(), (true, "Expired")),
            (Cause::Revoked, revoked(None), (false, "Revoking")),
            (Cause::Revoked, revoked(Some(at(1))), (true, "Revoked")),
            (Cause::Minting, status(&[VersionState::Pending]), (false, "Minting")),
            (Cause::Minting, status(&[VersionState::Pending, VersionState::Active]), (false, "Rotating")),
            (Cause::Damaged(RotationReason::SecretMissing), active(), (false, "SecretMissing")),
            (throttled(false), active(), (false, "SecretTampered")),
            (throttled(true), active(), (false, "SecretTampered")),
            (Cause::Foreign(None), active(), (false, "SecretConflict")),
            (rejected(RejectionKind::Invalid), active(), (false, "SecretInvalid")),
        ] {
            let recorded = is_enforced(&status);
            let ready = ready(&cause, stalled(&cause, "s").as_ref(), &status, "s", recorded);
            assert_eq!((ready.status, ready.reason.code), expected, "{cause:?}");
        }
    }

    #[test]
    fn active_by_cause() {
        let delivered = Outcome::yes("Delivered", "");
        let missing = Outcome::no("SecretMissing", "");
        let active = || status(&[VersionState::Active]);
        for (cause, suspended, status, delivered, expected) in [
            (Cause::None, false, active(), &delivered, (true, "Active")),
            (Cause::Foreign(None), false, active(), &delivered, (true, "Active")),
            (Cause::Suspended(Suspension::Spec), true, active(), &delivered, (false, "Suspended")),
            (Cause::Foreign(None), true, active(), &missing, (false, "Suspended")),
            (Cause::Revoked, true, active(), &delivered, (false, "Revoked")),
            (Cause::Expired(at(1)), true, active(), &delivered, (false, "Expired")),
            (Cause::Minting, false, status(&[VersionState::Pending]), &missing, (false, "Pending")),
            (Cause::None, false, active(), &missing, (false, "SecretMissing")),
        ] {
            let active = active_now(&cause, suspended.then_some(&Suspension::Spec), &status, delivered);
            assert_eq!((active.status, active.reason.code), expected, "{cause:?}");
        }
    }

    #[test]
    fn phase_by_cause() {
        let active = || status(&[VersionState::Active]);
        for (cause, suspended, status, expected) in [
            (Cause::Revoked, true, active(), Phase::Revoked),
            (Cause::Expired(at(1)), true, active(), Phase::Expired),
            (Cause::Foreign(None), true, active(), Phase::Failed),
            (Cause::Suspended(Suspension::Spec), true, active(), Phase::Suspended),
            (Cause::Minting, false, status(&[VersionState::Pending]), Phase::Pending),
            (Cause::Minting, false, status(&[VersionState::Pending, VersionState::Active]), Phase::Rotating),
            (Cause::None, false, status(&[VersionState::Active, VersionState::Retiring]), Phase::Rotating),
            (Cause::None, false, active(), Phase::Active),
        ] {
            let stalled = stalled(&cause, "s").is_some();
            let rotates = retiring(&status).next().is_some();
            assert_eq!(phase(&cause, stalled, suspended, rotates, &status), expected, "{cause:?}");
        }
    }
}
