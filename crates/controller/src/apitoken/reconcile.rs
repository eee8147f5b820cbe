//! One token: observe, decide, make the step, until there is nothing left to do.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use tracing::{debug, warn};

use super::apply;
use super::apply::Applied;
use super::cache::Inspected;
use super::error::Error;
use crate::context::Context;
use crate::objects::Token;
use tokenward_core::crd::ApiToken;
use tokenward_core::lifecycle::{Observed, OwnSecret, SecretState, Spec, Step, inspect, next_step, wipe};
use tokenward_core::token::Peppers;
use tokenward_runtime::backoff::Backoff;
use tokenward_runtime::cluster::error::{ErrorClass, classify, is_not_found, message};
use tokenward_runtime::cluster::pepper::PepperState;

/// No token needs more steps than this in a row; one that does is looked at again later, so that it can't keep
/// others waiting.
const STEPS: usize = 16;
/// The waits after failures in a row.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));

/// Looks at a token, and makes steps until there is nothing to do but wait.
pub(crate) async fn reconcile(token: Arc<Token>, context: Arc<Context>) -> Result<Action, Error> {
    let token = match &token.0 {
        Ok(token) => token.clone(),
        Err(invalid) => return Err(Error::Unreadable(invalid.error.clone())),
    };
    let uid = token.uid().unwrap_or_default();
    if is_echo(&token, &context) {
        // The watch brings what was written since; this is in case it does not.
        return Ok(Action::requeue(Duration::from_secs(5)));
    }
    let action = steps(token, &context).await?;
    context.cache.with(&uid, |memory| memory.failures = 0);
    Ok(action)
}

async fn steps(mut token: ApiToken, context: &Context) -> Result<Action, Error> {
    let uid = token.uid().unwrap_or_default();
    let mut written = None;
    for _ in 0..STEPS {
        let peppers = peppers(context)?;
        let spec = Spec::of(&token);
        let secret = match (written.take(), &spec) {
            (Some(secret), _) => secret,
            (None, Ok(spec)) => find_secret(&token, spec, &peppers, context).await?,
            (None, Err(_)) => SecretState::Absent,
        };
        let (held, refusal, receipts) = context.cache.with(&uid, |memory| {
            (memory.held.as_ref().map(|(key_id, _)| *key_id), memory.refusal.clone(), memory.receipts.clone())
        });
        let subscriptions = context.webhooks.subscriptions(&token.namespace().unwrap_or_default());
        let observed = Observed {
            token: &token,
            spec,
            secret,
            held,
            refusal,
            propagation: context.propagation,
            subscriptions: &subscriptions,
            receipts,
            expiry_notice: context.expiry_notice,
        };
        let now = Timestamp::now();
        let step = next_step(&observed, now);
        if let Step::Wait(until) = step {
            if observed.refusal.as_ref().is_some_and(|refusal| now >= refusal.retry_at()) {
                // What was refused is no longer wanted.
                context.cache.with(&uid, |memory| memory.refusal = None);
                continue;
            }
            return Ok(wait(until, now));
        }
        if !context.may_write() {
            return Ok(Action::await_change());
        }
        match apply::apply(step, &observed, &peppers, context, now).await? {
            Applied::Status(after) => token = *after,
            Applied::Secret(after) => written = Some(after),
            Applied::LookAgain => {}
            Applied::Gone => return Ok(Action::await_change()),
        }
    }
    debug!(token = token.name_any(), "still moving after many steps; looking again soon");
    Ok(Action::requeue(Duration::from_secs(1)))
}

fn wait(until: Option<Timestamp>, now: Timestamp) -> Action {
    match until {
        // A millisecond on top: the instants are compared to the millisecond, and a timer may be early by less.
        Some(until) => {
            let left = until.duration_since(now).max(SignedDuration::ZERO) + SignedDuration::from_millis(1);
            // A long sleep is cut, so that a clock that is set forward is noticed.
            Action::requeue(left.unsigned_abs().min(Duration::from_secs(300)))
        }
        None => Action::await_change(),
    }
}

/// Whether the cache still shows an object as it was before this process wrote its status.
fn is_echo(token: &ApiToken, context: &Context) -> bool {
    let version = token.resource_version().and_then(|version| version.parse::<u64>().ok());
    let written = context.cache.with(&token.uid().unwrap_or_default(), |memory| memory.written);
    matches!((version, written), (Some(version), Some(written)) if version < written)
}

fn peppers(context: &Context) -> Result<Arc<Peppers>, Error> {
    match &*context.peppers.borrow() {
        PepperState::Present(peppers) => Ok(peppers.clone()),
        _ => Err(Error::Pepper),
    }
}

/// Finds out about the Secret. The cache, which lags, is believed only where it shows the very Secret that was
/// looked into before; every other conclusion is drawn from the API server's answer.
async fn find_secret(
    token: &ApiToken,
    spec: &Spec,
    peppers: &Peppers,
    context: &Context,
) -> Result<SecretState, Error> {
    let namespace = token.namespace().unwrap_or_default();
    let uid = token.uid().unwrap_or_default();
    let cached = context.secrets.get(&ObjectRef::new(&spec.secret_name).within(&namespace));
    if let Some(cached) = &cached {
        let known = context.cache.with(&uid, |memory| {
            memory.inspected.as_ref()?.recall(cached.metadata.resource_version.as_deref(), token, spec)
        });
        if let Some(finding) = known {
            return Ok(SecretState::Ours(Box::new(OwnSecret {
                metadata: cached.metadata.clone(),
                ..finding
            })));
        }
    } else if is_new(token) && !context.cache.with(&uid, |memory| memory.look) {
        // Creating it fails if it exists after all, and then it is looked for.
        return Ok(SecretState::Absent);
    }
    let api = Api::<Secret>::namespaced(context.client.clone(), &namespace);
    context.metrics.secret_reads.inc();
    match api.get(&spec.secret_name).await {
        Ok(mut secret) => {
            let state = inspect(&secret, token, spec, peppers);
            wipe(&mut secret);
            context.cache.with(&uid, |memory| memory.inspected = Inspected::of(&state, token, spec));
            Ok(state)
        }
        Err(error) if is_not_found(&error) => {
            context.cache.with(&uid, |memory| memory.look = false);
            Ok(SecretState::Absent)
        }
        Err(error) if classify(&error) == ErrorClass::Forbidden => {
            Ok(SecretState::Unreadable(message(&error)))
        }
        Err(source) => Err(Error::ReadSecret { name: spec.secret_name.clone(), source }),
    }
}

/// Whether nothing was ever delivered for this token, so that its Secret is most likely not there.
fn is_new(token: &ApiToken) -> bool {
    token.status.as_ref().is_none_or(|status| status.secret_ref.is_none())
}

/// What follows a failure: soon again, later and later, or nothing.
pub(crate) fn after_failure(token: &Arc<Token>, error: &Error, context: &Context) -> Action {
    let (name, namespace) = (token.name_any(), token.namespace().unwrap_or_default());
    let uid = token.uid().unwrap_or_default();
    match error.classify() {
        ErrorClass::Conflict => {
            context.metrics.conflicts.inc();
            return Action::requeue(Duration::from_millis(50));
        }
        ErrorClass::Drop => {
            debug!(namespace, name, "gone, or going with its namespace");
            context.cache.forget(&uid);
            return Action::await_change();
        }
        ErrorClass::Forbidden | ErrorClass::Invalid | ErrorClass::Retry => {}
    }
    let failures = context.cache.with(&uid, |memory| {
        memory.failures = memory.failures.saturating_add(1);
        memory.failures
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
    Action::requeue(delay)
}
