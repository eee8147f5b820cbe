//! When a watch last brought something that was understood.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// When a watch last brought something that was understood, be it a bookmark. Clones share it.
///
/// Bytes alone count for nothing: they may be of an event that nobody can read, or of a list that never ends.
#[derive(Clone, Debug)]
pub(super) struct Heartbeat {
    start: Instant,
    /// In milliseconds since the start.
    last: Arc<AtomicU64>,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { start: Instant::now(), last: Arc::default() }
    }
}

impl Heartbeat {
    /// Notes that something was received and taken in.
    pub(super) fn beat(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// The time since the last heartbeat, or since this was made if there was none.
    pub(super) fn age(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }

    /// The age of the oldest of these; zero if there is none.
    pub(super) fn oldest<'h>(heartbeats: impl IntoIterator<Item = &'h Self>) -> Duration {
        heartbeats.into_iter().map(Self::age).max().unwrap_or_default()
    }
}
