//! A run: a task that sends one event after the other, from a queue which all runs of an endpoint share.
//!
//! Where many events wait and the endpoint is fast, nobody is woken for each of them: what has come of them is reported
//! every few milliseconds, which is for each event where the endpoint is slow. A run ends at the first event that is
//! not accepted, so what follows from failures follows as if each event were a run.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::delivery::Endpoint;
use crate::requeue::Load;
use tokenward_core::crd::TokenWebhook;
use tokenward_core::outbox::queue::{Job, Key};
use tokenward_core::outbox::retry::Outcome;
use tokenward_core::outbox::signature::SigningKeys;
use tokenward_runtime::failpoint;

/// How long a run goes on before it reports.
const REPORT: Duration = Duration::from_millis(10);

/// Events whose turn it is, of different tokens.
#[derive(Default)]
pub(crate) struct Queue(Mutex<VecDeque<Job>>);

/// A task to come.
pub(crate) struct Run {
    pub(crate) queue: Arc<Queue>,
    pub(crate) reports: mpsc::UnboundedSender<Vec<Sent>>,
    pub(crate) load: Load,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) keys: Arc<SigningKeys>,
    pub(crate) webhook: Arc<TokenWebhook>,
}

/// A request that has come to an end.
pub(crate) struct Sent {
    pub(crate) job: Job,
    pub(crate) outcome: Outcome,
    pub(crate) took: Duration,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.jobs().len()
    }

    pub(crate) fn extend(&self, jobs: impl Iterator<Item = Job>) {
        self.jobs().extend(jobs);
    }

    /// Drops what a token has in it.
    pub(crate) fn forget(&self, key: &Key) {
        self.jobs().retain(|job| job.key != *key);
    }

    /// Empties it.
    pub(crate) fn take_all(&self) -> VecDeque<Job> {
        std::mem::take(&mut *self.jobs())
    }

    fn next(&self) -> Option<Job> {
        self.jobs().pop_front()
    }

    fn jobs(&self) -> MutexGuard<'_, VecDeque<Job>> {
        // A panic elsewhere leaves plain data behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Run {
    /// Sends events until none is left, or one is not accepted.
    pub(crate) async fn send(self) {
        let namespace = self.webhook.metadata.namespace.as_deref().unwrap_or_default();
        let mut since = Instant::now();
        let mut unreported = Vec::new();
        let mut work = None;
        while let Some(job) = self.queue.next() {
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
            if end - since >= REPORT {
                // Who waits for a slow endpoint keeps nobody from working.
                work = (unreported.len() > 1).then(|| work.unwrap_or_else(|| self.load.begin()));
                // Nobody takes it once the TokenWebhook is gone.
                let _ = self.reports.send(std::mem::take(&mut unreported));
                since = end;
            }
        }
        let _ = self.reports.send(unreported);
    }
}
