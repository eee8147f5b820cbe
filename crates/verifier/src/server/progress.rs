//! The state of a connection as other tasks see it, and the signals that they send to it.
//!
//! Each request passes here, so nothing is shared between connections, and nothing is locked: only the
//! connection's own task counts, all others only look.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::Poll;

use futures::future::poll_fn;
use futures::task::AtomicWaker;

/// What a connection has done so far.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Reads that brought something.
    reads: AtomicU64,
    /// `reads` when the last request had been answered.
    taken: AtomicU64,
    /// Beginnings and ends of requests: odd while one is being answered.
    steps: AtomicU64,
    signal: AtomicU8,
    waker: AtomicWaker,
}

/// A request to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Signal {
    /// To close once the request in flight, if there is one, is answered.
    Finish = 1,
    /// To close.
    Close = 2,
}

impl Progress {
    /// A read has brought something.
    pub(super) fn read(&self) {
        count(&self.reads);
    }

    /// A request is there.
    pub(super) fn begin(&self) {
        count(&self.steps);
    }

    /// It has been answered.
    pub(super) fn end(&self) {
        self.taken.store(self.reads.load(Relaxed), Relaxed);
        count(&self.steps);
    }

    /// A number that changes with every request.
    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Relaxed)
    }

    /// Whether a request is being answered.
    pub(super) fn is_busy(&self) -> bool {
        self.steps() % 2 == 1
    }

    /// Whether the client has a request to send: on a new connection from the start, later from its first byte.
    pub(super) fn is_head_due(&self) -> bool {
        self.steps() == 0 || self.reads.load(Relaxed) != self.taken.load(Relaxed)
    }

    /// Tells the connection's task, wherever it waits.
    pub(super) fn tell(&self, signal: Signal) {
        self.signal.fetch_max(signal as u8, Relaxed);
        self.waker.wake();
    }

    /// Whether this signal, or a stronger one, was sent.
    pub(super) fn is_told(&self, signal: Signal) -> bool {
        self.signal.load(Relaxed) >= signal as u8
    }

    /// Makes this task the one that is woken when the connection gets a signal. Once a task is enough: its
    /// waker stays the same.
    pub(super) async fn is_mine(&self) {
        poll_fn(|context| {
            self.waker.register(context.waker());
            Poll::Ready(())
        })
        .await;
    }

    /// Runs until this signal, or a stronger one, is sent. `None`: it was.
    pub(super) async fn unless<T>(&self, signal: Signal, future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        poll_fn(|context| match self.is_told(signal) {
            true => Poll::Ready(None),
            false => future.as_mut().poll(context).map(Some),
        })
        .await
    }
}

/// Adds one where nobody else adds, which is cheaper than a `fetch_add`.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}
