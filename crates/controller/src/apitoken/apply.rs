//! The only file that writes ApiTokens and their Secrets, but for the conditions of an ApiToken that can't be parsed.
//!
//! Every write fails unless the cluster is as it was when the write was decided on: a status and a changed or deleted
//! Secret by the resourceVersion that was read, a new Secret by being created. A write that lost a race changes nothing,
//! and the token is observed again.

use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use tracing::{info, warn};

use super::cache::{Inspected, TokenState};
use super::error::Error;
use crate::context::Context;
use crate::objects::{TokenKey, finalizers_patch, params, resource_version};
use tokenward_core::crd::labels::{MANAGED_BY, MANAGED_BY_VALUE, WEBHOOKS_FINALIZER};
use tokenward_core::crd::{ApiToken, ApiTokenStatus, RotationReason};
use tokenward_core::lifecycle::{
    Announcement, Content, Contest, DesiredData, FINALIZER_REPAIR, Handover, Material, Observed, Rejection,
    RejectionKind, SecretMetadata, SecretState, Spec, Step, Transition, announce, compose, inspect,
    previous_version, repairs, wipe,
};
use tokenward_core::token::{KeyId, Peppers, Plaintext, format};
use tokenward_runtime::cluster::error::{
    ErrorClass, classify, is_already_exists, is_namespace_terminating, is_not_found, message,
};
use tokenward_runtime::{entropy, failpoint};

/// The outcome of a step.
pub(crate) enum Applied {
    /// The object with its new status or finalizers.
    Status(Box<ApiToken>),
    /// The Secret as it is now.
    Secret(SecretState),
    /// What the step was decided on may be outdated: observe again.
    Reobserve,
    /// The finalizer was removed, and the object goes with it.
    Gone,
}

/// What a step was decided on, and what is needed to make it.
pub(crate) struct StepContext<'a> {
    pub(crate) key: &'a TokenKey,
    pub(crate) observed: &'a Observed<'a>,
    pub(crate) peppers: &'a Peppers,
    pub(crate) context: &'a Context,
    pub(crate) now: Timestamp,
}

impl StepContext<'_> {
    /// Makes a step: writes what it says, and updates the token's state in memory.
    pub(crate) async fn apply(&self, step: Step) -> Result<Applied, Error> {
        match (step, &self.observed.spec) {
            (Step::Announce(announcement), Ok(spec)) => self.announce_new(*announcement, spec).await,
            (Step::EnterIntoLedger(tombstones), _) => {
                self.context.ledger.enter(tombstones);
                Ok(Applied::Reobserve)
            }
            (Step::Record(status, transitions), _) => self.record(*status, transitions, "record").await,
            (Step::WriteSecret { key_id, content }, Ok(spec)) => {
                self.write_secret(&key_id, content, spec).await
            }
            (Step::DeleteSecret, Ok(spec)) => self.delete_secret(spec).await,
            (Step::AddFinalizer, _) => self.write_finalizer(true).await,
            (Step::RemoveFinalizer(handover), _) => {
                self.hand_over(&handover).await?;
                self.write_finalizer(false).await
            }
            // No such step follows from an invalid spec; waiting is not a write.
            (Step::Announce(_) | Step::WriteSecret { .. } | Step::DeleteSecret | Step::Wait(_), _) => {
                Ok(Applied::Reobserve)
            }
        }
    }

    /// Asks the API server whether a Secret could be made, without making it. If not, because the namespace is being deleted and
    /// this Secret went with it, then no version is announced that would never be delivered.
    async fn rehearse(&self, spec: &Spec) -> Result<(), Error> {
        let labels = [(MANAGED_BY.to_owned(), MANAGED_BY_VALUE.to_owned())].into();
        let metadata =
            ObjectMeta { name: Some(spec.secret_name.clone()), labels: Some(labels), ..Default::default() };
        let secret = Secret { metadata, ..Default::default() };
        let params = PostParams { dry_run: true, ..params() };
        match self.api().create(&params, &secret).await {
            Err(source) if is_namespace_terminating(&source) => {
                Err(Error::WriteSecret { name: spec.secret_name.clone(), source })
            }
            // Anything else is told by the write itself.
            _ => Ok(()),
        }
    }

    /// Generates a token and records its version. The token itself stays in memory until it is delivered.
    async fn announce_new(&self, announcement: Announcement, spec: &Spec) -> Result<Applied, Error> {
        let TokenKey { namespace, name, .. } = self.key;
        if announcement.reason == RotationReason::SecretMissing {
            self.rehearse(spec).await?;
        }
        let (key_id, plaintext) = generate(spec)?;
        let hash = self.peppers.hash(namespace, name, &plaintext).ok_or(Error::Pepper)?;
        let (version, reason) = (announcement.version, announcement.reason);
        let (status, transitions) =
            announce(self.observed, announcement, &Material { key_id, hash }, self.now);
        let applied = self.record(status, transitions, "announce").await?;
        self.with_state(|state| state.minted = Some((key_id, plaintext)));
        self.context.metrics.minted(reason);
        info!(namespace, name, version, key_id = %key_id, reason = reason.as_str(), "minted");
        Ok(applied)
    }

    /// Writes a status, and reports its transitions once it is stored.
    async fn record(
        &self,
        status: ApiTokenStatus,
        transitions: Vec<Transition>,
        point: &'static str,
    ) -> Result<Applied, Error> {
        let token = self.observed.token;
        let object = ApiToken { status: Some(status), ..token.clone() };
        failpoint::before(point);
        let written = self
            .api()
            .replace_status(&self.key.name, &params(), &object)
            .await
            .map_err(Error::WriteStatus)?;
        failpoint::after(point);
        if written.resource_version() == token.resource_version() {
            return Err(Error::StatusDropped);
        }
        self.context.metrics.status_writes.inc();
        let receipts_pending = self.with_state(|state| {
            state.written = resource_version(&written);
            let outbox = written.status.as_ref().and_then(|status| status.outbox.as_ref());
            state.receipts.retain(outbox)
        });
        if receipts_pending {
            self.context.webhooks.collect_receipts(token);
        }
        for transition in transitions {
            info!(
                namespace = self.key.namespace,
                name = self.key.name,
                event = transition.kind.event_reason(),
                "{}",
                transition.message
            );
            // A lock that has stopped very many tokens has an Event of its own.
            if transition.lock.as_ref().is_none_or(|lock| !self.context.locks.is_bulk(lock)) {
                self.context.events.publish(token, transition.into());
            }
        }
        Ok(Applied::Status(Box::new(written)))
    }

    /// Writes the Secret with the content of a version: a new one, or over the one that is there if it is ours.
    async fn write_secret(&self, key_id: &str, content: Content, spec: &Spec) -> Result<Applied, Error> {
        let token = self.observed.token;
        let Some(status) = &token.status else { return Ok(Applied::Reobserve) };
        let Some(version) = status.version_of(key_id) else { return Ok(Applied::Reobserve) };
        let existing = match self.read_existing(spec).await? {
            Existing::Absent => None,
            Existing::Ours(secret) => Some(*secret),
            Existing::Changed => return Ok(Applied::Reobserve),
        };
        let minted = match content {
            Content::Minted => match self.with_state(|state| state.minted.take()) {
                Some(minted) if minted.0.as_str() == key_id => Some(minted),
                _ => return Ok(Applied::Reobserve),
            },
            Content::Existing => None,
        };
        let creates = existing.is_none();
        let metadata = SecretMetadata::of(token, spec, version, status);
        let repaired = self.observed.secret.ours().filter(|_| content == Content::Existing);
        let repaired = repaired.map(|own| repairs(own, &metadata));
        let data = DesiredData {
            version,
            plaintext: minted.as_ref().map(|(_, plaintext)| plaintext),
            previous: previous_version(status, content),
        };
        let Some(mut secret) = compose(existing, token, spec, self.peppers, &metadata, &data) else {
            return Ok(Applied::Reobserve);
        };
        let point = if content == Content::Minted { "deliver" } else { "update-secret" };
        failpoint::before(point);
        let result = if creates {
            self.api().create(&params(), &secret).await
        } else {
            self.api().replace(&spec.secret_name, &params(), &secret).await
        };
        failpoint::after(point);
        wipe(&mut secret);
        match result {
            Ok(written) => {
                if let Some(over) = repaired {
                    self.with_state(|state| {
                        let contest = &mut state.contests.secret;
                        *contest =
                            Some(Contest::after(contest.as_ref(), over, token.metadata.generation, self.now));
                    });
                }
                Ok(self.secret_written(written, spec))
            }
            Err(error) => self.secret_not_written(error, minted, spec, creates),
        }
    }

    /// Reads the Secret that is to be replaced, and makes sure that it is the one that the step was decided on.
    async fn read_existing(&self, spec: &Spec) -> Result<Existing, Error> {
        let own = match &self.observed.secret {
            SecretState::Absent => return Ok(Existing::Absent),
            SecretState::Foreign(_)
            | SecretState::Taken(_)
            | SecretState::UnknownPepper(_)
            | SecretState::Unreadable(_) => {
                return Ok(Existing::Changed);
            }
            SecretState::Ours(own) => own,
        };
        match self.api::<Secret>().get(&spec.secret_name).await {
            Ok(secret) if secret.metadata.resource_version == own.metadata.resource_version => {
                Ok(Existing::Ours(Box::new(secret)))
            }
            Ok(mut secret) => {
                wipe(&mut secret);
                Ok(Existing::Changed)
            }
            Err(error) if is_not_found(&error) => Ok(Existing::Changed),
            Err(source) => Err(Error::ReadSecret { name: spec.secret_name.clone(), source }),
        }
    }

    fn secret_written(&self, mut written: Secret, spec: &Spec) -> Applied {
        self.context.metrics.secret_writes.inc();
        let token = self.observed.token;
        let secret = inspect(&written, token, spec, self.peppers, self.context.ledger.tombstones());
        wipe(&mut written);
        self.with_state(|state| {
            state.rejection = None;
            state.recheck_secret = false;
            state.inspected = Inspected::of(&secret, token, spec, self.peppers);
        });
        Applied::Secret(secret)
    }

    /// It was not written, or nobody knows: the minted token stays in memory for the next attempt.
    fn secret_not_written(
        &self,
        error: kube::Error,
        minted: Option<(KeyId, Plaintext)>,
        spec: &Spec,
        creates: bool,
    ) -> Result<Applied, Error> {
        self.with_state(|state| {
            state.minted = minted;
            state.recheck_secret = true;
        });
        let kind = match classify(&error) {
            ErrorClass::Forbidden => RejectionKind::Forbidden,
            ErrorClass::Invalid => RejectionKind::Invalid,
            ErrorClass::Conflict if is_already_exists(&error) => return Ok(Applied::Reobserve),
            // The Secret is gone, not the token.
            ErrorClass::Drop if !creates && is_not_found(&error) => return Ok(Applied::Reobserve),
            ErrorClass::Conflict | ErrorClass::Drop | ErrorClass::Retry => {
                return Err(Error::WriteSecret { name: spec.secret_name.clone(), source: error });
            }
        };
        let rejection = Rejection { kind, message: message(&error), at: self.now, creates };
        self.with_state(|state| state.rejection = Some(rejection));
        self.context.metrics.failed("secret_rejected");
        Ok(Applied::Reobserve)
    }

    async fn delete_secret(&self, spec: &Spec) -> Result<Applied, Error> {
        let Some(own) = self.observed.secret.ours() else { return Ok(Applied::Reobserve) };
        let preconditions = Preconditions {
            uid: own.metadata.uid.clone(),
            resource_version: own.metadata.resource_version.clone(),
        };
        let params = DeleteParams { preconditions: Some(preconditions), ..Default::default() };
        failpoint::before("delete");
        let result = self.api::<Secret>().delete(&spec.secret_name, &params).await;
        failpoint::after("delete");
        match result {
            Ok(_) => {
                self.context.metrics.secret_writes.inc();
                Ok(Applied::Secret(SecretState::Absent))
            }
            Err(error) if is_not_found(&error) => Ok(Applied::Secret(SecretState::Absent)),
            Err(source) => Err(Error::WriteSecret { name: spec.secret_name.clone(), source }),
        }
    }

    /// Adds or removes tokenward's finalizer, and no other.
    async fn write_finalizer(&self, wanted: bool) -> Result<Applied, Error> {
        let token = self.observed.token;
        let (params, patch) =
            finalizers_patch(&token.metadata, &[WEBHOOKS_FINALIZER], wanted.then_some(WEBHOOKS_FINALIZER));
        let point = if wanted { "add-finalizer" } else { "remove-finalizer" };
        failpoint::before(point);
        let written = self.api::<ApiToken>().patch(&self.key.name, &params, &patch).await;
        failpoint::after(point);
        let written = written.map_err(Error::WriteFinalizer)?;
        if written.metadata.deletion_timestamp.is_some() && !wanted {
            return Ok(Applied::Gone);
        }
        self.with_state(|state| {
            state.written = resource_version(&written);
            // What this process took off itself is no contest.
            let contest = &mut state.contests.finalizer;
            *contest = wanted.then(|| {
                let over = vec![FINALIZER_REPAIR.to_owned()];
                Contest::after(contest.as_ref(), over, token.metadata.generation, self.now)
            });
        });
        Ok(Applied::Status(Box::new(written)))
    }

    /// Moves the undelivered events of a deleted token to the TokenWebhooks that subscribe to them.
    async fn hand_over(&self, handover: &Handover) -> Result<(), Error> {
        if handover.undelivered.is_empty() {
            return Ok(());
        }
        let TokenKey { namespace, name, .. } = self.key;
        match self.context.webhooks.store(self.observed.token, &handover.undelivered).await {
            Ok(()) => Ok(()),
            Err(webhook) if handover.best_effort => {
                warn!(
                    namespace,
                    name, webhook, "undelivered events of a deleted token are lost: they could not be stored"
                );
                Ok(())
            }
            Err(webhook) => Err(Error::StoreEvents(webhook)),
        }
    }

    fn api<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(&self) -> Api<K> {
        Api::namespaced(self.context.client.clone(), &self.key.namespace)
    }

    /// Reads or changes the token's state in memory.
    fn with_state<T>(&self, change: impl FnOnce(&mut TokenState) -> T) -> T {
        self.context.cache.with(&self.key.uid, change)
    }
}

/// What is found where a Secret is to be written.
enum Existing {
    Absent,
    /// The one that the step was decided on.
    Ours(Box<Secret>),
    /// Something else than the step was decided on.
    Changed,
}

fn generate(spec: &Spec) -> Result<(KeyId, Plaintext), Error> {
    let key_id = KeyId::from_bytes(*entropy::random_bytes()?);
    Ok((key_id, format::make(&spec.prefix, key_id, &*entropy::random_bytes()?)))
}
