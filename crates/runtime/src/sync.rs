//! Small helpers for locks and futures.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex even if a panic has poisoned it: for plain data, which a panic leaves usable.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Awaits a future if there is one, and never ends otherwise: a branch of a `select!` for a part that is optional.
pub async fn optional<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
