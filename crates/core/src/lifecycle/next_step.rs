//! Decides the next step.

use jiff::Timestamp;

use super::authentication::{authenticate, can_judge, verify};
use super::conditions::describe;
use super::finalizer;
use super::locked::{Ended, ended, revocation};
use super::observed::{Observed, RETRY};
use super::revoke;
use super::rotate::{Due, due, update_record};
use super::secret::{desired_metadata, repairs};
use super::spec::Spec;
use super::step::{Announcement, Content, Material, Step};
use super::transitions::{
    Transition, TransitionKind, record_in_outbox, remove_delivered, remove_missing_webhooks,
};
use super::versions::{
    Delivered, Rebuilt, active, end_for_good, make_room, normalise, pending, promote, prune, replaced,
    retire_due, retiring, secret_ref, take_over,
};
use crate::crd::{ApiTokenStatus, OnRevoke, RotationReason, TokenVersion, VersionState};
use crate::instant::to_millisecond;
use crate::token::MacCheck;
use crate::token::format::token_id;

/// Why a version was read back from a seal.
const CHANGED: &str = "somebody else has changed the status, or it was lost";
const RESTORED: &str = "the ApiToken and its Secret were restored, and the secret goes on working";

/// Why a version ends before its overlap does.
const DISPLACED: &str = "it made room, as at most four secrets work at once and this is the oldest; rotate less often, or set a shorter overlap";

/// Decides the next step.
pub fn next_step(observed: &Observed<'_>, now: Timestamp) -> Step {
    let step = decide(observed, to_millisecond(now));
    if let Step::Wait(_) = step {
        // Last: a ledger that can't be written must hold up no revocation.
        let not_in_ledger = revoke::not_in_ledger(observed);
        if !not_in_ledger.is_empty() {
            return Step::EnterIntoLedger(not_in_ledger);
        }
    }
    step
}

fn decide(observed: &Observed<'_>, now: Timestamp) -> Step {
    if observed.deleting() {
        return finalizer::finalize(observed, now);
    }
    if let Some(step) = finalizer::ensure(observed, now) {
        return step;
    }
    let mut transitions = Vec::new();
    let can_judge = can_judge(observed);
    let mut status = update(observed, can_judge, &mut transitions, now);
    let due = match &observed.spec {
        Ok(spec) => due(observed, &status, spec, now),
        Err(_) => Due::Nothing(None),
    };
    if let (Due::Now(reason), Ok(spec)) = (due, &observed.spec) {
        return Step::Announce(Box::new(prepare(observed, status, transitions, spec, reason)));
    }
    if can_judge {
        authenticate(&mut status, &observed.token.metadata, observed.peppers);
    }
    describe(&mut status, observed, due, &mut transitions, now);
    record_in_outbox(&mut status, observed, &mut transitions, now);
    if observed.status() != Some(&status) || observed.receipts.due {
        remove_delivered(&mut status, observed);
    }
    if observed.status() != Some(&status) {
        return Step::Record(Box::new(status), transitions);
    }
    let Ok(spec) = &observed.spec else {
        return Step::Wait(observed.token.spec.expires_at.filter(|at| *at > now));
    };
    match secret_step(observed, &status, spec, now) {
        Step::Wait(until) => {
            let wake = wake(observed, &status, due, now);
            Step::Wait([until, wake].into_iter().flatten().min())
        }
        write => write,
    }
}

/// Brings the status up to date with the time, the Secret and the spec, before any new version.
fn update(
    observed: &Observed<'_>,
    can_judge: bool,
    transitions: &mut Vec<Transition>,
    now: Timestamp,
) -> ApiTokenStatus {
    let mut status = observed.status().cloned().unwrap_or_default();
    status.observed_generation = observed.token.metadata.generation;
    remove_missing_webhooks(&mut status, observed);
    if let Some(why) = revoke::latch(&mut status, observed, now) {
        transitions.push(Transition::new(TransitionKind::Revoked, why));
    }
    if let Ok(spec) = &observed.spec
        && status.revocation.is_none()
        && let Some(Rebuilt { version, restored }) = take_over(&mut status, observed, spec)
    {
        let (why, secret) = (if restored { RESTORED } else { CHANGED }, &spec.secret_name);
        transitions.push(Transition::new(
            TransitionKind::Rebuilt,
            format!("{why}; version {version} was read back from the seal of Secret {secret}"),
        ));
    }
    if can_judge {
        let token_id = status.token_id.as_deref();
        normalise(&mut status.versions, |version| verify(observed, token_id, version) != MacCheck::Invalid);
    }
    match ended(observed, &status) {
        Ended::Token(lock) => {
            status.revocation = Some(revocation(&lock, now));
            let message = format!(
                "every secret of this token is refused from now on, for good, by {lock} ({})",
                lock.why()
            );
            transitions.push(Transition::new(TransitionKind::Revoked, message).by(lock));
        }
        Ended::Versions(ended) => {
            for (number, lock) in ended {
                end_for_good(status.versions.iter_mut().filter(|version| version.version == number));
                transitions.push(Transition::retired(number, &format!("{lock} has ended it")).by(lock));
            }
        }
    }
    if let Ok(spec) = &observed.spec {
        if status.revocation.is_none()
            && can_judge
            && let Some(Delivered { version, cut }) = promote(&mut status, observed, spec, now)
        {
            transitions.extend(cut.into_iter().map(|old| {
                Transition::retired(old, &format!("version {version} replaced it without an overlap"))
            }));
            transitions.push(Transition::delivered(&status, spec, version));
        }
        status.secret_ref = secret_ref(observed, &status, spec).or(status.secret_ref);
    }
    let cut = |version: &&mut TokenVersion| {
        matches!(version.state, VersionState::Active | VersionState::Retiring)
            && observed.cut_by_not_before(version, now)
    };
    let cut = end_for_good(status.versions.iter_mut().filter(cut)).into_iter();
    transitions.extend(cut.map(|version| Transition::retired(version, "rotation.notBefore has passed it")));
    let token_id = status.token_id.clone();
    let known_revoked = |version: &&mut TokenVersion| {
        version.state.is_live() && observed.is_in_ledger(token_id.as_deref(), &version.key_id)
    };
    let known_revoked = end_for_good(status.versions.iter_mut().filter(known_revoked)).into_iter();
    transitions.extend(known_revoked.map(|version| Transition::retired(version, "it was revoked before")));
    let not_before = observed.not_before();
    if status.rotation.as_ref().and_then(|rotation| rotation.not_before) != not_before {
        status.rotation.get_or_insert_default().not_before = not_before;
    }
    let retired = retire_due(&mut status.versions, now).into_iter();
    transitions.extend(retired.map(|version| Transition::retired(version, "its overlap has ended")));
    revoke::enforce(&mut status, observed, now);
    prune(&mut status.versions, observed);
    if let Ok(spec) = &observed.spec {
        update_record(&mut status, observed, spec);
    }
    status
}

/// Makes room for a new version, and records why it is issued.
fn prepare(
    observed: &Observed<'_>,
    mut status: ApiTokenStatus,
    mut transitions: Vec<Transition>,
    spec: &Spec,
    reason: RotationReason,
) -> Announcement {
    let replaced = pending(&status).map(|version| version.version);
    status.versions.retain(|version| version.state != VersionState::Pending);
    let displaced = make_room(&mut status.versions).into_iter();
    transitions.extend(displaced.map(|version| Transition::retired(version, DISPLACED)));
    let newest = status.versions.iter().map(|version| version.version).max().unwrap_or(0);
    let is_authentic = |stored: &ApiTokenStatus| {
        let token_id = stored.token_id.as_deref();
        stored.versions.iter().any(|version| verify(observed, token_id, version) == MacCheck::Valid)
    };
    // In the new one, what was taken over from a seal is authentic; in the stored one, what has changed since.
    if !is_authentic(&status) && !observed.status().is_some_and(is_authentic) {
        status.token_id = Some(token_id(observed.token.metadata.uid.as_deref().unwrap_or_default()));
    }
    let rotation = status.rotation.get_or_insert_default();
    rotation.spec_hash = Some(spec.hash.clone());
    if let Some(trigger) = &spec.trigger {
        rotation.handled_trigger = Some(trigger.clone());
    }
    // `announce` inserts the version, once its token exists.
    Announcement { version: replaced.unwrap_or(0).max(newest + 1), reason, status, transitions }
}

/// The status that records a new version, to be written before its token leaves the process, and the transitions to
/// report after it.
pub fn announce(
    observed: &Observed<'_>,
    announcement: Announcement,
    material: &Material,
    now: Timestamp,
) -> (ApiTokenStatus, Vec<Transition>) {
    let now = to_millisecond(now);
    let Announcement { version, reason, mut status, mut transitions } = announcement;
    status.versions.insert(
        0,
        TokenVersion {
            version,
            key_id: material.key_id.to_string(),
            hash: material.hash.to_string(),
            state: VersionState::Pending,
            scopes: observed.spec.as_ref().map(|spec| spec.scopes.clone()).unwrap_or_default(),
            issued_at: now,
            retire_at: None,
            reason,
            mac: String::new(),
        },
    );
    prune(&mut status.versions, observed);
    authenticate(&mut status, &observed.token.metadata, observed.peppers);
    describe(&mut status, observed, Due::Nothing(None), &mut transitions, now);
    record_in_outbox(&mut status, observed, &mut transitions, now);
    remove_delivered(&mut status, observed);
    (status, transitions)
}

/// The key id of the token that belongs under the data key for the previous one, once the Secret is written. It stays there
/// when its overlap has ended, so that a rotation changes the Secret once: whatever restarts pods on a change would do it twice.
pub fn previous_version(status: &ApiTokenStatus, content: Content) -> Option<&str> {
    let previous = match content {
        Content::Minted => active(status),
        Content::Existing => replaced(status),
    };
    previous.map(|version| version.key_id.as_str())
}

/// The write that the Secret needs, if any. The status is recorded by now.
fn secret_step(observed: &Observed<'_>, status: &ApiTokenStatus, spec: &Spec, now: Timestamp) -> Step {
    if let Some(rejection) = &observed.rejection {
        let retry = rejection.retry_at();
        if now < retry && now >= rejection.at {
            return Step::Wait(Some(retry));
        }
    }
    let revoked = status.revocation.is_some();
    if revoked && spec.on_revoke == OnRevoke::Delete && observed.secret.ours().is_some() {
        return Step::DeleteSecret;
    }
    let undelivered = pending(status).filter(|_| !revoked && !observed.expired(now));
    if let Some(version) = undelivered.filter(|_| observed.can_deliver()) {
        return match deliver_at(observed, version, now) {
            Some(at) => Step::Wait(Some(at)),
            None => Step::WriteSecret { key_id: version.key_id.clone(), content: Content::Minted },
        };
    }
    let Some(own) = observed.secret.ours() else { return Step::Wait(None) };
    let Some((version, metadata)) = desired_metadata(observed, spec) else { return Step::Wait(None) };
    let repairs = repairs(own, &metadata);
    if repairs.is_empty() {
        return Step::Wait(None);
    }
    let generation = observed.token.metadata.generation;
    if let Some(contest) = &observed.contests.secret
        && let Some(until) = contest.holds(&repairs, generation, now)
    {
        return Step::Wait(Some(until));
    }
    Step::WriteSecret { key_id: version.key_id.clone(), content: Content::Existing }
}

/// From when a pending version may be written into the Secret; `None` is now. Every verifier must know it before
/// anybody can read it, or the first to use it would be denied.
fn deliver_at(observed: &Observed<'_>, pending: &TokenVersion, now: Timestamp) -> Option<Timestamp> {
    let at = pending.issued_at.checked_add(observed.propagation).ok()?;
    // A clock that was set back must not delay a delivery for longer than the propagation takes.
    (now < at && now >= pending.issued_at).then_some(at)
}

/// When the token has to be reconciled again, if nothing changes until then.
fn wake(observed: &Observed<'_>, status: &ApiTokenStatus, due: Due, now: Timestamp) -> Option<Timestamp> {
    let retry = (!observed.can_deliver() && status.revocation.is_none())
        .then(|| now.checked_add(RETRY).ok())
        .flatten();
    let due = match due {
        Due::Nothing(at) => at,
        Due::Now(_) => None,
        Due::Throttled { until, .. } => Some(until),
    };
    let retirement = retiring(status).filter_map(|version| version.retire_at).min();
    let expiry = observed.token.spec.expires_at.filter(|_| status.revocation.is_none());
    let notice = observed.expiry_notice_at().filter(|_| status.revocation.is_none());
    let contest = observed.contested(now).map(|(_, until)| until);
    let finalizer = finalizer::retry_at(observed, now);
    let confirmation = revoke::confirmation_at(status, now);
    [retry, confirmation, due, retirement, expiry, notice, contest, finalizer]
        .into_iter()
        .flatten()
        .filter(|at| *at > now)
        .min()
}
