//! Transitions of a token, and the two kinds of event that report them: a Kubernetes Event for each, and an event in the
//! outbox for those that TokenWebhooks can subscribe to.
//!
//! [`TransitionKind`] and [`EventType`] are two lists because neither contains the other. A lost event, a rebuilt status
//! and a stall concern the users of the cluster only. A deletion has no Kubernetes Event, since its object is gone, and
//! a ping is no transition of any token.
//!
//! An event enters the outbox in the status write that makes the transition. Delivered events are removed in batches:
//! one write for several events and endpoints, and none of its own if the status is written anyway.

use std::sync::Arc;

use jiff::Timestamp;

use super::observed::Observed;
use super::spec::Spec;
use super::versions::{active, overlaps, retiring};
use crate::crd::{
    ApiTokenStatus, ConditionType, EventType, OutboxEvent, Outcome, Reason, RotationReason, find_condition,
};
use crate::lock::Lock;
use crate::outbox::events;
use crate::outbox::events::{NewEvent, Owner};

/// A change of a token that is worth an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    pub kind: TransitionKind,
    /// A sentence for people. Never contains a secret.
    pub message: String,
    /// The version concerned, if it is not the current one.
    pub version: Option<i64>,
    /// The lock that made it, which may have made it for many tokens.
    pub lock: Option<Arc<Lock>>,
}

/// What can happen to a token, by the reasons of its Kubernetes Events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransitionKind {
    /// The Secret contains the first token.
    Minted,
    /// The Secret contains a new token.
    Rotated,
    /// A replaced version no longer works.
    KeyRetired,
    /// The token is revoked for good.
    Revoked,
    /// The token is refused until it is resumed.
    Suspended,
    /// The token is no longer suspended, or `expiresAt` was moved.
    Resumed,
    /// The token expires soon.
    Expiring,
    /// The token is past its `expiresAt`.
    Expired,
    /// The outbox was full, so an event was dropped before every TokenWebhook received it.
    EventLost,
    /// The status was lost and has been rebuilt from the seal of the Secret.
    Rebuilt,
    /// The controller cannot go on until somebody acts.
    Stalled,
}

impl TransitionKind {
    /// The `reason` of the Kubernetes Event.
    pub fn event_reason(self) -> &'static str {
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

    /// Whether the Kubernetes Event has the type `Warning`.
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

    /// The event that TokenWebhooks can subscribe to. `None`: it is for the users of the cluster only.
    fn event_type(self) -> Option<EventType> {
        match self {
            Self::Minted => Some(EventType::Created),
            Self::Rotated => Some(EventType::Rotated),
            Self::KeyRetired => Some(EventType::KeyRetired),
            Self::Revoked => Some(EventType::Revoked),
            Self::Suspended => Some(EventType::Suspended),
            Self::Resumed => Some(EventType::Resumed),
            Self::Expiring => Some(EventType::Expiring),
            Self::Expired => Some(EventType::Expired),
            Self::EventLost | Self::Rebuilt | Self::Stalled => None,
        }
    }
}

impl Transition {
    pub(super) fn new(kind: TransitionKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), version: None, lock: None }
    }

    /// Sets the lock that made it.
    pub(super) fn by(self, lock: Arc<Lock>) -> Self {
        Self { lock: Some(lock), ..self }
    }

    /// Sets the version concerned, where that is not the current one.
    pub(super) fn about(self, version: i64) -> Self {
        Self { version: Some(version), ..self }
    }

    /// A version was written into the Secret.
    pub(super) fn delivered(status: &ApiTokenStatus, spec: &Spec, version: i64) -> Self {
        let secret = &spec.secret_name;
        let reason = status.rotation.as_ref().and_then(|r| r.last_reason).unwrap_or(RotationReason::Created);
        if reason == RotationReason::Created {
            return Self::new(TransitionKind::Minted, format!("version {version} is in Secret {secret}"));
        }
        let earlier = overlaps(retiring(status)).unwrap_or_else(|| "no earlier version works".to_owned());
        Self::new(
            TransitionKind::Rotated,
            format!("version {version} is in Secret {secret} ({}); {earlier}", reason.as_str()),
        )
    }

    /// A replaced version no longer works.
    pub(super) fn retired(version: i64, why: &str) -> Self {
        let message = format!("version {version} is refused from now on: {why}");
        Self::new(TransitionKind::KeyRetired, message).about(version)
    }

    /// The event for the outbox, if TokenWebhooks can subscribe to one.
    fn webhook_event(&self, status: &ApiTokenStatus) -> Option<NewEvent> {
        let type_ = self.kind.event_type()?;
        let reason = match self.kind {
            TransitionKind::Minted | TransitionKind::Rotated => {
                status.rotation.as_ref().and_then(|rotation| rotation.last_reason).map(RotationReason::as_str)
            }
            TransitionKind::Revoked => {
                status.revocation.as_ref().map(|revocation| revocation.reason.as_str())
            }
            _ => None,
        };
        let version = self.version.or_else(|| current_version(status));
        Some(NewEvent { type_, version, reason: reason.map(str::to_owned) })
    }
}

/// The version that works, or was the last to.
pub(super) fn current_version(status: &ApiTokenStatus) -> Option<i64> {
    active(status).or(status.versions.first()).map(|version| version.version)
}

/// Adds the transitions that follow from a change of the conditions, before the new ones replace those in the status.
/// `suspending` is the lock that suspends the token, if one does, and `stalled` the reason of that condition, if it is true.
pub(super) fn add_condition_changes(
    status: &ApiTokenStatus,
    active: &Outcome,
    suspending: Option<Arc<Lock>>,
    stalled: Option<&Reason>,
    transitions: &mut Vec<Transition>,
) {
    let reason_of =
        |type_| find_condition(&status.conditions, type_).map(|condition| condition.reason.as_str());
    let before = reason_of(ConditionType::Active);
    let entered = |code: &str| active.reason.code == code && before != Some(code);
    if entered("Suspended") {
        let transition = Transition::new(TransitionKind::Suspended, active.reason.message.clone());
        transitions.push(Transition { lock: suspending, ..transition });
    }
    if entered("Expired") {
        transitions.push(Transition::new(TransitionKind::Expired, active.reason.message.clone()));
    }
    if active.status && matches!(before, Some("Suspended" | "Expired")) {
        transitions.push(Transition::new(TransitionKind::Resumed, "accepted again"));
    }
    let stalled = stalled.filter(|reason| reason_of(ConditionType::Stalled) != Some(reason.code));
    if let Some(Reason { code, message }) = stalled {
        transitions.push(Transition::new(TransitionKind::Stalled, format!("{code}: {message}")));
    }
}

/// Adds the notice that the token expires soon, once for each `expiresAt`.
pub(super) fn add_expiry_notice(
    status: &mut ApiTokenStatus,
    observed: &Observed<'_>,
    transitions: &mut Vec<Transition>,
    now: Timestamp,
) {
    let Some(at) = observed.expires_soon(now) else { return };
    if status.revocation.is_none() && active(status).is_some() && status.last_expiry_notice != Some(at) {
        status.last_expiry_notice = Some(at);
        transitions.push(Transition::new(
            TransitionKind::Expiring,
            format!("expires at {at}; to keep it, set a later expiresAt"),
        ));
    }
}

/// Records the transitions in the outbox, for the TokenWebhooks that subscribe to them. An event that is dropped for
/// want of room is another transition.
pub(super) fn record_in_outbox(
    status: &mut ApiTokenStatus,
    observed: &Observed<'_>,
    transitions: &mut Vec<Transition>,
    now: Timestamp,
) {
    let events: Vec<NewEvent> =
        transitions.iter().filter_map(|transition| transition.webhook_event(status)).collect();
    for lost in add_to_outbox(status, observed, &events, now) {
        let message = format!(
            "the outbox is full, so {} of {} was dropped and will not be delivered to {}; check why deliveries fail",
            lost.type_,
            lost.time,
            lost.webhooks.join(", ")
        );
        transitions.push(Transition::new(TransitionKind::EventLost, message));
    }
}

/// Adds events to the outbox. Returns those that were dropped to make room.
pub(super) fn add_to_outbox(
    status: &mut ApiTokenStatus,
    observed: &Observed<'_>,
    events: &[NewEvent],
    now: Timestamp,
) -> Vec<OutboxEvent> {
    if observed.subscriptions.is_empty() {
        return Vec::new();
    }
    let metadata = &observed.token.metadata;
    let labels = metadata.labels.clone().unwrap_or_default();
    let owner = Owner { uid: metadata.uid.as_deref().unwrap_or_default(), labels: &labels };
    events::record(&mut status.outbox, owner, observed.subscriptions, events, now)
}

/// Removes the events that every TokenWebhook has accepted.
pub(super) fn remove_delivered(status: &mut ApiTokenStatus, observed: &Observed<'_>) {
    events::remove_delivered(&mut status.outbox, &observed.receipts.accepted);
}

/// Removes TokenWebhooks that no longer exist from the events that wait for them.
pub(super) fn remove_missing_webhooks(status: &mut ApiTokenStatus, observed: &Observed<'_>) {
    let exists = |name: &str| observed.subscriptions.iter().any(|s| s.name() == name);
    events::remove_missing_webhooks(&mut status.outbox, exists);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active(status: bool, code: &'static str) -> Outcome {
        Outcome { status, reason: Reason::new(code, format!("{code} now")) }
    }

    #[test]
    fn a_change_of_the_active_condition_is_a_transition() {
        for (before, after, expected) in [
            (None, active(true, "Active"), None),
            (Some(active(true, "Active")), active(true, "Active"), None),
            (Some(active(true, "Active")), active(false, "Suspended"), Some(TransitionKind::Suspended)),
            (Some(active(false, "Suspended")), active(false, "Suspended"), None),
            (Some(active(false, "Suspended")), active(true, "Active"), Some(TransitionKind::Resumed)),
            (Some(active(true, "Active")), active(false, "Expired"), Some(TransitionKind::Expired)),
            (Some(active(false, "Expired")), active(true, "Active"), Some(TransitionKind::Resumed)),
            (Some(active(false, "Pending")), active(true, "Active"), None),
        ] {
            let mut status = ApiTokenStatus::default();
            if let Some(before) = before.clone() {
                let mut conditions = crate::crd::Conditions::after(&[], None, Timestamp::UNIX_EPOCH);
                conditions.set(ConditionType::Active, before);
                status.conditions = conditions.into_vec();
            }
            let mut transitions = Vec::new();
            add_condition_changes(&status, &after, None, None, &mut transitions);
            let kinds: Vec<_> = transitions.iter().map(|transition| transition.kind).collect();
            assert_eq!(kinds, expected.into_iter().collect::<Vec<_>>(), "{before:?} -> {after:?}");
        }
    }

    #[test]
    fn a_stall_is_a_transition_once_for_each_reason() {
        let mut status = ApiTokenStatus::default();
        let mut conditions = crate::crd::Conditions::after(&[], None, Timestamp::UNIX_EPOCH);
        conditions.set(ConditionType::Stalled, Outcome::yes("Forbidden", "denied"));
        status.conditions = conditions.into_vec();
        for (code, expected) in [("Forbidden", 0), ("InvalidSpec", 1)] {
            let mut transitions = Vec::new();
            let stalled = Reason::new(code, "why");
            add_condition_changes(&status, &active(true, "Active"), None, Some(&stalled), &mut transitions);
            assert_eq!(transitions.len(), expected, "{code}");
        }
    }
}
