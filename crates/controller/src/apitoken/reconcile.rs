//! One token: observe, decide, make the step, until there is nothing left to do.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::runtime::reflector::ObjectRef;
use tracing::{debug, warn};

use super::apply::{Applied, StepContext};
use super::cache::Inspected;
use super::error::Error;
use super::{terminating, unreadable};
use crate::context::Context;
use crate::objects::{Token, TokenKey, resource_version};
use crate::workqueue::Next;
use tokenward_core::crd::ApiToken;
use tokenward_core::lifecycle::{Observed, OwnSecret, SecretState, Spec, Step, inspect, next_step, wipe};
use tokenward_core::proof::{Confirmations, Written};
use tokenward_core::token::Peppers;
use tokenward_runtime::backoff::Backoff;
use tokenward_runtime::cluster::error::{ErrorClass, classify, is_not_found, message};
use tokenward_runtime::cluster::pepper::PepperState;

/// The most steps of one reconciliation, so that a token which never comes to rest can't block others. A guess: a rotation,
/// the longest sequence, takes about four.
const MAX_STEPS: usize = 16;
/// The waits after failures in a row.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));

/// Makes steps until there is nothing to do but wait.
pub(crate) async fn reconcile(token: &Token, context: &Context) -> Result<Next, Error> {
    let key = TokenKey::of(token).ok_or(Error::Unidentified)?;
    let token = match &token.0 {
        Ok(token) => token.clone(),
        Err(invalid) => return unreadable::report(&key, &invalid.error, context).await,
    };
    if is_stale(&token, &key, context) {
        // The watch will deliver the newer version. This is in case that it does not.
        return Ok(Next::After(Duration::from_secs(5)));
    }
    if is_left_alone(&token, &key, context) {
        return Ok(Next::After(terminating::HOLDS_FOR));
    }
    let next = make_steps(token, &key, context).await?;
    context.cache.with_existing(&key.uid, |state| state.failures = 0);
    Ok(next)
}

/// Whether nothing can be made for a token, because its namespace is being deleted. One that is being deleted itself may have a
/// finalizer to be removed.
fn is_left_alone(token: &ApiToken, key: &TokenKey, context: &Context) -> bool {
    let created = token.metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0);
    token.metadata.deletion_timestamp.is_none()
        && context.terminating.contains(&key.namespace, created, Timestamp::now())
}

async fn make_steps(mut token: ApiToken, key: &TokenKey, context: &Context) -> Result<Next, Error> {
    let mut written = None;
    for _ in 0..MAX_STEPS {
        let peppers = peppers(context)?;
        let spec = Spec::of(&token);
        let secret = match (written.take(), &spec) {
            (Some(secret), _) => secret,
            (None, Ok(spec)) => secret_state(&token, key, spec, &peppers, context).await?,
            (None, Err(_)) => SecretState::Absent,
        };
        let memory = context.cache.with_existing(&key.uid, |state| {
            (
                state.minted.as_ref().map(|(key_id, _)| *key_id),
                state.rejection.clone(),
                state.contests.clone(),
                state.receipts.clone(),
            )
        });
        let (minted, rejection, contests, receipts) = memory.unwrap_or_default();
        let rejection = rejection.filter(|rejection| !rejection.is_void(&secret));
        let locks = context.locks.current();
        let subscriptions = context.webhooks.subscriptions(&key.namespace);
        let observed = Observed {
            confirmations: confirmations(&token, key, context),
            token: &token,
            spec,
            secret,
            locks: &locks,
            tombstones: context.ledger.tombstones(),
            peppers: &peppers,
            minted,
            rejection,
            contests,
            propagation: context.propagation,
            subscriptions: &subscriptions,
            receipts,
            expiry_notice: context.expiry_notice,
        };
        let now = Timestamp::now();
        let step = next_step(&observed, now);
        if let Step::Wait(until) = step {
            if observed.rejection.as_ref().is_some_and(|rejection| now >= rejection.retry_at()) {
                // The write that was rejected is no longer needed.
                context.cache.with_existing(&key.uid, |state| state.rejection = None);
                continue;
            }
            return Ok(wait(until, now));
        }
        if !context.may_write() {
            return Ok(Next::OnChange);
        }
        let step_context = StepContext { key, observed: &observed, peppers: &peppers, context, now };
        match step_context.apply(step).await? {
            Applied::Status(after) => token = *after,
            Applied::Secret(after) => written = Some(after),
            Applied::Reobserve => {}
            Applied::Gone => return Ok(Next::OnChange),
        }
    }
    debug!(
        namespace = key.namespace,
        name = key.name,
        "still not at rest after many steps; reconciling again soon"
    );
    Ok(Next::After(Duration::from_secs(1)))
}

/// How many verifiers know a revoked token as it is stored. Of others nobody asks.
fn confirmations(token: &ApiToken, key: &TokenKey, context: &Context) -> Option<Confirmations> {
    let revocation = token.status.as_ref()?.revocation.as_ref()?;
    if revocation.enforced_at.is_some() {
        return None;
    }
    let version = resource_version(token);
    let noted = context.cache.with_existing(&key.uid, |state| {
        state.revoked_at = state.revoked_at.or(version);
        state.revoked_at
    });
    let written = noted
        .unwrap_or(version)
        .map(|resource_version| Written::Token { namespace: &key.namespace, resource_version });
    context.verifiers.confirmations(written, revocation.requested_at)
}

fn wait(until: Option<Timestamp>, now: Timestamp) -> Next {
    match until {
        // A millisecond on top: the instants are compared to the millisecond, and a timer may be early by less.
        Some(until) => {
            let left = until.duration_since(now).max(SignedDuration::ZERO) + SignedDuration::from_millis(1);
            // A long sleep is cut, so that a clock that is set forward is noticed.
            Next::After(left.unsigned_abs().min(Duration::from_secs(300)))
        }
        None => Next::OnChange,
    }
}

/// Whether the cache still shows an object as it was before the last write of this process.
fn is_stale(token: &ApiToken, key: &TokenKey, context: &Context) -> bool {
    let version = resource_version(token);
    let written = context.cache.with_existing(&key.uid, |state| state.written).flatten();
    matches!((version, written), (Some(version), Some(written)) if version < written)
}

fn peppers(context: &Context) -> Result<Arc<Peppers>, Error> {
    match &*context.peppers.borrow() {
        PepperState::Present(peppers) => Ok(peppers.clone()),
        _ => Err(Error::Pepper),
    }
}

/// The state of the Secret. The cache, which lags, is trusted only where it shows the very version that was inspected
/// before. Otherwise the Secret is read.
async fn secret_state(
    token: &ApiToken,
    key: &TokenKey,
    spec: &Spec,
    peppers: &Peppers,
    context: &Context,
) -> Result<SecretState, Error> {
    let TokenKey { namespace, uid, .. } = key;
    let cached = context.secrets.get(&ObjectRef::new(&spec.secret_name).within(namespace));
    if let Some(cached) = &cached {
        let inspected = context.cache.with_existing(uid, |state| {
            state.inspected.as_ref()?.if_current(
                cached.metadata.resource_version.as_deref(),
                token,
                spec,
                peppers,
            )
        });
        if let Some(own) = inspected.flatten() {
            return Ok(SecretState::Ours(Box::new(OwnSecret { metadata: cached.metadata.clone(), ..own })));
        }
    } else {
        let memory = context.cache.with_existing(uid, |state| (state.minted.is_some(), state.recheck_secret));
        let (has_minted, recheck) = memory.unwrap_or_default();
        if !recheck && nothing_delivered(token, has_minted) {
            // If it exists after all, creating it fails, and then it is read.
            return Ok(SecretState::Absent);
        }
    }
    let api = Api::<Secret>::namespaced(context.client.clone(), namespace);
    context.metrics.secret_reads.inc();
    match api.get(&spec.secret_name).await {
        Ok(mut secret) => {
            let found = inspect(&secret, token, spec, peppers, context.ledger.tombstones());
            wipe(&mut secret);
            context.cache.with(uid, |state| state.inspected = Inspected::of(&found, token, spec, peppers));
            Ok(found)
        }
        Err(error) if is_not_found(&error) => {
            context.cache.with_existing(uid, |state| state.recheck_secret = false);
            Ok(SecretState::Absent)
        }
        Err(error) if classify(&error) == ErrorClass::Forbidden => {
            Ok(SecretState::Unreadable(message(&error)))
        }
        Err(source) => Err(Error::ReadSecret { name: spec.secret_name.clone(), source }),
    }
}

/// Whether nothing was ever delivered for this token, so that its Secret is most likely not there. Of a version that was
/// announced and is not in memory (`has_minted`) nobody knows: this process may have delivered it and then lost the lease,
/// or another one that has ended.
fn nothing_delivered(token: &ApiToken, has_minted: bool) -> bool {
    token
        .status
        .as_ref()
        .is_none_or(|status| status.secret_ref.is_none() && (has_minted || status.versions.is_empty()))
}

/// When to try again after a failure.
pub(crate) fn after_failure(token: &Token, error: &Error, context: &Context) -> Next {
    // An object without them does not come from an API server, so none will change it.
    let Some(TokenKey { namespace, name, uid }) = TokenKey::of(token) else {
        return Next::OnChange;
    };
    match error.classify() {
        ErrorClass::Conflict => {
            context.metrics.conflicts.inc();
            return Next::After(Duration::from_millis(50));
        }
        ErrorClass::Drop => {
            debug!(namespace, name, "deleted, or being deleted with its namespace");
            context.cache.remove(&uid);
            if error.is_namespace_terminating() {
                context.terminating.insert(&namespace, Timestamp::now());
            }
            return Next::OnChange;
        }
        ErrorClass::Forbidden | ErrorClass::Invalid | ErrorClass::Retry => {}
    }
    let failures = context.cache.with(&uid, |state| {
        state.failures = state.failures.saturating_add(1);
        state.failures
    });
    context.metrics.failed(error.reason());
    let delay = BACKOFF.wait(failures);
    warn!(
        namespace,
        name,
        reason = error.reason(),
        cause = error.cause(),
        retry_in_ms = delay.as_millis(),
        "failed; trying again"
    );
    Next::After(delay)
}

#[cfg(test)]
mod tests {
    use tokenward_core::crd::{ApiTokenSpec, ApiTokenStatus};

    use super::*;

    #[test]
    fn of_an_announced_version_that_is_not_in_memory_nobody_knows() {
        let token = |status: serde_json::Value| {
            let status: ApiTokenStatus = serde_json::from_value(status).expect("a status");
            ApiToken { status: Some(status), ..ApiToken::new("t", ApiTokenSpec::default()) }
        };
        let announced = serde_json::json!({"versions": [{
            "version": 1, "keyId": "k", "hash": "h", "state": "Pending", "issuedAt": "2026-01-01T00:00:00Z", "reason": "Created",
        }]});
        let delivered = serde_json::json!({"secretRef": {"name": "t", "version": 1}});
        for (what, token, has_minted, expected) in [
            ("no status", ApiToken::new("t", ApiTokenSpec::default()), false, true),
            ("no version", token(serde_json::json!({})), false, true),
            ("announced, in memory", token(announced.clone()), true, true),
            ("announced, not in memory", token(announced), false, false),
            ("delivered", token(delivered), false, false),
        ] {
            assert_eq!(nothing_delivered(&token, has_minted), expected, "{what}");
        }
    }
}
