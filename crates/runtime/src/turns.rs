//! Turns on the processor, for the connections of those who are not known.
//!
//! The runtime's queue of tasks is first come, first served. A thousand strangers that send something leave a thousand tasks
//! in it, and the answer to a client that is known would wait for all of them. So the task of a stranger's connection works
//! only in its turn. After a few turns the sockets are looked at and what else is ready works; the other strangers wait in a
//! queue of their own, which delays nobody else.
//!
//! A task's first step needs no turn. A server accepts one connection between two looks at the sockets anyway
//! ([`crate::listen::accept`]), and by then the request of a client that is known has mostly arrived.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::ready;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio_util::sync::PollSemaphore;

/// How many strangers have a turn between two looks at the sockets, for each thread. A turn takes some microseconds; one that
/// checks a signature, some tens. If there were fewer than a connection has steps, connections would be accepted faster than
/// they are served.
const TURNS_BETWEEN: usize = 4;

/// The turns of one server. Clones share them.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Semaphore>);

impl Turns {
    /// For the threads of the current runtime.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn of_this_runtime() -> Self {
        Self::new(TURNS_BETWEEN * Handle::current().metrics().num_workers())
    }

    fn new(between: usize) -> Self {
        Self(Arc::new(Semaphore::new(between)))
    }

    /// Runs a future, each step but the first in a turn while `is_stranger`. First come, first served.
    pub async fn take<F: Future>(&self, is_stranger: impl Fn() -> bool, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut turns = PollSemaphore::new(Arc::clone(&self.0));
        let (mut is_first, mut waits) = (true, false);
        poll_fn(|context| {
            // A turn that was waited for must be taken, or nobody would have it.
            if std::mem::take(&mut is_first) || !waits && !is_stranger() {
                return future.as_mut().poll(context);
            }
            waits = true;
            let turn = ready!(turns.poll_acquire(context));
            waits = false;
            let polled = future.as_mut().poll(context);
            tokio::spawn(async move {
                // The runtime looks at the sockets before it goes on with a task that yields.
                yield_now().await;
                drop(turn);
            });
            polled
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Poll;

    use super::*;
    use crate::sync::lock;

    const STRANGERS: usize = 40;
    const STEPS: usize = 3;

    /// Goes to the end of the runtime's queue.
    async fn queue() {
        let mut queued = false;
        poll_fn(|context| {
            if std::mem::replace(&mut queued, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Runs some steps of strangers, in turns if there are any, and of one who is known. Returns whose steps were done in
    /// which order: `None` is the one who is known.
    async fn order(turns: Option<Turns>) -> Vec<Option<usize>> {
        let done = Arc::new(Mutex::new(Vec::new()));
        let steps = |who| {
            let done = done.clone();
            async move {
                // The first step, which needs no turn.
                queue().await;
                for _ in 0..STEPS {
                    lock(&done).push(who);
                    queue().await;
                }
            }
        };
        let strangers = (0..STRANGERS).map(|nth| {
            let (turns, steps) = (turns.clone(), steps(Some(nth)));
            tokio::spawn(async move {
                match turns {
                    Some(turns) => turns.take(|| true, steps).await,
                    None => steps.await,
                }
            })
        });
        let mut tasks: Vec<_> = strangers.collect();
        tasks.push(tokio::spawn(steps(None)));
        for task in tasks {
            task.await.expect("no panic");
        }
        std::mem::take(&mut lock(&done))
    }

    /// How many steps of strangers there are between two of the one who is known, at most.
    fn most_between(order: &[Option<usize>]) -> usize {
        let known: Vec<_> = (0..order.len()).filter(|at| order[*at].is_none()).collect();
        assert_eq!(known.len(), STEPS);
        known.windows(2).map(|pair| pair[1] - pair[0] - 1).max().unwrap_or_default()
    }

    #[tokio::test]
    async fn one_who_is_known_waits_for_few_strangers_and_not_for_all() {
        assert_eq!(most_between(&order(None).await), STRANGERS);
        for between in [1, 2, TURNS_BETWEEN] {
            let order = order(Some(Turns::new(between))).await;
            assert!(most_between(&order) <= between, "{order:?}");
            assert!(order.iter().position(Option::is_none) <= Some(between), "{order:?}");
            assert_eq!(order.len(), (STRANGERS + 1) * STEPS);
        }
    }

    #[tokio::test]
    async fn strangers_have_their_turns_in_the_order_of_their_arrival() {
        let order: Vec<_> = order(Some(Turns::new(1))).await.into_iter().flatten().collect();
        let rounds: Vec<_> = (0..STEPS).flat_map(|_| 0..STRANGERS).collect();
        assert_eq!(order, rounds);
    }

    /// The turn that it waited for is assigned to it, so others must not go without.
    #[tokio::test]
    async fn a_stranger_who_becomes_known_while_it_waits_keeps_no_turn() {
        let (turns, known) = (Turns::new(1), Arc::new(AtomicBool::new(false)));
        for _ in 0..STRANGERS {
            let (turns, known) = (turns.clone(), known.clone());
            tokio::spawn(async move {
                let steps = async {
                    queue().await;
                    queue().await;
                    known.store(true, Ordering::Relaxed);
                    // For good, as a connection is.
                    std::future::pending::<()>().await;
                };
                turns.take(|| !known.load(Ordering::Relaxed), steps).await;
            });
        }
        for _ in 0..10 * STRANGERS {
            yield_now().await;
        }
        assert!(known.load(Ordering::Relaxed));
        assert_eq!(turns.0.available_permits(), 1);
    }
}
