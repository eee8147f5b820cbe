//! The finalizer, which makes sure that the deletion of a token is reported.
//!
//! A deleted object has no status to record anything in. So an ApiToken whose deletion a TokenWebhook subscribes to
//! carries a finalizer: the deletion is recorded in its outbox like any event, and the object is released as soon as
//! that event is delivered, and after [`DELETION_DELIVERY_TIMEOUT`] in any case. Events that are undelivered by then
//! move into the status of the TokenWebhook. If that can't be written until [`HANDOVER_TIMEOUT`], or the TokenWebhook
//! is deleted too, as with its namespace, they are dropped: the deletion of a namespace never hangs on an endpoint.

use jiff::{SignedDuration, Timestamp};

use super::observed::Observed;
use super::step::{Handover, Step};
use super::transitions::{add_to_outbox, current_version, remove_delivered, remove_missing_webhooks};
use crate::crd::EventType;
use crate::crd::labels::WEBHOOKS_FINALIZER;
use crate::outbox::events::NewEvent;

/// How long a deletion waits, from its deletionTimestamp on, for the delivery of its event.
const DELETION_DELIVERY_TIMEOUT: SignedDuration = SignedDuration::from_secs(10);
/// How long it waits, from its deletionTimestamp on, for undelivered events to be stored in the TokenWebhook.
const HANDOVER_TIMEOUT: SignedDuration = SignedDuration::from_secs(30);

/// What is repaired if somebody else takes the finalizer off, for people.
pub const FINALIZER_REPAIR: &str = "finalizer tokenward.dev/webhooks of the ApiToken";

/// The step that adds or removes the finalizer of a token that is not being deleted, if one is needed.
pub(super) fn ensure(observed: &Observed<'_>, now: Timestamp) -> Option<Step> {
    match (wants_deletion(observed), has_finalizer(observed)) {
        // If somebody else takes it off each time, the token does not wait for it.
        (true, false) => retry_at(observed, now).is_none().then_some(Step::AddFinalizer),
        (false, true) => Some(Step::RemoveFinalizer(Handover::default())),
        (true, true) | (false, false) => None,
    }
}

/// Whether the finalizer is wanted and not there.
pub(super) fn is_missing(observed: &Observed<'_>) -> bool {
    wants_deletion(observed) && !has_finalizer(observed)
}

/// When a missing finalizer is added again.
pub(super) fn retry_at(observed: &Observed<'_>, now: Timestamp) -> Option<Timestamp> {
    let contest = observed.contests.finalizer.as_ref().filter(|_| is_missing(observed))?;
    contest.holds(&[FINALIZER_REPAIR.to_owned()], observed.token.metadata.generation, now)
}

/// The next step of a token that is being deleted.
pub(super) fn finalize(observed: &Observed<'_>, now: Timestamp) -> Step {
    if !has_finalizer(observed) {
        return Step::Wait(None);
    }
    let mut status = observed.status().cloned().unwrap_or_default();
    let mut recorded = status.outbox.iter().flat_map(|outbox| &outbox.events);
    if !recorded.any(|event| event.type_ == EventType::Deleted.as_str()) && wants_deletion(observed) {
        let deleted = NewEvent { type_: EventType::Deleted, version: current_version(&status), reason: None };
        add_to_outbox(&mut status, observed, &[deleted], now);
        return Step::Record(Box::new(status), Vec::new());
    }
    remove_missing_webhooks(&mut status, observed);
    remove_delivered(&mut status, observed);
    let undelivered = status.outbox.map(|outbox| outbox.events).unwrap_or_default();
    let since = observed.token.metadata.deletion_timestamp.as_ref().map_or(now, |time| time.0);
    let after = |wait| since.checked_add(wait).unwrap_or(since);
    if undelivered.is_empty() || now >= after(DELETION_DELIVERY_TIMEOUT) {
        let best_effort = now >= after(HANDOVER_TIMEOUT);
        return Step::RemoveFinalizer(Handover { undelivered, best_effort });
    }
    Step::Wait(Some(after(DELETION_DELIVERY_TIMEOUT)))
}

fn wants_deletion(observed: &Observed<'_>) -> bool {
    if observed.subscriptions.is_empty() {
        return false;
    }
    let labels = observed.token.metadata.labels.clone().unwrap_or_default();
    observed.subscriptions.iter().any(|subscription| subscription.selects(EventType::Deleted, &labels))
}

fn has_finalizer(observed: &Observed<'_>) -> bool {
    observed.token.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == WEBHOOKS_FINALIZER)
}
