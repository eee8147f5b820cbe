//! The state of a connection as other tasks see it, and the signals that they send to it.
//!
//! Each request writes here, so nothing is shared between connections, and nothing is locked: only the connection's own
//! task counts, only it and those of its calls note whether the client is known, and all others only read.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::Poll;

use futures::future::poll_fn;
use futures::task::AtomicWaker;

/// The counters of one connection, and the last signal to it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Reads that returned data.
    reads: AtomicU64,
    /// `reads` at the last response.
    reads_at_response: AtomicU64,
    /// Starts and ends of requests: odd while one is in progress.
    steps: AtomicU64,
    /// Whether the last response was to somebody known.
    known: AtomicBool,
    signal: AtomicU8,
    waker: AtomicWaker,
}

/// A signal to a connection's task. Each includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Signal {
    /// Close after the request in progress, if there is one.
    Finish = 1,
    /// Close at once.
    Close = 2,
}

impl Progress {
    /// To be called when a read has returned data.
    pub(super) fn read(&self) {
        count(&self.reads);
    }

    /// To be called when a request's head is complete.
    pub(super) fn begin(&self) {
        count(&self.steps);
    }

    /// To be called when the request has its response.
    pub(super) fn end(&self) {
        self.reads_at_response.store(self.reads.load(Relaxed), Relaxed);
        count(&self.steps);
    }

    /// To be called with each response: whether its client, or the client's client, has presented a token that is valid.
    pub(super) fn set_known(&self, known: bool) {
        self.known.store(known, Relaxed);
    }

    /// Whether no token was presented yet, or the last one was not valid. Such connections work in [`Turns`].
    ///
    /// [`Turns`]: tokenward_runtime::turns::Turns
    pub(super) fn is_strangers(&self) -> bool {
        !self.known.load(Relaxed)
    }

    /// A number that changes with every request.
    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Relaxed)
    }

    /// Whether a request is in progress.
    pub(super) fn is_busy(&self) -> bool {
        self.steps() % 2 == 1
    }

    /// Whether the client has a request to send: on a new connection from the start, later from its first byte.
    pub(super) fn is_head_due(&self) -> bool {
        self.steps() == 0 || self.reads.load(Relaxed) != self.reads_at_response.load(Relaxed)
    }

    /// Sends a signal to the connection's task, and wakes it.
    pub(super) fn send(&self, signal: Signal) {
        self.signal.fetch_max(signal as u8, Relaxed);
        self.waker.wake();
    }

    /// Whether this signal, or a stronger one, was sent.
    pub(super) fn has_received(&self, signal: Signal) -> bool {
        self.signal.load(Relaxed) >= signal as u8
    }

    /// Makes the current task the one that signals wake. Once for each task is enough, because its waker stays the same.
    pub(super) async fn register_task(&self) {
        poll_fn(|context| {
            self.waker.register(context.waker());
            Poll::Ready(())
        })
        .await;
    }

    /// Runs a future until this signal, or a stronger one, is sent. `None`: the signal came first.
    pub(super) async fn run_until<T>(&self, signal: Signal, future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        poll_fn(|context| match self.has_received(signal) {
            true => Poll::Ready(None),
            false => future.as_mut().poll(context).map(Some),
        })
        .await
    }
}

/// Adds one to a counter that no other task writes, which is cheaper than a `fetch_add`.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}
