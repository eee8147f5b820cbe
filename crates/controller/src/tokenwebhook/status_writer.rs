//! The status of a TokenWebhook, and its writes.
//!
//! While this process leads, it is the only writer of the status. Changes are collected, one write is under way at a
//! time, and actions that must not precede a change ([`AfterWrite`]) wait until it is stored.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::Shared;
use super::conditions;
use super::conditions::View;
use crate::recorder::NewEvent;
use tokenward_core::crd::{ConditionType, Reason, TokenWebhook, TokenWebhookStatus, find_condition};
use tokenward_core::outbox::payload::Message;
use tokenward_core::outbox::queue::Key;
use tokenward_runtime::backoff::Backoff;
use tokenward_runtime::cluster::error::{ErrorClass, classify, message};
use tokenward_runtime::failpoint;

/// How long changes are collected before the status is written, if people or other processes wait for one of them.
pub(crate) const WRITE_DELAY: Duration = Duration::from_secs(1);
/// The same if only numbers have changed.
pub(crate) const NUMBERS_WRITE_DELAY: Duration = Duration::from_secs(5);
/// The waits after writes that failed: six doublings, so that a status is a few seconds late after an outage.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_millis(12_800));

/// An action to take once the status is stored.
pub(crate) enum AfterWrite {
    /// Confirm to a deleted token that its events are stored.
    Confirm(oneshot::Sender<()>),
    /// Pass a receipt to a token whose event is dead-lettered.
    Receipt(Key, Arc<Message>),
}

/// Why the status was not written.
pub(crate) enum WriteError {
    /// Another process leads now. It is not written again.
    NotLeading,
    /// The object has changed since it was last read. It is written again after a read.
    Conflict,
    /// Any other error. It is written again after a back-off.
    Retry,
}

/// The result of a read or a write.
pub(crate) type ApiResult = Result<TokenWebhook, kube::Error>;

/// The result of a write, and what depends on it.
pub(crate) struct Written {
    result: ApiResult,
    /// Whether the API server stored less than was written, as with CRDs of an earlier version.
    dropped: bool,
    after_write: Vec<AfterWrite>,
}

/// What this process knows of the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing: it does not lead, or a read failed.
    Unknown,
    /// A read is under way.
    Reading,
    /// It was read, and this process is its writer.
    Known,
}

/// The object and its status.
pub(crate) struct StatusWriter {
    shared: Arc<Shared>,
    name: Arc<str>,
    /// The object as last watched, read or written.
    object: Arc<TokenWebhook>,
    /// The status as it is to be written.
    pub(crate) status: TokenWebhookStatus,
    phase: Phase,
    /// Whether a write is under way. Apart from the phase, since a write may outlast the leadership in which it began.
    writing: bool,
    write_at: Option<Instant>,
    /// Failed writes in a row.
    failures: u32,
    after_write: Vec<AfterWrite>,
    /// The status of the condition Healthy when it was last read or written. Not that of `object`, in which the watch may show
    /// a write before its response arrives.
    healthy: Option<String>,
    /// How many events were dead-lettered since the last Event about it.
    pub(crate) dead_lettered: u64,
}

impl StatusWriter {
    pub(crate) fn new(shared: Arc<Shared>, object: Arc<TokenWebhook>) -> Self {
        Self {
            shared,
            name: object.name_any().into(),
            object,
            status: TokenWebhookStatus::default(),
            phase: Phase::Unknown,
            writing: false,
            write_at: None,
            failures: 0,
            after_write: Vec::new(),
            healthy: None,
            dead_lettered: 0,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn object(&self) -> &Arc<TokenWebhook> {
        &self.object
    }

    /// Whether the status was read since this process leads. Until then nothing may be sent.
    pub(crate) fn is_known(&self) -> bool {
        self.phase == Phase::Known
    }

    /// When the status is due to be written.
    pub(crate) fn write_at(&self) -> Option<Instant> {
        self.write_at.filter(|_| !self.writing)
    }

    /// The ids of the events in the outbox of the status that is stored.
    pub(crate) fn stored_ids(&self) -> HashSet<&str> {
        self.object.status.iter().flat_map(|status| &status.outbox).map(|event| &*event.id).collect()
    }

    /// Takes over the object as watched or read. Returns false, and ignores it, if it is older than the one here, or
    /// another of the same name.
    pub(crate) fn update(&mut self, object: Arc<TokenWebhook>) -> bool {
        let version = |object: &TokenWebhook| object.resource_version().and_then(|v| v.parse::<u64>().ok());
        let is_newer = version(&object) >= version(&self.object) && object.uid() == self.object.uid();
        if is_newer {
            self.object = object;
        }
        is_newer
    }

    /// Reads the object again, in case the watch lags.
    pub(crate) fn reread(&self) -> BoxFuture<'static, ApiResult> {
        let (api, name) = (self.api(), self.name.clone());
        async move { api.get(&name).await }.boxed()
    }

    /// Starts to read the status, unless it is known or being read.
    pub(crate) fn read(&mut self) -> Option<BoxFuture<'static, ApiResult>> {
        if self.phase != Phase::Unknown {
            return None;
        }
        self.phase = Phase::Reading;
        Some(self.reread())
    }

    /// Handles the result of [`Self::read`]. Returns whether the status is known now.
    pub(crate) fn on_read(&mut self, result: ApiResult) -> bool {
        self.phase = Phase::Unknown;
        match result {
            Ok(object) => {
                self.status = object.status.clone().unwrap_or_default();
                self.healthy = healthy(&object).map(|condition| condition.status.clone());
                self.object = Arc::new(object);
                self.phase = Phase::Known;
                self.failures = 0;
            }
            // It is read again at the next renewal of the lease, which wakes the worker.
            Err(error) => {
                debug!(webhook = &*self.name, error = message(&error), "the status can't be read yet")
            }
        }
        self.is_known()
    }

    /// Stops writing, since another process leads. Returns the events whose dead letters are not stored.
    pub(crate) fn step_down(&mut self) -> Vec<(Key, Arc<Message>)> {
        self.phase = Phase::Unknown;
        self.dead_lettered = 0;
        let unstored = std::mem::take(&mut self.after_write).into_iter();
        let receipts = unstored.filter_map(|after| match after {
            AfterWrite::Receipt(key, message) => Some((key, message)),
            AfterWrite::Confirm(_) => None,
        });
        receipts.collect()
    }

    /// Schedules a write after this time, or earlier if it is scheduled already.
    pub(crate) fn write_within(&mut self, after: Duration) {
        let at = Instant::now() + after;
        self.write_at = Some(self.write_at.map_or(at, |before| before.min(at)));
    }

    /// Adds an action to take once the next write is stored.
    pub(crate) fn on_stored(&mut self, after: AfterWrite) {
        self.after_write.push(after);
    }

    /// Notes that this TokenWebhook no longer needs an event of a token.
    pub(crate) fn receipt(&self, key: &Key, message: &Message) {
        let namespace = self.object.metadata.namespace.as_deref().unwrap_or_default();
        self.shared.receipt(key, message, namespace, &self.name);
    }

    /// Whether an action waits for the next write.
    pub(crate) fn has_pending(&self) -> bool {
        !self.after_write.is_empty()
    }

    /// Starts to write the status, if it has changed.
    pub(crate) fn write(&mut self, view: &View<'_>) -> Option<BoxFuture<'static, Written>> {
        self.write_at = None;
        conditions::describe(&mut self.status, view, Timestamp::now());
        if self.object.status.as_ref() == Some(&self.status) {
            let after_write = std::mem::take(&mut self.after_write);
            self.run(after_write);
            return None;
        }
        if !self.shared.claim.borrow().is_valid() {
            return None;
        }
        self.writing = true;
        let object = TokenWebhook { status: Some(self.status.clone()), ..(*self.object).clone() };
        let (api, after_write) = (self.api(), std::mem::take(&mut self.after_write));
        let write = async move {
            failpoint::before("write-webhook-status");
            let result = api.replace_status(&object.name_any(), &PostParams::default(), &object).await;
            failpoint::after("write-webhook-status");
            let dropped = result.as_ref().is_ok_and(|written| has_dropped(&object, written));
            Written { result, dropped, after_write }
        };
        Some(write.boxed())
    }

    /// Handles the result of [`Self::write`].
    pub(crate) fn on_written(&mut self, written: Written) -> Result<(), WriteError> {
        self.writing = false;
        let Written { result, dropped, after_write } = written;
        let error = match result {
            Ok(object) if dropped => {
                self.object = Arc::new(object);
                None
            }
            Ok(object) => {
                self.shared.metrics.status_writes.inc();
                self.failures = 0;
                self.emit_changes(&object);
                self.object = Arc::new(object);
                self.run(after_write);
                return Ok(());
            }
            Err(error) => Some(error),
        };
        self.after_write.splice(0..0, after_write);
        if !self.is_known() {
            return Err(WriteError::NotLeading);
        }
        self.failures = self.failures.saturating_add(1);
        self.write_within(BACKOFF.wait(self.failures));
        let webhook = &*self.name;
        match error.as_ref().map(|error| (error, classify(error))) {
            None => warn!(
                webhook,
                "the API server dropped fields of the status: install the CRDs of this version of tokenward"
            ),
            Some((_, ErrorClass::Conflict)) => return Err(WriteError::Conflict),
            Some((_, ErrorClass::Drop)) => {}
            Some((error, _)) => {
                warn!(webhook, error = message(error), "the status was not written; trying again");
            }
        }
        Err(WriteError::Retry)
    }

    fn run(&self, after_write: Vec<AfterWrite>) {
        for after in after_write {
            match after {
                // The receiver is gone if its reconciliation timed out.
                AfterWrite::Confirm(stored) => {
                    let _ = stored.send(());
                }
                AfterWrite::Receipt(key, message) => self.receipt(&key, &message),
            }
        }
    }

    /// Emits Events for the changes that a write makes public.
    fn emit_changes(&mut self, written: &TokenWebhook) {
        let now = healthy(written);
        let before = std::mem::replace(&mut self.healthy, now.map(|condition| condition.status.clone()));
        let was_failing = before.as_deref() == Some("False");
        match now {
            Some(now) if now.status == "True" && was_failing => {
                self.emit(Reason::new("EndpointRecovered", "the endpoint accepts events again"), false);
            }
            Some(now) if now.status == "False" && !was_failing => {
                let message = format!("{}: {}", now.reason, now.message);
                self.emit(Reason::new("EndpointFailing", message), true);
            }
            _ => {}
        }
        if self.dead_lettered > 0 {
            let dead_lettered = std::mem::take(&mut self.dead_lettered);
            let events = if dead_lettered == 1 { "event was" } else { "events were" };
            let message = format!(
                "{dead_lettered} {events} dead-lettered; the last are in status.deadLetters. To send them again, change the annotation tokenward.dev/replay"
            );
            self.emit(Reason::new("EventsDeadLettered", message), true);
        }
    }

    /// Emits an Event, and a log line of the same content.
    pub(crate) fn emit(&self, reason: Reason, warning: bool) {
        let Reason { code, message } = &reason;
        info!(namespace = self.object.namespace(), webhook = &*self.name, event = code, "{message}");
        self.shared.events.publish(&*self.object, NewEvent { reason, warning });
    }

    fn api(&self) -> Api<TokenWebhook> {
        Api::namespaced(self.shared.client.clone(), &self.object.namespace().unwrap_or_default())
    }
}

/// Whether the API server stored none of what is new in a status, or not all of its events, which exist nowhere else.
fn has_dropped(sent: &TokenWebhook, written: &TokenWebhook) -> bool {
    let stored = events(written);
    written.resource_version() == sent.resource_version() || !events(sent).is_subset(&stored)
}

/// The ids of the events in a status.
fn events(object: &TokenWebhook) -> HashSet<&str> {
    let letters = object.status.iter().flat_map(|status| &status.dead_letters).map(|letter| &letter.event);
    let waiting = object.status.iter().flat_map(|status| &status.outbox);
    waiting.chain(letters).map(|event| &*event.id).collect()
}

fn healthy(object: &TokenWebhook) -> Option<&Condition> {
    find_condition(&object.status.as_ref()?.conditions, ConditionType::Healthy)
}
