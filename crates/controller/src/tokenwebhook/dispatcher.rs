//! Sends the events that are due: a bounded number of senders share a queue of ready events.

use std::sync::Arc;
use std::time::Instant;

use tokenward_core::crd::TokenWebhook;
use tokenward_core::outbox::queue::{DeliveryQueue, Key};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use super::sender::{ReadyQueue, Sender, Sent};
use super::sender_permits::SenderPermits;
use super::target::Target;
use crate::requeue::Load;

/// How many requests of one endpoint are under way at once, if there are permits for them. While it is probed, one.
const MAX_SENDERS: usize = 16;
/// How many events are ready for each sender. The queue is refilled when it is half empty, so that senders do not run
/// out.
const READY_PER_SENDER: usize = 32;
/// How many reports of senders are received at once.
pub(crate) const MAX_RESULTS: usize = 64;
/// After this many failures in a row, one event is sent at a time until the endpoint accepts one.
const PROBE_AFTER: u32 = 32;

/// The events of one endpoint, from the queue to the senders.
pub(crate) struct Dispatcher {
    /// All undelivered events, in each token's order.
    pub(crate) queue: DeliveryQueue,
    /// Those that are due. Senders take them from the front.
    ready: Arc<ReadyQueue>,
    senders: JoinSet<()>,
    permits: SenderPermits,
    /// Whether there was no permit for another sender. One that ends makes it possible to try again.
    lacks_permits: bool,
    /// A clone for each sender.
    report: mpsc::UnboundedSender<Vec<Sent>>,
    results: mpsc::UnboundedReceiver<Vec<Sent>>,
    load: Load,
}

impl Dispatcher {
    pub(crate) fn new(webhook: &str, permits: SenderPermits, load: Load) -> Self {
        let (report, results) = mpsc::unbounded_channel();
        Self {
            queue: DeliveryQueue::new(webhook),
            ready: Arc::default(),
            senders: JoinSet::new(),
            permits,
            lacks_permits: false,
            report,
            results,
            load,
        }
    }

    /// Waits until senders report results, or one ends. Can be cancelled without losing a result.
    pub(crate) async fn progress(&mut self, results: &mut Vec<Vec<Sent>>) {
        tokio::select! {
            1.. = self.results.recv_many(results, MAX_RESULTS) => {}
            Some(ended) = self.senders.join_next(), if !self.senders.is_empty() => propagate_panic(ended),
        }
    }

    /// Starts senders for what is due. `failures`: how often in a row the endpoint has failed.
    pub(crate) fn send_due(
        &mut self,
        target: &Target,
        webhook: &Arc<TokenWebhook>,
        failures: u32,
        now: Instant,
    ) {
        let senders = max_senders(failures);
        let capacity = if senders == 1 { 1 } else { senders * READY_PER_SENDER };
        if self.ready.len() > capacity {
            self.recall();
        }
        let room = capacity.saturating_sub(self.ready.len());
        // While probing, the next event is sent after the result of the one before.
        let refill = if senders == 1 { self.senders.is_empty() } else { room > capacity / 2 };
        if refill {
            let queue = &mut self.queue;
            self.ready.extend(std::iter::from_fn(|| queue.next(now)).take(room));
        }
        self.lacks_permits = false;
        for _ in 0..self.ready.len().min(senders.saturating_sub(self.senders.len())) {
            // The first sender needs none.
            let permit = if self.senders.is_empty() { None } else { self.permits.take() };
            if permit.is_none() && !self.senders.is_empty() {
                self.lacks_permits = true;
                break;
            }
            let sender = Sender {
                _permit: permit,
                ready: self.ready.clone(),
                report: self.report.clone(),
                load: self.load.clone(),
                endpoint: target.endpoint.clone(),
                keys: target.keys.clone(),
                webhook: webhook.clone(),
            };
            self.senders.spawn(sender.run());
        }
    }

    /// When the next event is due, if a sender can take it then.
    pub(crate) fn next_at(&self, failures: u32) -> Option<Instant> {
        let has_place = self.senders.len() < max_senders(failures) && !self.lacks_permits;
        self.queue.next_at().filter(|_| has_place)
    }

    /// Puts events that are ready and not under way back into the queue.
    pub(crate) fn recall(&mut self) {
        let now = Instant::now();
        for job in self.ready.take_all() {
            self.queue.requeue(&job.key, now);
        }
    }

    /// Like [`Self::recall`], for a new target: a running sender uses the target that it started with, so it must find
    /// nothing more.
    pub(crate) fn retarget(&mut self) {
        self.recall();
        self.ready = Arc::default();
    }

    /// Drops the ready events of a token.
    pub(crate) fn remove_ready(&self, key: &Key) {
        self.ready.remove(key);
    }
}

/// Whether the endpoint failed so often that it is probed: one event at a time.
pub(crate) fn is_probing(failures: u32) -> bool {
    failures >= PROBE_AFTER
}

fn max_senders(failures: u32) -> usize {
    if is_probing(failures) { 1 } else { MAX_SENDERS }
}

/// A panic in a sender is a defect: the process must fail visibly rather than stop delivering to one endpoint.
fn propagate_panic(ended: Result<(), JoinError>) {
    if let Some(panic) = ended.err().and_then(|error| error.try_into_panic().ok()) {
        std::panic::resume_unwind(panic);
    }
}
