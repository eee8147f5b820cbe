//! Tokens that are to be looked at though nothing has changed in the cluster: a TokenWebhook has come or gone, or what
//! endpoints have accepted is to be put on record.

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

/// How long a token's receipts are collected before a status may be written for them alone: most go along with
/// another write before.
const COLLECT: Duration = Duration::from_secs(1);
/// The time between two such writes, 100 a second: what is delivered must not keep the API server from others' work.
const PACE: Duration = Duration::from_millis(10);
/// The same while there is other work: when all tokens are revoked at once, enforcing that comes first, and then that
/// it is told.
const PACE_WHEN_BUSY: Duration = Duration::from_millis(200);
/// From so many pieces of it at once.
const BUSY: usize = 4;

/// How much this process has to do: the tokens that it looks at, and the runs that send one event after the other.
#[derive(Clone, Default)]
pub(crate) struct Load(Arc<AtomicUsize>);

/// A piece of work, until it is dropped.
pub(crate) struct Work(Load);

/// A token whose receipts are collected.
struct Collecting {
    until: Instant,
    uid: Key,
    token: ObjectRef<Token>,
}

/// Lets tokens go whose receipts are collected.
struct ReceiptBatcher {
    collecting: mpsc::UnboundedReceiver<Collecting>,
    memories: Arc<StateCache>,
    load: Load,
    /// When it last did.
    last: Instant,
}

/// Asks for looks.
#[derive(Clone)]
pub(crate) struct RequeueSender {
    now: mpsc::UnboundedSender<ObjectRef<Token>>,
    receipts: mpsc::UnboundedSender<Collecting>,
}

/// A new queue, and the tokens in it, each when its time comes.
pub(crate) fn channel(
    memories: Arc<StateCache>,
    load: Load,
) -> (RequeueSender, BoxStream<'static, ObjectRef<Token>>) {
    let (now, at_once) = mpsc::unbounded_channel();
    let (receipts, collecting) = mpsc::unbounded_channel();
    let at_once = stream::unfold(at_once, async |mut queue| Some((queue.recv().await?, queue)));
    let collector = ReceiptBatcher { collecting, memories, load, last: Instant::now() };
    let collected = stream::unfold(collector, ReceiptBatcher::next);
    (RequeueSender { now, receipts }, stream::select(at_once, collected).boxed())
}

impl RequeueSender {
    /// Has a token looked at.
    pub(crate) fn now(&self, token: ObjectRef<Token>) {
        // Nobody takes it once the process ends.
        let _ = self.now.send(token);
    }

    /// Has a token's receipts collected, and then a status written for them alone if they still wait.
    pub(crate) fn collect(&self, uid: Key, token: ObjectRef<Token>) {
        let _ = self.receipts.send(Collecting { until: Instant::now() + COLLECT, uid, token });
    }
}

impl ReceiptBatcher {
    async fn next(mut self) -> Option<(ObjectRef<Token>, Self)> {
        // The first that came is the first that is due.
        let Collecting { until, uid, token } = self.collecting.recv().await?;
        sleep_until(until).await;
        while !self.load.allows_a_write_since(self.last) {
            sleep(PACE).await;
        }
        self.memories.with_known(&uid, |memory| memory.receipts.due = !memory.receipts.accepted.is_empty());
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
        let pace = if self.0.load(Ordering::Relaxed) < BUSY { PACE } else { PACE_WHEN_BUSY };
        last.elapsed() >= pace
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

    fn due(memories: &StateCache, uid: &str) -> Option<bool> {
        memories.with_known(uid, |memory| memory.receipts.due)
    }

    #[tokio::test(start_paused = true)]
    async fn receipts_are_collected_and_hold_up_nobody() {
        let memories = Arc::<StateCache>::default();
        let (nudges, mut looks) = channel(memories.clone(), Load::default());
        let start = Instant::now();
        let receipt = Receipt { id: "evt".into(), webhook: "hook".into() };
        memories.with("waits", |memory| memory.receipts.take(receipt));
        memories.with("written", |_| ());
        for uid in ["waits", "written", "gone"] {
            nudges.collect(uid.into(), ObjectRef::new(uid));
        }
        nudges.now(ObjectRef::new("now"));
        assert_eq!(looks.next().await.expect("a look").name, "now");
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(due(&memories, "waits"), Some(false));
        let mut at = Vec::new();
        for uid in ["waits", "written", "gone"] {
            assert_eq!(looks.next().await.expect("a look").name, uid);
            at.push(start.elapsed());
        }
        assert_eq!(at, [COLLECT, COLLECT + PACE, COLLECT + 2 * PACE]);
        assert_eq!(
            ["waits", "written", "gone"].map(|uid| due(&memories, uid)),
            [Some(true), Some(false), None]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn receipts_give_way_to_other_work_and_still_get_through() {
        let under_way = Load::default();
        let (nudges, mut looks) = channel(Arc::default(), under_way.clone());
        let start = Instant::now();
        for n in 0..4 {
            nudges.collect("uid".into(), ObjectRef::new(&n.to_string()));
        }
        let busy: Vec<_> = (0..BUSY).map(|_| under_way.begin()).collect();
        for n in 0..3 {
            looks.next().await.expect("a look");
            assert_eq!(start.elapsed(), COLLECT + n * PACE_WHEN_BUSY);
        }
        drop(busy);
        looks.next().await.expect("a look");
        assert_eq!(start.elapsed(), COLLECT + 2 * PACE_WHEN_BUSY + PACE);
    }
}
