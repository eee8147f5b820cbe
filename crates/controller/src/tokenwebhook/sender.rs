//! A sender: a task that sends one event after the other from a queue, which all senders of an endpoint share.
//!
//! Where many events wait and the endpoint is fast, the worker is not woken for each: results are reported every few
//! milliseconds, which is after each event where the endpoint is slow. A sender ends at the first event that is not
//! accepted, so failures are handled as if each event had a sender of its own.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::delivery::Endpoint;
use super::sender_permits::SenderPermit;
use crate::requeue::Load;
use tokenward_core::crd::TokenWebhook;
use tokenward_core::outbox::queue::{Job, Key};
use tokenward_core::outbox::retry::Outcome;
use tokenward_core::outbox::signature::SigningKeys;
use tokenward_runtime::failpoint;
use tokenward_runtime::sync::lock;

/// How long a sender collects results before it reports them.
const REPORT_INTERVAL: Duration = Duration::from_millis(10);

/// Events that are due, each of another token.
#[derive(Default)]
pub(crate) struct ReadyQueue(Mutex<VecDeque<Job>>);

/// What a sender needs.
pub(crate) struct Sender {
    /// For each sender of an endpoint but the first.
    pub(crate) _permit: Option<SenderPermit>,
    pub(crate) ready: Arc<ReadyQueue>,
    pub(crate) report: mpsc::UnboundedSender<Vec<Sent>>,
    pub(crate) load: Load,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) keys: Arc<SigningKeys>,
    pub(crate) webhook: Arc<TokenWebhook>,
}

/// The result of one request.
pub(crate) struct Sent {
    pub(crate) job: Job,
    pub(crate) outcome: Outcome,
    pub(crate) took: Duration,
}

impl ReadyQueue {
    pub(crate) fn len(&self) -> usize {
        self.jobs().len()
    }

    pub(crate) fn extend(&self, jobs: impl Iterator<Item = Job>) {
        self.jobs().extend(jobs);
    }

    /// Drops the events of a token.
    pub(crate) fn remove(&self, key: &Key) {
        self.jobs().retain(|job| job.key != *key);
    }

    /// Removes and returns all events.
    pub(crate) fn take_all(&self) -> VecDeque<Job> {
        std::mem::take(&mut *self.jobs())
    }

    fn next(&self) -> Option<Job> {
        self.jobs().pop_front()
    }

    fn jobs(&self) -> MutexGuard<'_, VecDeque<Job>> {
        lock(&self.0)
    }
}

impl Sender {
    /// Sends events until none is left, or one is not accepted.
    pub(crate) async fn run(self) {
        let namespace = self.webhook.metadata.namespace.as_deref().unwrap_or_default();
        let mut reported = Instant::now();
        let mut unreported = Vec::new();
        let mut work = None;
        while let Some(job) = self.ready.next() {
            let start = Instant::now();
            failpoint::before("send");
            let outcome = self.endpoint.send(&job.message, namespace, &self.keys).await;
            failpoint::after("send");
            let end = Instant::now();
            let is_accepted = outcome == Outcome::Accepted;
            unreported.push(Sent { job, outcome, took: end - start });
            if !is_accepted {
                break;
            }
            if end - reported >= REPORT_INTERVAL {
                // Only a fast endpoint costs CPU time that other work must wait for.
                work = (unreported.len() > 1).then(|| work.unwrap_or_else(|| self.load.begin()));
                // The worker is gone once the TokenWebhook is.
                let _ = self.report.send(std::mem::take(&mut unreported));
                reported = end;
            }
        }
        let _ = self.report.send(unreported);
    }
}
