//! Requeues tokens for which no watch reports a change: a TokenWebhook was added or removed, or receipts have to be written
//! to the status.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::apitoken::cache::StateCache;
use crate::objects::Token;
use tokenward_core::outbox::queue::Key;

/// How long a token's receipts are collected before a status is written for them alone: most are part of another write
/// by then.
const COLLECTION_TIME: Duration = Duration::from_secs(1);
/// The least time between two such writes, 100 a second, so that deliveries leave the API server free for other work.
const MIN_WRITE_INTERVAL: Duration = Duration::from_millis(10);
/// The same while there is other work: when all tokens are revoked at once, revoking comes first, then notifying.
const MIN_WRITE_INTERVAL_WHEN_BUSY: Duration = Duration::from_millis(200);
/// From this much other work on, in reconciliations and deliveries under way, the process counts as busy. A guess: fewer
/// are the usual rotations, and revoking all tokens at once starts dozens.
const BUSY_THRESHOLD: usize = 4;

/// How much this process has to do: reconciliations and series of deliveries under way.
#[derive(Clone, Default)]
pub(crate) struct Load(Arc<AtomicUsize>);

/// One piece of work, which counts until this is dropped.
pub(crate) struct Work(Load);

/// A token whose receipts are being collected.
struct Collecting {
    until: Instant,
    uid: Key,
    token: ObjectRef<Token>,
}

/// Requeues tokens when their receipts have been collected, no faster than the API server should be written to.
struct ReceiptBatcher {
    collecting: mpsc::UnboundedReceiver<Collecting>,
    cache: Arc<StateCache>,
    load: Load,
    /// When it last requeued a token.
    last: Instant,
}

/// The sending end of the queue of [`channel`].
#[derive(Clone)]
pub(crate) struct RequeueSender {
    now: mpsc::UnboundedSender<ObjectRef<Token>>,
    receipts: mpsc::UnboundedSender<Collecting>,
}

/// A new queue, and the stream of tokens in it, each when it is due.
pub(crate) fn channel(
    cache: Arc<StateCache>,
    load: Load,
) -> (RequeueSender, BoxStream<'static, ObjectRef<Token>>) {
    let (now, at_once) = mpsc::unbounded_channel();
    let (receipts, collecting) = mpsc::unbounded_channel();
    let at_once = stream::unfold(at_once, async |mut queue| Some((queue.recv().await?, queue)));
    let collector = ReceiptBatcher { collecting, cache, load, last: Instant::now() };
    let collected = stream::unfold(collector, ReceiptBatcher::next);
    (RequeueSender { now, receipts }, stream::select(at_once, collected).boxed())
}

impl RequeueSender {
    /// Requeues a token at once.
    pub(crate) fn now(&self, token: ObjectRef<Token>) {
        // An error means that the process is ending.
        let _ = self.now.send(token);
    }

    /// Requeues a token once its receipts have been collected. A status is written for them alone if no other write has
    /// included them by then.
    pub(crate) fn collect(&self, uid: Key, token: ObjectRef<Token>) {
        let _ = self.receipts.send(Collecting { until: Instant::now() + COLLECTION_TIME, uid, token });
    }
}

impl ReceiptBatcher {
    async fn next(mut self) -> Option<(ObjectRef<Token>, Self)> {
        // All wait equally long, so they are due in the order in which they came.
        let Collecting { until, uid, token } = self.collecting.recv().await?;
        sleep_until(until).await;
        while !self.load.allows_a_write_since(self.last) {
            sleep(MIN_WRITE_INTERVAL).await;
        }
        self.cache.with_existing(&uid, |state| state.receipts.due = !state.receipts.accepted.is_empty());
        self.last = Instant::now();
        Some((token, self))
    }
}

impl Load {
    pub(crate) fn begin(&self) -> Work {
        self.0.fetch_add(1, Ordering::Relaxed);
        Work(self.clone())
    }

    fn allows_a_write_since(&self, last: Instant) -> bool {
        let interval = if self.0.load(Ordering::Relaxed) < BUSY_THRESHOLD {
            MIN_WRITE_INTERVAL
        } else {
            MIN_WRITE_INTERVAL_WHEN_BUSY
        };
        last.elapsed() >= interval
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenward_core::outbox::events::Receipt;

    fn due(cache: &StateCache, uid: &str) -> Option<bool> {
        cache.with_existing(uid, |state| state.receipts.due)
    }

    #[tokio::test(start_paused = true)]
    async fn receipts_are_collected_and_delay_no_other_token() {
        let cache = Arc::<StateCache>::default();
        let (requeue, mut requeued) = channel(cache.clone(), Load::default());
        let start = Instant::now();
        let receipt = Receipt { id: "evt".into(), webhook: "hook".into() };
        cache.with("waits", |state| state.receipts.add(receipt));
        cache.with("written", |_| ());
        for uid in ["waits", "written", "gone"] {
            requeue.collect(uid.into(), ObjectRef::new(uid));
        }
        requeue.now(ObjectRef::new("now"));
        assert_eq!(requeued.next().await.expect("a token").name, "now");
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(due(&cache, "waits"), Some(false));
        let mut at = Vec::new();
        for uid in ["waits", "written", "gone"] {
            assert_eq!(requeued.next().await.expect("a token").name, uid);
            at.push(start.elapsed());
        }
        assert_eq!(
            at,
            [COLLECTION_TIME, COLLECTION_TIME + MIN_WRITE_INTERVAL, COLLECTION_TIME + 2 * MIN_WRITE_INTERVAL]
        );
        assert_eq!(["waits", "written", "gone"].map(|uid| due(&cache, uid)), [Some(true), Some(false), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn receipts_wait_for_other_work_but_not_for_ever() {
        let load = Load::default();
        let (requeue, mut requeued) = channel(Arc::default(), load.clone());
        let start = Instant::now();
        for n in 0..4 {
            requeue.collect("uid".into(), ObjectRef::new(&n.to_string()));
        }
        let busy: Vec<_> = (0..BUSY_THRESHOLD).map(|_| load.begin()).collect();
        for n in 0..3 {
            requeued.next().await.expect("a token");
            assert_eq!(start.elapsed(), COLLECTION_TIME + n * MIN_WRITE_INTERVAL_WHEN_BUSY);
        }
        drop(busy);
        requeued.next().await.expect("a token");
        assert_eq!(start.elapsed(), COLLECTION_TIME + 2 * MIN_WRITE_INTERVAL_WHEN_BUSY + MIN_WRITE_INTERVAL);
    }
}
