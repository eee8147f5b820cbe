//! What TokenWebhooks are told, and how a deletion is not missed.
//!
//! What has happened goes into the outbox in the status write that makes it so. What was delivered is taken out a
//! moment later, all at once: one write for several events and endpoints, and none of its own if the status is
//! written anyway.
//!
//! A deletion leaves no status to record anything in. So a token that somebody wants to be told the end of carries a
//! finalizer: the deletion is recorded in its outbox like any event, and the object goes as soon as that is delivered,
//! and after [`PATIENCE`] in any case. What is undelivered by then moves into the TokenWebhook's own status. If that
//! can't be written for longer than [`LIMIT`], or the TokenWebhook goes too, as with its namespace, it is given up: a
//! namespace never hangs on an endpoint.

use jiff::{SignedDuration, Timestamp};

use super::status::{Event, EventKind};
use super::versions::active;
use super::{Observed, Step};
use crate::crd::{ApiTokenStatus, OutboxEvent};
use crate::outbox::EventType;
use crate::outbox::events;
use crate::outbox::events::{Owner, Transition};

/// Our finalizer.
pub const FINALIZER: &str = "tokenward.dev/webhooks";
/// How long a deletion waits for its delivery.
const PATIENCE: SignedDuration = SignedDuration::from_secs(10);
/// How long it waits for what is undelivered to be kept elsewhere.
const LIMIT: SignedDuration = SignedDuration::from_secs(30);

/// The end of a token that was held.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Handover {
    /// What is undelivered, for the TokenWebhooks that it names.
    pub undelivered: Vec<OutboxEvent>,
    /// Whether it is released even if that can't be kept.
    pub best_effort: bool,
}

/// Records what has happened for those who want to be told.
pub(super) fn record(
    status: &mut ApiTokenStatus,
    observed: &Observed<'_>,
    events: &mut Vec<Event>,
    now: Timestamp,
) {
    let happened: Vec<Transition> = events.iter().filter_map(|event| happened(event, status)).collect();
    for lost in push(status, observed, &happened, now) {
        let message = format!(
            "no room for {} of {} any more, so {} will not be told of it; see why deliveries fail",
            lost.type_,
            lost.time,
            lost.webhooks.join(", ")
        );
        events.push(Event::new(EventKind::EventLost, message));
    }
}

fn push(
    status: &mut ApiTokenStatus,
    observed: &Observed<'_>,
    happened: &[Transition],
    now: Timestamp,
) -> Vec<OutboxEvent> {
    if observed.subscriptions.is_empty() {
        return Vec::new();
    }
    let metadata = &observed.token.metadata;
    let labels = metadata.labels.clone().unwrap_or_default();
    let owner = Owner { uid: metadata.uid.as_deref().unwrap_or_default(), labels: &labels };
    events::record(&mut status.outbox, owner, observed.subscriptions, happened, now)
}

fn happened(event: &Event, status: &ApiTokenStatus) -> Option<Transition> {
    let rotation = || status.rotation.as_ref()?.last_reason.map(|reason| format!("{reason:?}"));
    let (type_, reason) = match event.kind {
        EventKind::Minted => (EventType::Created, rotation()),
        EventKind::Rotated => (EventType::Rotated, rotation()),
        EventKind::KeyRetired => (EventType::KeyRetired, None),
        EventKind::Revoked => (
            EventType::Revoked,
            status.revocation.as_ref().map(|revocation| format!("{:?}", revocation.reason)),
        ),
        EventKind::Suspended => (EventType::Suspended, None),
        EventKind::Resumed => (EventType::Resumed, None),
        EventKind::Expiring => (EventType::Expiring, None),
        EventKind::Expired => (EventType::Expired, None),
        EventKind::EventLost | EventKind::Rebuilt | EventKind::Stalled => return None,
    };
    Some(Transition { type_, version: event.version.or_else(|| current(status)), reason })
}

/// The version that works, or was the last to.
fn current(status: &ApiTokenStatus) -> Option<i64> {
    active(status).or(status.versions.first()).map(|version| version.version)
}

/// Takes out what is delivered.
pub(super) fn settle(status: &mut ApiTokenStatus, observed: &Observed<'_>) {
    events::settle(&mut status.outbox, &observed.receipts.accepted);
}

/// Takes out what waits for TokenWebhooks that are gone.
pub(super) fn forget_gone(status: &mut ApiTokenStatus, observed: &Observed<'_>) {
    events::forget_gone(&mut status.outbox, |name| observed.subscriptions.iter().any(|s| s.name() == name));
}

/// Whether the finalizer has to be put on or taken off a token that is not being deleted.
pub(super) fn finalizer(observed: &Observed<'_>) -> Option<Step> {
    match (wants_deletion(observed), is_held(observed)) {
        (true, false) => Some(Step::AddFinalizer),
        (false, true) => Some(Step::RemoveFinalizer(Handover::default())),
        (true, true) | (false, false) => None,
    }
}

/// The steps of a token that is being deleted.
pub(super) fn depart(observed: &Observed<'_>, now: Timestamp) -> Step {
    if !is_held(observed) {
        return Step::Wait(None);
    }
    let mut status = observed.status().cloned().unwrap_or_default();
    let deleted = EventType::Deleted;
    let told = status.outbox.iter().flat_map(|o| &o.events).any(|event| event.type_ == deleted.as_str());
    if !told && wants_deletion(observed) {
        let happened = Transition { type_: deleted, version: current(&status), reason: None };
        push(&mut status, observed, &[happened], now);
        return Step::Record(Box::new(status), Vec::new());
    }
    forget_gone(&mut status, observed);
    settle(&mut status, observed);
    let undelivered = status.outbox.map(|outbox| outbox.events).unwrap_or_default();
    let since = observed.token.metadata.deletion_timestamp.as_ref().map_or(now, |time| time.0);
    let after = |wait| since.checked_add(wait).unwrap_or(since);
    if undelivered.is_empty() || now >= after(PATIENCE) {
        return Step::RemoveFinalizer(Handover { undelivered, best_effort: now >= after(LIMIT) });
    }
    Step::Wait(Some(after(PATIENCE)))
}

fn wants_deletion(observed: &Observed<'_>) -> bool {
    if observed.subscriptions.is_empty() {
        return false;
    }
    let labels = observed.token.metadata.labels.clone().unwrap_or_default();
    observed.subscriptions.iter().any(|subscription| subscription.wants(EventType::Deleted, &labels))
}

fn is_held(observed: &Observed<'_>) -> bool {
    observed.token.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}
