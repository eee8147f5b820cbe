//! A TokenWebhook's status as it should be, and how it comes to be stored.
//!
//! While this process leads it is the status' only writer. Changes are collected, one write is under way at a time,
//! and what depends on a change being stored is promised until then.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::Shared;
use super::conditions;
use super::conditions::View;
use crate::recorder::NewEvent;
use tokenward_core::crd::{ConditionType, TokenWebhook, TokenWebhookStatus, find_condition};
use tokenward_core::outbox::payload::Message;
use tokenward_core::outbox::queue::Key;
use tokenward_runtime::cluster::error::{ErrorClass, classify, message};
use tokenward_runtime::failpoint;

/// How soon a status is written after something that counts, and after something that is a figure only.
pub(crate) const SOON: Duration = Duration::from_secs(1);
pub(crate) const LATER: Duration = Duration::from_secs(5);

/// What is owed once the status is stored.
pub(crate) enum AfterWrite {
    /// A word to who waits for it.
    Word(oneshot::Sender<()>),
    /// A receipt to a token: its event was given up, and that is on record.
    Receipt(Key, Arc<Message>),
}

/// Why a status was not written. It is written again in any case but the first.
pub(crate) enum Trouble {
    /// Another process leads.
    Left,
    /// The object was edited since it was last seen.
    Edited,
    /// Something that may pass.
    Again,
}

/// What the API server has answered to a read or a write.
pub(crate) type Answer = Result<TokenWebhook, kube::Error>;

/// The object and its status.
pub(crate) struct Record {
    shared: Arc<Shared>,
    name: Arc<str>,
    /// The object as last heard of or written.
    object: Arc<TokenWebhook>,
    /// The status as this process would have it. Its own, while it leads.
    pub(crate) status: TokenWebhookStatus,
    known: bool,
    reading: bool,
    writing: bool,
    write_at: Option<Instant>,
    failures: u32,
    pledges: Vec<AfterWrite>,
    /// How many events were given up since that was last told.
    pub(crate) dead_lettered: u64,
}

impl Record {
    pub(crate) fn new(shared: Arc<Shared>, object: Arc<TokenWebhook>) -> Self {
        Self {
            shared,
            name: object.name_any().into(),
            object,
            status: TokenWebhookStatus::default(),
            known: false,
            reading: false,
            writing: false,
            write_at: None,
            failures: 0,
            pledges: Vec::new(),
            dead_lettered: 0,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn object(&self) -> &Arc<TokenWebhook> {
        &self.object
    }

    /// Whether the status is known, without which nothing may be sent.
    pub(crate) fn is_known(&self) -> bool {
        self.known
    }

    /// When it is to be written.
    pub(crate) fn write_at(&self) -> Option<Instant> {
        self.write_at.filter(|_| !self.writing)
    }

    /// The ids of the events that wait in the status as it is stored.
    pub(crate) fn stored(&self) -> HashSet<&str> {
        self.object.status.iter().flat_map(|status| &status.outbox).map(|event| &*event.id).collect()
    }

    /// Takes the object as a watch or a read has shown it. Answers whether it is no older one, and no other.
    pub(crate) fn see(&mut self, object: Arc<TokenWebhook>) -> bool {
        let version = |object: &TokenWebhook| object.resource_version().and_then(|v| v.parse::<u64>().ok());
        let counts = version(&object) >= version(&self.object) && object.uid() == self.object.uid();
        if counts {
            self.object = object;
        }
        counts
    }

    /// Reads the object again, in case the watch lags.
    pub(crate) fn look(&self) -> BoxFuture<'static, Answer> {
        let (api, name) = (self.api(), self.name.clone());
        async move { api.get(&name).await }.boxed()
    }

    /// Begins to read the status, unless it is known or being read.
    pub(crate) fn read(&mut self) -> Option<BoxFuture<'static, Answer>> {
        if self.known || self.reading {
            return None;
        }
        self.reading = true;
        Some(self.look())
    }

    /// Takes what was read. Answers whether the status is known now.
    pub(crate) fn have_read(&mut self, answer: Answer) -> bool {
        self.reading = false;
        match answer {
            Ok(object) => {
                self.status = object.status.clone().unwrap_or_default();
                self.object = Arc::new(object);
                self.known = true;
                self.failures = 0;
            }
            // Asked again with the next renewal of the lease, which wakes the endpoint's task.
            Err(error) => {
                debug!(webhook = &*self.name, error = message(&error), "the status can't be read yet")
            }
        }
        self.known
    }

    /// Leaves the status to the process that leads now. Answers the events that were given up off the record.
    pub(crate) fn leave(&mut self) -> Vec<(Key, Arc<Message>)> {
        self.known = false;
        self.dead_lettered = 0;
        let owed = std::mem::take(&mut self.pledges).into_iter();
        let receipts = owed.filter_map(|pledge| match pledge {
            AfterWrite::Receipt(key, message) => Some((key, message)),
            AfterWrite::Word(_) => None,
        });
        receipts.collect()
    }

    /// Has the status written after a while at the latest.
    pub(crate) fn touch(&mut self, after: Duration) {
        let at = Instant::now() + after;
        self.write_at = Some(self.write_at.map_or(at, |before| before.min(at)));
    }

    /// Owes something from the next write on.
    pub(crate) fn promise(&mut self, pledge: AfterWrite) {
        self.pledges.push(pledge);
    }

    /// Tells a token that its event needs nothing more from here.
    pub(crate) fn receipt(&self, key: &Key, message: &Message) {
        let namespace = self.object.metadata.namespace.as_deref().unwrap_or_default();
        self.shared.receipt(key, message, namespace, &self.name);
    }

    pub(crate) fn owes(&self) -> bool {
        !self.pledges.is_empty()
    }

    /// Begins to write the status, if there is anything new in it.
    pub(crate) fn write(&mut self, view: &View<'_>) -> Option<BoxFuture<'static, (Answer, Vec<AfterWrite>)>> {
        self.write_at = None;
        conditions::describe(&mut self.status, view, Timestamp::now());
        if self.object.status.as_ref() == Some(&self.status) {
            let pledges = std::mem::take(&mut self.pledges);
            self.fulfil(pledges);
            return None;
        }
        if !self.shared.claim.borrow().holds() {
            return None;
        }
        self.writing = true;
        let object = TokenWebhook { status: Some(self.status.clone()), ..(*self.object).clone() };
        let (api, pledges) = (self.api(), std::mem::take(&mut self.pledges));
        let write = async move {
            failpoint::before("write-webhook-status");
            let answer = api.replace_status(&object.name_any(), &PostParams::default(), &object).await;
            failpoint::after("write-webhook-status");
            (answer, pledges)
        };
        Some(write.boxed())
    }

    /// Takes what has come of a write. If it failed, answers that as [`Trouble`].
    pub(crate) fn have_written(&mut self, answer: Answer, pledges: Vec<AfterWrite>) -> Result<(), Trouble> {
        self.writing = false;
        let error = match answer {
            Ok(object) => {
                self.shared.metrics.status_writes.inc();
                self.failures = 0;
                self.tell_of_change(&object);
                self.object = Arc::new(object);
                self.fulfil(pledges);
                return Ok(());
            }
            Err(error) => error,
        };
        self.pledges.splice(0..0, pledges);
        if !self.known {
            return Err(Trouble::Left);
        }
        self.failures = self.failures.saturating_add(1);
        self.touch(Duration::from_millis(100) * 2u32.saturating_pow(self.failures.min(7)));
        match classify(&error) {
            ErrorClass::Conflict => return Err(Trouble::Edited),
            ErrorClass::Drop => {}
            _ => warn!(
                webhook = &*self.name,
                error = message(&error),
                "the status was not written; trying again"
            ),
        }
        Err(Trouble::Again)
    }

    fn fulfil(&self, pledges: Vec<AfterWrite>) {
        for pledge in pledges {
            match pledge {
                // Who no longer waits has given up.
                AfterWrite::Word(stored) => drop(stored.send(())),
                AfterWrite::Receipt(key, message) => self.receipt(&key, &message),
            }
        }
    }

    /// Events for what a person should see.
    fn tell_of_change(&mut self, written: &TokenWebhook) {
        let healthy = |status: Option<&TokenWebhookStatus>| {
            find_condition(&status?.conditions, ConditionType::Healthy).cloned()
        };
        let was_failing = healthy(self.object.status.as_ref()).is_some_and(|before| before.status == "False");
        match healthy(written.status.as_ref()) {
            Some(now) if now.status == "True" && was_failing => {
                self.tell("EndpointRecovered", false, "the endpoint accepts events again");
            }
            Some(now) if now.status == "False" && !was_failing => {
                self.tell("EndpointFailing", true, &format!("{}: {}", now.reason, now.message));
            }
            _ => {}
        }
        if self.dead_lettered > 0 {
            let dead_lettered = std::mem::take(&mut self.dead_lettered);
            self.tell("EventsGivenUp", true, &format!("{dead_lettered} events were given up; status.deadLetters has the last of them. To send them again, change the annotation tokenward.dev/replay"));
        }
    }

    /// Tells people, by a log line and an Event.
    pub(crate) fn tell(&self, reason: &'static str, warning: bool, sentence: &str) {
        info!(namespace = self.object.namespace(), webhook = &*self.name, event = reason, "{sentence}");
        self.shared.events.send(&*self.object, NewEvent { reason, warning, message: sentence.to_owned() });
    }

    fn api(&self) -> Api<TokenWebhook> {
        Api::namespaced(self.shared.client.clone(), &self.object.namespace().unwrap_or_default())
    }
}
