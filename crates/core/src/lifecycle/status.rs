//! What is told of a token: conditions, the phase, and the events of a step. All derived from the same
//! observation, so that they never contradict each other.

use jiff::Timestamp;

use super::rotate::Due;
use super::versions::{active, pending, retiring};
use super::{Observed, RefusalKind, SecretState, Spec};
use crate::crd::{
    ApiTokenStatus, ConditionType, Conditions, OnRevoke, Outcome, Phase, RotationReason, find_condition,
};

/// Something that happened to a token, to be told as a Kubernetes Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// A sentence for people. Never holds a secret.
    pub message: String,
    /// The version that it is about, where that is not the current one.
    pub version: Option<i64>,
}

/// What can happen to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Its first secret is in the Secret.
    Minted,
    /// A new secret is in the Secret.
    Rotated,
    /// A replaced secret no longer works.
    KeyRetired,
    /// It is dead for good.
    Revoked,
    /// It is stopped until it is resumed.
    Suspended,
    /// It is no longer suspended, or its expiry was moved.
    Resumed,
    /// It expires soon.
    Expiring,
    /// It is past its expiry.
    Expired,
    /// TokenWebhooks were not told of something, for want of room in the status.
    EventLost,
    /// Its lost status was read back.
    Rebuilt,
    /// Somebody has to act.
    Stalled,
}

impl EventKind {
    /// Its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minted => "Minted",
            Self::Rotated => "Rotated",
            Self::KeyRetired => "KeyRetired",
            Self::Revoked => "Revoked",
            Self::Suspended => "Suspended",
            Self::Resumed => "Resumed",
            Self::Expiring => "Expiring",
            Self::Expired => "Expired",
            Self::EventLost => "EventLost",
            Self::Rebuilt => "Rebuilt",
            Self::Stalled => "Stalled",
        }
    }

    /// Whether it asks for attention.
    pub fn is_warning(self) -> bool {
        match self {
            Self::Expiring | Self::Expired | Self::EventLost | Self::Stalled | Self::Rebuilt => true,
            Self::Minted
            | Self::Rotated
            | Self::KeyRetired
            | Self::Revoked
            | Self::Suspended
            | Self::Resumed => false,
        }
    }
}

impl Event {
    pub(super) fn new(kind: EventKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), version: None }
    }

    /// About a version that is not the current one.
    pub(super) fn about(self, version: i64) -> Self {
        Self { version: Some(version), ..self }
    }

    /// A version has reached the Secret.
    pub(super) fn delivered(status: &ApiTokenStatus, spec: &Spec, version: i64) -> Self {
        let secret = &spec.secret_name;
        let reason = status.rotation.as_ref().and_then(|r| r.last_reason).unwrap_or(RotationReason::Created);
        if reason == RotationReason::Created {
            return Self::new(EventKind::Minted, format!("version {version} is in Secret {secret}"));
        }
        let overlap = match retiring(status) {
            Some(old) => match old.retire_at {
                Some(at) => format!("; version {} works until {at}", old.version),
                None => String::new(),
            },
            None => "; no earlier version works".to_owned(),
        };
        Self::new(
            EventKind::Rotated,
            format!("version {version} is in Secret {secret} ({reason:?}){overlap}"),
        )
    }
}

/// Why a token is not simply active: the first of these that holds.
enum Cause {
    Revoked,
    Invalid(String),
    Foreign,
    Refused(RefusalKind, String),
    Expired(Timestamp),
    Throttled { reason: RotationReason, until: Timestamp, stalled: bool },
    Minting,
    Damaged(RotationReason),
    Queued(RotationReason, Timestamp),
    Suspended,
    None,
}

fn cause(observed: &Observed<'_>, status: &ApiTokenStatus, due: Due, now: Timestamp) -> Cause {
    if status.revocation.is_some() {
        return Cause::Revoked;
    }
    if let Err(invalid) = &observed.spec {
        return Cause::Invalid(invalid.to_string());
    }
    if let Some(at) = observed.token.spec.expires_at.filter(|_| observed.expired(now)) {
        return Cause::Expired(at);
    }
    if let Some(refusal) = &observed.refusal {
        return Cause::Refused(refusal.kind, refusal.message.clone());
    }
    match (&observed.secret, due) {
        (SecretState::Foreign, _) => Cause::Foreign,
        (SecretState::Unreadable(message), _) => Cause::Refused(RefusalKind::Forbidden, message.clone()),
        (_, Due::Throttled { reason, until, stalled }) => Cause::Throttled { reason, until, stalled },
        _ if pending(status).is_some() || active(status).is_none() => Cause::Minting,
        (SecretState::Absent, _) => Cause::Damaged(RotationReason::SecretMissing),
        (SecretState::Ours(_), _) if observed.secret.holds().is_none() => {
            Cause::Damaged(RotationReason::SecretTampered)
        }
        (_, Due::Queued(reason, until)) => Cause::Queued(reason, until),
        _ if observed.suspended() => Cause::Suspended,
        _ => Cause::None,
    }
}

/// Writes conditions and phase, and adds the events that their changes tell of.
pub(super) fn describe(
    status: &mut ApiTokenStatus,
    observed: &Observed<'_>,
    due: Due,
    events: &mut Vec<Event>,
    now: Timestamp,
) {
    let cause = cause(observed, status, due, now);
    let secret = observed.spec.as_ref().map_or("the Secret", |spec| &spec.secret_name);
    let enforced = status.revocation.as_ref().is_some_and(|r| r.enforced_at.is_some());
    let current = active(status).map(|version| version.version);
    let delivered = delivered(observed, status, secret, &cause);

    let stuck = match &cause {
        Cause::Invalid(message) => Some(("InvalidSpec", message.clone())),
        Cause::Foreign => Some((
            "SecretConflict",
            format!(
                "Secret {secret} exists and is not tokenward's, so it is not written; delete it, or create an ApiToken with another secret.name"
            ),
        )),
        Cause::Refused(RefusalKind::Forbidden, message) => Some((
            "Forbidden",
            format!("the API server refused to let the controller read or write Secret {secret}: {message}"),
        )),
        Cause::Refused(RefusalKind::Invalid, message) => {
            Some(("SecretInvalid", format!("the API server does not accept Secret {secret}: {message}")))
        }
        Cause::Throttled { reason, until, stalled: true } => Some((
            damage_reason(*reason),
            format!(
                "Secret {secret} was broken too often within an hour ({}); find out by what. The next repair is at {until}; to have it now, change rotation.trigger",
                damage(*reason)
            ),
        )),
        _ => None,
    };

    let ready = match (&cause, &stuck) {
        (_, Some((reason, message))) => Outcome::no(reason, message.clone()),
        (Cause::Revoked, _) if enforced => Outcome::yes("Revoked", "revoked for good, as the spec says"),
        (Cause::Revoked, _) => Outcome::no("Revoking", "the revocation is being recorded"),
        (Cause::Expired(at), _) if status.versions.is_empty() => Outcome::yes(
            "Expired",
            format!("expiresAt {at} had passed before a secret was minted; set a later one"),
        ),
        (Cause::Expired(at), _) => Outcome::yes("Expired", format!("expired at {at}, as the spec says")),
        (Cause::Throttled { reason, until, .. }, _) => Outcome::no(
            damage_reason(*reason),
            format!("{}; a new secret is minted at {until}", damage(*reason)),
        ),
        (Cause::Damaged(reason), _) => Outcome::no(damage_reason(*reason), damage(*reason)),
        (Cause::Minting, _) => match current {
            Some(_) => Outcome::no("Rotating", "a new secret is on its way into the Secret"),
            None => Outcome::no("Minting", "the first secret is on its way into the Secret"),
        },
        // The token works and nobody can hasten it, so whoever waits for Ready need not wait for weeks of overlap.
        (Cause::Queued(reason, until), _) => Outcome::yes(
            "RotationQueued",
            format!(
                "Secret {secret} holds version {}; the next rotation ({reason:?}) waits until {until}, when the open overlap ends: only two secrets work at once",
                current.unwrap_or_default()
            ),
        ),
        (Cause::Suspended, _) => Outcome::yes("Suspended", "suspended, as the spec says"),
        _ => Outcome::yes("Active", format!("Secret {secret} holds version {}", current.unwrap_or_default())),
    };

    let active_now = match &cause {
        Cause::Revoked => Outcome::no("Revoked", "every secret of this token is refused, for good"),
        Cause::Expired(at) => Outcome::no("Expired", format!("refused since {at}")),
        _ if observed.suspended() => Outcome::no("Suspended", "refused until suspend is false"),
        _ if current.is_none() => Outcome::no("Pending", "no secret has been delivered yet"),
        _ if !delivered.status => Outcome::no(delivered.reason, delivered.message.clone()),
        _ => Outcome::yes("Active", "a check with the Secret's content succeeds"),
    };

    let overlap = retiring(status).filter(|_| status.revocation.is_none());
    let overlap = overlap.and_then(|old| Some((old.version, old.retire_at?)));
    let phase = match (&cause, &stuck) {
        (Cause::Revoked, _) => Phase::Revoked,
        (Cause::Expired(_), _) => Phase::Expired,
        (_, Some(_)) => Phase::Failed,
        _ if observed.suspended() => Phase::Suspended,
        _ if current.is_none() => Phase::Pending,
        _ if overlap.is_some() || pending(status).is_some() => Phase::Rotating,
        _ => Phase::Active,
    };

    tell(status, &active_now, stuck.as_ref(), events);
    tell_of_expiry(status, observed, events, now);

    let before = std::mem::take(&mut status.conditions);
    let mut conditions = Conditions::after(&before, status.observed_generation, now);
    let under_way = !ready.status && stuck.is_none();
    conditions.set(ConditionType::Ready, ready.clone()).set(ConditionType::Active, active_now);
    conditions.set(ConditionType::Delivered, delivered);
    // The rest stand only while they hold, as kstatus has it.
    if let Some(revocation) = &status.revocation {
        let reason = if enforced { "Enforced" } else { "Requested" };
        conditions.set(
            ConditionType::Revoked,
            Outcome::yes(reason, format!("revoked at {} ({:?})", revocation.requested_at, revocation.reason)),
        );
    }
    if let Some((version, until)) = overlap {
        conditions.set(
            ConditionType::Rotating,
            Outcome::yes("Overlap", format!("version {version} works until {until}")),
        );
    }
    if let Some((reason, message)) = stuck {
        conditions.set(ConditionType::Stalled, Outcome::yes(reason, message));
    } else if under_way {
        conditions.set(ConditionType::Reconciling, Outcome::yes(ready.reason, ready.message));
    }
    status.conditions = conditions.into_vec();
    status.phase = Some(phase);
}

/// Whether the Secret holds the current version.
fn delivered(observed: &Observed<'_>, status: &ApiTokenStatus, secret: &str, cause: &Cause) -> Outcome {
    let deletes = observed.spec.as_ref().is_ok_and(|spec| spec.on_revoke == OnRevoke::Delete);
    let holds = observed.secret.holds();
    let held = holds.and_then(|held| status.version_of(held.as_str()));
    match (cause, held) {
        (Cause::Revoked, None) if deletes => {
            Outcome::no("Deleted", format!("Secret {secret} is deleted, as secret.onRevoke says"))
        }
        (_, Some(held)) => {
            Outcome::yes("Delivered", format!("Secret {secret} holds version {}", held.version))
        }
        (Cause::Foreign, _) => Outcome::no("SecretConflict", format!("Secret {secret} is not tokenward's")),
        (Cause::Refused(RefusalKind::Forbidden, _), _) => {
            Outcome::no("Forbidden", format!("Secret {secret} may not be read or written"))
        }
        (Cause::Refused(RefusalKind::Invalid, _), _) => {
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
        RotationReason::SecretTampered => "the Secret holds something else than tokenward had written",
        _ => "the Secret is gone",
    }
}

/// The events that a change of conditions tells of.
fn tell(
    status: &ApiTokenStatus,
    active: &Outcome,
    stuck: Option<&(&'static str, String)>,
    events: &mut Vec<Event>,
) {
    let reason_of =
        |type_| find_condition(&status.conditions, type_).map(|condition| condition.reason.as_str());
    let before = reason_of(ConditionType::Active);
    let entered = |reason: &str| active.reason == reason && before != Some(reason);
    if entered("Suspended") {
        events.push(Event::new(EventKind::Suspended, "refused until suspend is false"));
    }
    if entered("Expired") {
        events.push(Event::new(EventKind::Expired, active.message.clone()));
    }
    if active.status && matches!(before, Some("Suspended" | "Expired")) {
        events.push(Event::new(EventKind::Resumed, "accepted again"));
    }
    if let Some((reason, message)) =
        stuck.filter(|(reason, _)| reason_of(ConditionType::Stalled) != Some(*reason))
    {
        events.push(Event::new(EventKind::Stalled, format!("{reason}: {message}")));
    }
}

/// Tells that the expiry is near, once for each `expiresAt`.
fn tell_of_expiry(
    status: &mut ApiTokenStatus,
    observed: &Observed<'_>,
    events: &mut Vec<Event>,
    now: Timestamp,
) {
    let Some(at) = observed.expires_soon(now) else { return };
    if status.revocation.is_none() && active(status).is_some() && status.last_expiry_notice != Some(at) {
        status.last_expiry_notice = Some(at);
        events.push(Event::new(
            EventKind::Expiring,
            format!("expires at {at}; to keep it, set a later expiresAt"),
        ));
    }
}
