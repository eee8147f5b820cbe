//! Reconciles tokens: each by one reconciliation at a time, and the namespaces in turns.
//!
//! kube's own `Controller` has one queue for all objects, in which one namespace can hold up every other.

mod fair;

use std::pin::pin;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use kube::runtime::reflector::ObjectRef;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::fair::FairQueue;
use crate::objects::Token;
use tokenward_runtime::sync::optional;

/// How many tokens are reconciled at a time. Each waits for the API server most of the time.
const MAX_RUNNING: usize = 64;

/// When a token is reconciled again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// When it, or something that it depends on, changes.
    OnChange,
    /// The same, or after this time.
    After(Duration),
}

/// Reconciles the tokens of a stream of changes, once `ready` has ended. After `stop` it begins no more reconciliations, and
/// waits for those that are under way.
pub(crate) async fn run<F: Future<Output = Next>>(
    changes: impl Stream<Item = ObjectRef<Token>>,
    ready: impl Future<Output = ()>,
    reconcile: impl Fn(ObjectRef<Token>) -> F,
    stop: CancellationToken,
) {
    let (mut changes, mut ready) = (pin!(changes), pin!(ready.fuse()));
    let (mut queue, mut running) = (FairQueue::default(), FuturesUnordered::new());
    let mut is_ready = false;
    loop {
        queue.push_due(Instant::now());
        while is_ready && running.len() < MAX_RUNNING {
            let Some(key) = queue.pop() else { break };
            let work = reconcile(key.clone());
            running.push(async move { (key, work.await) });
        }
        let due = optional(queue.next_due().map(sleep_until));
        tokio::select! {
            () = stop.cancelled() => break,
            () = &mut ready, if !is_ready => is_ready = true,
            Some((key, next)) = running.next() => queue.finish(key, next.at(Instant::now())),
            Some(key) = changes.next() => queue.push(key),
            () = due => {}
        }
    }
    while running.next().await.is_some() {}
}

impl Next {
    fn at(self, now: Instant) -> Option<Instant> {
        match self {
            Self::OnChange => None,
            Self::After(wait) => Some(now + wait),
        }
    }
}
