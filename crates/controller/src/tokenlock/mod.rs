//! TokenLocks and ClusterTokenLocks: which there are ([`watch`]), for the reconciliation of tokens, and what their own status
//! says of it ([`reconcile`]).
//!
//! No token waits for any of this: verifiers follow locks themselves.

mod reconcile;
pub(crate) mod watch;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use kube::runtime::reflector::Store;
use tokio::sync::watch::Receiver;

pub(crate) use self::reconcile::{Parts, reconcile_all};
use crate::objects::Token;
use tokenward_core::lock::{Candidate, Lock, Locks, Progress};
use tokenward_runtime::sync::lock;

/// A lock that stops more tokens than this makes one Event of its own, and none for each token.
const MAX_EVENTS: usize = 100;

/// The locks, as all controllers of a process share them.
#[derive(Clone)]
pub(crate) struct KnownLocks {
    /// `None` until all are listed.
    current: Receiver<Option<Arc<Locks>>>,
    /// The uids of those that make no Event for each token.
    bulk: Arc<Mutex<HashSet<String>>>,
}

impl KnownLocks {
    fn new(current: Receiver<Option<Arc<Locks>>>) -> Self {
        Self { current, bulk: Arc::default() }
    }

    /// The locks by which to decide.
    pub(crate) fn current(&self) -> Arc<Locks> {
        self.current.borrow().clone().unwrap_or_default()
    }

    /// Ends when all locks are listed.
    pub(crate) async fn listed(&self) {
        // An error means that the watch has ended, which whoever polls the watch notices.
        drop(self.current.clone().wait_for(Option::is_some).await);
    }

    /// Whether a lock stops so many tokens that it makes no Event for each.
    pub(crate) fn is_bulk(&self, by: &Lock) -> bool {
        lock(&self.bulk).contains(by.uid())
    }

    /// Ends at the next change of the locks. Returns those that were added or removed since `before`. `None`: they are no
    /// longer followed.
    async fn changed(&mut self, before: &Locks) -> Option<(Arc<Locks>, Vec<Arc<Lock>>)> {
        self.current.changed().await.ok()?;
        let after = self.current.borrow_and_update().clone()?;
        let is_in = |lock: &&Arc<Lock>, set: &Locks| set.iter().any(|other| other == *lock);
        let added = after.iter().filter(|lock| !is_in(lock, before));
        let removed = before.iter().filter(|lock| !is_in(lock, &after));
        let changed = added.chain(removed).cloned().collect();
        Some((after, changed))
    }
}

/// The tokens that each change of the locks concerns.
pub(crate) fn concerned(
    locks: KnownLocks,
    tokens: Store<Token>,
) -> impl futures::Stream<Item = Vec<Arc<Token>>> {
    let state = (locks, Arc::<Locks>::default());
    futures::stream::unfold(state, move |(mut locks, before)| {
        let tokens = tokens.clone();
        async move {
            let (after, changed) = locks.changed(&before).await?;
            let mut concerned = Vec::new();
            let mut counts = vec![0; changed.len()];
            // Where only statuses have changed, no token is.
            let tokens = if changed.is_empty() { Vec::new() } else { tokens.state() };
            for token in tokens {
                let Some(candidate) = candidate(&token) else { continue };
                let mut is_concerned = false;
                for (lock, count) in changed.iter().zip(&mut counts) {
                    if candidate.progress(lock) != Progress::Unmatched {
                        *count += 1;
                        is_concerned = true;
                    }
                }
                if is_concerned {
                    concerned.push(token);
                }
            }
            let mut bulk = lock(&locks.bulk);
            let exists = |uid: &str| after.iter().any(|by| by.uid() == uid);
            let large = changed.iter().zip(counts).filter(|(_, count)| *count > MAX_EVENTS);
            bulk.extend(large.map(|(by, _)| by.uid().to_owned()));
            bulk.retain(|uid| exists(uid));
            drop(bulk);
            Some((concerned, (locks, after)))
        }
    })
}

/// A token, to be matched against locks. `None`: it can't be read, so nobody knows what matches it.
pub(crate) fn candidate(token: &Token) -> Option<Candidate<'_>> {
    let token = token.0.as_ref().ok()?;
    Some(Candidate::of(token, token.status.as_ref()))
}
