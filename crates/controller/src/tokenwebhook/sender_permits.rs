//! How many requests may be under way at once.
//!
//! Every TokenWebhook may always have one, so that no endpoint holds up another. Those beyond it come out of what its
//! namespace has, and out of what all have together: they are bounded by the number of TokenWebhooks, however many of
//! their endpoints hang.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The requests beyond the first ones, of all TokenWebhooks of a namespace.
const OF_A_NAMESPACE: usize = 64;
/// The same of all namespaces.
const OF_ALL: usize = 512;

/// What all namespaces have together.
#[derive(Clone)]
pub(crate) struct ProcessPermits(Arc<Semaphore>);

/// What the TokenWebhooks of a namespace have together.
#[derive(Clone)]
pub(crate) struct SenderPermits {
    namespace: Arc<Semaphore>,
    process: Arc<Semaphore>,
}

/// One request at a time beyond the first one of an endpoint, until this is dropped.
pub(crate) struct SenderPermit {
    _namespace: OwnedSemaphorePermit,
    _process: OwnedSemaphorePermit,
}

impl Default for ProcessPermits {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(OF_ALL)))
    }
}

impl ProcessPermits {
    pub(crate) fn of_namespace(&self) -> SenderPermits {
        SenderPermits { namespace: Arc::new(Semaphore::new(OF_A_NAMESPACE)), process: self.0.clone() }
    }
}

impl SenderPermits {
    /// `None`: all are taken.
    pub(crate) fn take(&self) -> Option<SenderPermit> {
        let namespace = self.namespace.clone().try_acquire_owned().ok()?;
        let process = self.process.clone().try_acquire_owned().ok()?;
        Some(SenderPermit { _namespace: namespace, _process: process })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_namespace_takes_more_than_its_part_and_what_is_dropped_is_free() {
        let process = ProcessPermits::default();
        let tenants: Vec<_> = (0..OF_ALL / OF_A_NAMESPACE + 1).map(|_| process.of_namespace()).collect();
        let take_all = |of: &SenderPermits| std::iter::from_fn(|| of.take()).collect::<Vec<_>>();
        let mut taken: Vec<_> = tenants.iter().map(take_all).collect();
        let counts: Vec<_> = taken.iter().map(Vec::len).collect();
        assert!(counts[..counts.len() - 1].iter().all(|count| *count == OF_A_NAMESPACE), "{counts:?}");
        assert_eq!(counts.last(), Some(&0));
        taken[0].pop();
        let last = take_all(&tenants[counts.len() - 1]);
        assert_eq!(last.len(), 1);
        assert!(tenants[0].take().is_none() && tenants[1].take().is_none());
    }
}
