//! The only file that writes ApiTokens and their Secrets.
//!
//! Every write carries what it was decided on: the status its object's resourceVersion, a new Secret the demand
//! that there is none, a changed or deleted one the version that was read. A write that lost a race changes
//! nothing, and the token is looked at again.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use rand::TryRng;
use rand::rngs::SysRng;
use serde_json::json;
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::cache::Inspected;
use super::reconcile::Error;
use crate::context::Context;
use tokenward_core::crd::labels::WEBHOOKS_FINALIZER;
use tokenward_core::crd::{ApiToken, ApiTokenStatus};
use tokenward_core::lifecycle::{
    Announcement, Content, DesiredData, Event, Handover, Material, Observed, Refusal, RefusalKind,
    SecretMetadata, SecretState, Spec, Step, announce, compose, inspect, previous_version, wipe,
};
use tokenward_core::token::{KeyId, Peppers, Plaintext, format};
use tokenward_runtime::cluster::error::{ErrorClass, classify, is_already_exists, is_not_found, message};
use tokenward_runtime::failpoint;

/// The field manager of every write.
const MANAGER: &str = "tokenward";

/// What a write has left behind.
pub(crate) enum Applied {
    /// The object with its new status.
    Status(Box<ApiToken>),
    /// The Secret as it is now.
    Secret(SecretState),
    /// Something that has to be looked at.
    LookAgain,
    /// Nothing: the object goes.
    Gone,
}

/// Makes one step.
pub(crate) async fn apply(
    step: Step,
    observed: &Observed<'_>,
    peppers: &Peppers,
    context: &Context,
    now: Timestamp,
) -> Result<Applied, Error> {
    match (step, &observed.spec) {
        (Step::Announce(announcement), Ok(spec)) => {
            announce_new(*announcement, spec, observed, peppers, context, now).await
        }
        (Step::Record(status, events), _) => record(*status, events, observed, context, "record").await,
        (Step::WriteSecret { key_id, content }, Ok(spec)) => {
            write_secret(&key_id, content, spec, observed, peppers, context, now).await
        }
        (Step::DeleteSecret, Ok(spec)) => delete_secret(spec, observed, context).await,
        (Step::AddFinalizer, _) => write_finalizer(true, observed, context).await,
        (Step::RemoveFinalizer(release), _) => {
            keep_undelivered(&release, observed, context).await?;
            write_finalizer(false, observed, context).await
        }
        // A spec that can't be acted on asks for none of these; waiting is not a write.
        (Step::Announce(_) | Step::WriteSecret { .. } | Step::DeleteSecret | Step::Wait(_), _) => {
            Ok(Applied::LookAgain)
        }
    }
}

/// Draws a token and makes its version known. The token itself stays here until it is delivered.
async fn announce_new(
    announcement: Announcement,
    spec: &Spec,
    observed: &Observed<'_>,
    peppers: &Peppers,
    context: &Context,
    now: Timestamp,
) -> Result<Applied, Error> {
    let (namespace, name) = (observed.token.namespace().unwrap_or_default(), observed.token.name_any());
    let (key_id, plaintext) = draw(spec)?;
    let hash = peppers.hash(&namespace, &name, &plaintext).ok_or(Error::Pepper)?;
    let (version, reason) = (announcement.version, announcement.reason);
    let (status, events) = announce(observed, announcement, &Material { key_id, hash }, now);
    let applied = record(status, events, observed, context, "announce").await?;
    context.memories.with(&uid(observed), |memory| memory.held = Some((key_id, plaintext)));
    context.metrics.minted(reason);
    info!(namespace, name, version, key_id = %key_id, ?reason, "minted");
    Ok(applied)
}

fn draw(spec: &Spec) -> Result<(KeyId, Plaintext), Error> {
    let mut key = [0; 16];
    let mut secret = Zeroizing::new([0; 32]);
    SysRng.try_fill_bytes(&mut key).map_err(|error| Error::Random(error.to_string()))?;
    SysRng.try_fill_bytes(&mut *secret).map_err(|error| Error::Random(error.to_string()))?;
    let key_id = KeyId::from_bytes(key);
    Ok((key_id, format::make(&spec.prefix, key_id, &secret)))
}

/// Writes a status, and tells its events once it is stored.
async fn record(
    status: ApiTokenStatus,
    events: Vec<Event>,
    observed: &Observed<'_>,
    context: &Context,
    point: &'static str,
) -> Result<Applied, Error> {
    let token = observed.token;
    let api = Api::<ApiToken>::namespaced(context.client.clone(), &token.namespace().unwrap_or_default());
    let object = ApiToken { status: Some(status), ..token.clone() };
    failpoint::before(point);
    let written =
        api.replace_status(&token.name_any(), &params(), &object).await.map_err(Error::WriteStatus)?;
    failpoint::after(point);
    context.metrics.status_writes.inc();
    let some_wait = context.memories.with(&uid(observed), |memory| {
        memory.written = written.resource_version().and_then(|version| version.parse().ok());
        let outbox = written.status.as_ref().and_then(|status| status.outbox.as_ref());
        memory.receipts.retain(outbox)
    });
    if some_wait {
        context.webhooks.collect_receipts(token);
    }
    for event in events {
        info!(
            namespace = token.namespace(),
            name = token.name_any(),
            event = event.kind.as_str(),
            "{}",
            event.message
        );
        context.events.send(token, event.into());
    }
    Ok(Applied::Status(Box::new(written)))
}

/// Writes the Secret so that it holds a version, over the one that is there now if it is ours.
async fn write_secret(
    key_id: &str,
    content: Content,
    spec: &Spec,
    observed: &Observed<'_>,
    peppers: &Peppers,
    context: &Context,
    now: Timestamp,
) -> Result<Applied, Error> {
    let token = observed.token;
    let uid = uid(observed);
    let Some(status) = &token.status else { return Ok(Applied::LookAgain) };
    let Some(version) = status.version_of(key_id) else { return Ok(Applied::LookAgain) };
    let api = Api::<Secret>::namespaced(context.client.clone(), &token.namespace().unwrap_or_default());
    let failed = |source| Error::WriteSecret { name: spec.secret_name.clone(), source };
    let existing = match &observed.secret {
        SecretState::Absent => None,
        SecretState::Foreign | SecretState::Unreadable(_) => return Ok(Applied::LookAgain),
        SecretState::Ours(own) => match api.get(&spec.secret_name).await {
            Ok(secret) if secret.metadata.resource_version == own.metadata.resource_version => Some(secret),
            // It is no longer what the decision was made on.
            Ok(mut secret) => {
                wipe(&mut secret);
                return Ok(Applied::LookAgain);
            }
            Err(error) if is_not_found(&error) => return Ok(Applied::LookAgain),
            Err(source) => return Err(Error::ReadSecret { name: spec.secret_name.clone(), source }),
        },
    };
    let wardrobe = SecretMetadata::of(token, spec, version, status);
    let held = match content {
        Content::Minted => context.memories.with(&uid, |memory| memory.held.take()),
        Content::Existing => None,
    };
    let plaintext = held.as_ref().filter(|(held, _)| held.as_str() == key_id).map(|(_, plaintext)| plaintext);
    if content == Content::Minted && plaintext.is_none() {
        return Ok(Applied::LookAgain);
    }
    let filling = DesiredData { version, plaintext, previous: previous_version(status, content) };
    let creating = existing.is_none();
    let Some(mut secret) = compose(existing, token, spec, peppers, &wardrobe, &filling) else {
        return Ok(Applied::LookAgain);
    };
    let point = if content == Content::Minted { "deliver" } else { "dress" };
    failpoint::before(point);
    let result = if creating {
        api.create(&params(), &secret).await
    } else {
        api.replace(&spec.secret_name, &params(), &secret).await
    };
    failpoint::after(point);
    wipe(&mut secret);
    match result {
        Ok(mut written) => {
            context.metrics.secret_writes.inc();
            let state = inspect(&written, token, spec, peppers);
            wipe(&mut written);
            context.memories.with(&uid, |memory| {
                memory.refusal = None;
                memory.look = false;
                memory.inspected = Inspected::of(&state, token, spec);
            });
            Ok(Applied::Secret(state))
        }
        Err(source) => {
            // Whether it was written is unknown or known not to be: either way the token is still at hand.
            context.memories.with(&uid, |memory| {
                memory.held = held;
                memory.look = true;
            });
            let kind = match classify(&source) {
                ErrorClass::Forbidden => RefusalKind::Forbidden,
                ErrorClass::Invalid => RefusalKind::Invalid,
                ErrorClass::Conflict if is_already_exists(&source) => return Ok(Applied::LookAgain),
                // The Secret is gone, not the token.
                ErrorClass::Drop if !creating && is_not_found(&source) => return Ok(Applied::LookAgain),
                ErrorClass::Conflict | ErrorClass::Drop | ErrorClass::Retry => return Err(failed(source)),
            };
            let refusal = Refusal { kind, message: message(&source), at: now };
            context.memories.with(&uid, |memory| memory.refusal = Some(refusal));
            context.metrics.failed("secret_refused");
            Ok(Applied::LookAgain)
        }
    }
}

async fn delete_secret(spec: &Spec, observed: &Observed<'_>, context: &Context) -> Result<Applied, Error> {
    let Some(own) = observed.secret.ours() else { return Ok(Applied::LookAgain) };
    let api =
        Api::<Secret>::namespaced(context.client.clone(), &observed.token.namespace().unwrap_or_default());
    let preconditions = Preconditions {
        uid: own.metadata.uid.clone(),
        resource_version: own.metadata.resource_version.clone(),
    };
    let params = DeleteParams { preconditions: Some(preconditions), ..Default::default() };
    failpoint::before("delete");
    let result = api.delete(&spec.secret_name, &params).await;
    failpoint::after("delete");
    match result {
        Ok(_) => {
            context.metrics.secret_writes.inc();
            Ok(Applied::Secret(SecretState::Absent))
        }
        Err(error) if is_not_found(&error) => Ok(Applied::Secret(SecretState::Absent)),
        Err(source) => Err(Error::WriteSecret { name: spec.secret_name.clone(), source }),
    }
}

/// Puts the finalizer on or takes it off, and touches no other.
async fn write_finalizer(wanted: bool, observed: &Observed<'_>, context: &Context) -> Result<Applied, Error> {
    let token = observed.token;
    let api = Api::<ApiToken>::namespaced(context.client.clone(), &token.namespace().unwrap_or_default());
    let mut finalizers = token.metadata.finalizers.clone().unwrap_or_default();
    finalizers.retain(|finalizer| finalizer != WEBHOOKS_FINALIZER);
    finalizers.extend(wanted.then(|| WEBHOOKS_FINALIZER.to_owned()));
    // The resourceVersion that was read makes this lose against anybody who changed the list meanwhile.
    let patch = json!({
        "metadata": {"finalizers": finalizers, "resourceVersion": token.metadata.resource_version},
    });
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
    let point = if wanted { "hold" } else { "release" };
    failpoint::before(point);
    let written = api.patch(&token.name_any(), &params, &Patch::Merge(patch)).await;
    failpoint::after(point);
    match written.map_err(Error::WriteFinalizer)? {
        gone if gone.metadata.deletion_timestamp.is_some() && !wanted => Ok(Applied::Gone),
        written => {
            context.memories.with(&uid(observed), |memory| {
                memory.written = written.resource_version().and_then(|version| version.parse().ok());
            });
            Ok(Applied::Status(Box::new(written)))
        }
    }
}

/// Moves what a deleted token leaves undelivered to the TokenWebhooks that want it.
async fn keep_undelivered(
    release: &Handover,
    observed: &Observed<'_>,
    context: &Context,
) -> Result<(), Error> {
    if release.undelivered.is_empty() {
        return Ok(());
    }
    let (namespace, name) = (observed.token.namespace().unwrap_or_default(), observed.token.name_any());
    match context.webhooks.keep(observed.token, &release.undelivered).await {
        Ok(()) => Ok(()),
        Err(webhook) if release.best_effort => {
            warn!(
                namespace,
                name, webhook, "a deleted token's undelivered events are given up: they can't be kept"
            );
            Ok(())
        }
        Err(webhook) => Err(Error::KeepEvents(webhook)),
    }
}

fn params() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() }
}

fn uid(observed: &Observed<'_>) -> String {
    observed.token.uid().unwrap_or_default()
}
