//! The open connections: how many there may be, and which go.
//!
//! A look every few seconds at all of them ends those whose client lets a request head, or a next request, wait
//! too long: hyper's own header timeout makes a timer for each request, and ends idle connections too, which
//! gateways keep on purpose.
//!
//! When the most connections are open, a new one takes the place of the one that has been quiet longest, that is,
//! has not begun or ended a request. Refusing the new one instead would let ten thousand connections that never
//! ask anything lock out everybody. The clock is read when connections are inspected, never for a request: the quieter
//! half is listed, those on the list go one by one unless they have moved meanwhile, and then the next list is
//! made. So a client has at least as long as it takes to fill half of the places.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use slab::Slab;
use tokio::sync::Notify;

use super::Timeouts;
use super::progress::{Progress, Signal};
use crate::metrics::ConnectionMetrics;

/// The open connections of a listener.
#[derive(Clone, Debug)]
pub(super) struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    /// Notified when the last connection is gone.
    empty: Notify,
    metrics: ConnectionMetrics,
}

#[derive(Debug)]
struct Table {
    most: usize,
    entries: Slab<Entry>,
    /// Who goes next, the quietest last: since when it was quiet, and its number.
    quiet: Vec<(Instant, usize)>,
}

/// An open connection, and what was seen of it.
#[derive(Debug)]
struct Entry {
    progress: Arc<Progress>,
    /// Its steps at the last inspection.
    steps: u64,
    /// When it was first seen to have made them.
    since: Instant,
    /// When a request head was first seen to be awaited.
    head_since: Option<Instant>,
}

/// A connection's place among the open ones, which is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    number: usize,
    connections: Connections,
}

impl Connections {
    /// None yet, and at most so many at a time.
    pub(super) fn new(most: usize, metrics: ConnectionMetrics) -> Self {
        let table = Table { most: most.max(1), entries: Slab::new(), quiet: Vec::new() };
        Self(Arc::new(Shared { table: Mutex::new(table), empty: Notify::new(), metrics }))
    }

    /// Registers a new connection; if that makes too many, asks another to close.
    pub(super) fn open(&self, now: Instant) -> (Place, Arc<Progress>) {
        let progress = Arc::new(Progress::default());
        let mut table = self.table();
        if table.entries.len() >= table.most && table.close_one(now) {
            self.0.metrics.displaced.inc();
        }
        let number = table.entries.insert(Entry::new(progress.clone(), now));
        self.0.metrics.open.inc();
        (Place { number, connections: self.clone() }, progress)
    }

    /// Closes those that have been waited for long enough. To be called several times in `timeouts.header_read`.
    pub(super) fn close_stalled(&self, now: Instant, timeouts: Timeouts) {
        for (_, entry) in &mut self.table().entries {
            entry.look(now);
            if entry.is_stalled(now, timeouts) {
                entry.progress.tell(Signal::Close);
            }
        }
    }

    /// Tells all to finish, and waits until they have.
    pub(super) async fn finish(&self) {
        for (_, entry) in &self.table().entries {
            entry.progress.tell(Signal::Finish);
        }
        while self.len() > 0 {
            self.0.empty.notified().await;
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.table().entries.len()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let shared = &self.connections.0;
        let mut table = self.connections.table();
        let gone = table.entries.try_remove(self.number);
        let empty = table.entries.is_empty();
        drop(table);
        // With it may go a task, whose end is not for the lock.
        drop(gone);
        shared.metrics.open.dec();
        if empty {
            shared.empty.notify_one();
        }
    }
}

impl Table {
    /// Asks the connection that has been quiet longest to close. False: all have been asked already.
    fn close_one(&mut self, now: Instant) -> bool {
        if self.close_listed() {
            return true;
        }
        self.list_quiet(now);
        self.close_listed()
    }

    fn close_listed(&mut self) -> bool {
        while let Some((since, number)) = self.quiet.pop() {
            if let Some(entry) = self.entries.get(number)
                // Otherwise it is gone, and another has its number.
                && entry.since == since
                && !entry.has_moved()
                && !entry.progress.is_told(Signal::Close)
            {
                entry.progress.tell(Signal::Close);
                return true;
            }
        }
        false
    }

    fn list_quiet(&mut self, now: Instant) {
        for (number, entry) in &mut self.entries {
            entry.look(now);
            if !entry.progress.is_told(Signal::Close) {
                self.quiet.push((entry.since, number));
            }
        }
        self.quiet.sort_unstable();
        self.quiet.truncate(self.quiet.len().div_ceil(2));
        self.quiet.reverse();
    }
}

impl Entry {
    fn new(progress: Arc<Progress>, now: Instant) -> Self {
        Self { progress, steps: 0, since: now, head_since: Some(now) }
    }

    fn has_moved(&self) -> bool {
        self.progress.steps() != self.steps
    }

    /// Takes down what is new.
    fn look(&mut self, now: Instant) {
        if self.has_moved() {
            (self.steps, self.since, self.head_since) = (self.progress.steps(), now, None);
        }
        if self.progress.is_head_due() {
            self.head_since.get_or_insert(now);
        }
    }

    /// Whether its client has had time enough. A request that is being answered has limits of its own.
    fn is_stalled(&self, now: Instant, timeouts: Timeouts) -> bool {
        let head = self.head_since.is_some_and(|since| now - since > timeouts.header_read);
        !self.progress.is_busy() && (head || now - self.since > timeouts.keep_alive)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TICK: Duration = Duration::from_secs(5);
    const TIMEOUTS: Timeouts = Timeouts {
        header_read: Duration::from_secs(10),
        keep_alive: Duration::from_secs(60),
        shutdown_grace: Duration::ZERO,
    };

    fn connections(most: usize) -> Connections {
        Connections::new(most, ConnectionMetrics::default())
    }

    fn request(progress: &Progress) {
        progress.read();
        progress.begin();
        progress.end();
    }

    fn closed(opened: &[(Place, Arc<Progress>)]) -> Vec<usize> {
        (0..opened.len()).filter(|at| opened[*at].1.is_told(Signal::Close)).collect()
    }

    #[test]
    fn a_new_connection_displaces_the_one_that_was_quiet_longest() {
        let (connections, start) = (connections(4), Instant::now());
        let mut now = start;
        let mut open = || {
            now += TICK;
            connections.open(now)
        };
        let mut opened: Vec<_> = (0..4).map(|_| open()).collect();
        assert!(closed(&opened).is_empty());
        opened.push(open());
        assert_eq!(closed(&opened), [0]);
        request(&opened[1].1);
        opened.push(open());
        assert_eq!(closed(&opened), [0, 2], "the second has asked meanwhile");
        opened.push(open());
        assert_eq!(closed(&opened), [0, 2, 3]);
        assert_eq!(connections.0.metrics.displaced.get(), 3);
        assert_eq!(connections.0.metrics.open.get(), 7);
        opened.clear();
        assert_eq!((connections.len(), connections.0.metrics.open.get()), (0, 0));
    }

    #[test]
    fn who_asks_again_and_again_stays_and_who_comes_has_a_moment() {
        const MOST: usize = 100;
        let (connections, mut now) = (connections(MOST), Instant::now());
        let (_asking, asks) = connections.open(now);
        let mut opened: Vec<_> = Vec::new();
        for round in 0..20 * MOST {
            now += Duration::from_micros(30);
            if round % (MOST / 3) == 0 {
                request(&asks);
            }
            opened.push(connections.open(now));
            // A task that was asked to close ends soon.
            opened.retain(|(_, progress)| !progress.is_told(Signal::Close));
            assert!(connections.len() <= MOST + 1);
            let newest = opened.len().saturating_sub(MOST / 2 - 1);
            assert!(closed(&opened[newest..]).is_empty());
            assert!(!asks.is_told(Signal::Close), "in round {round}");
        }
    }

    #[test]
    fn room_is_made_when_all_move_on_and_when_all_are_being_answered() {
        let (connections, now) = (connections(4), Instant::now());
        let mut opened: Vec<_> = (0..4).map(|_| connections.open(now)).collect();
        for _ in 0..10 {
            opened.iter().for_each(|(_, progress)| request(progress));
            opened.push(connections.open(now));
            opened.retain(|(_, progress)| !progress.is_told(Signal::Close));
            assert!(opened.len() <= 5);
        }
        opened.iter().for_each(|(_, progress)| progress.begin());
        opened.push(connections.open(now));
        opened.push(connections.open(now));
        assert!(!closed(&opened).is_empty());
    }

    #[test]
    fn a_head_has_less_time_than_an_idle_connection() {
        let (connections, mut now) = (connections(10), Instant::now());
        let mut look = |times: usize| {
            for _ in 0..times {
                now += TICK;
                connections.close_stalled(now, TIMEOUTS);
            }
        };
        let opened: Vec<_> = (0..4).map(|_| connections.open(Instant::now())).collect();
        let [silent, begun, idle, busy] = [0, 1, 2, 3].map(|at| &opened[at].1);
        request(begun);
        request(idle);
        busy.read();
        busy.begin();
        look(1);
        silent.read();
        begun.read();
        look(2);
        assert_eq!(closed(&opened), [0]);
        look(2);
        assert_eq!(closed(&opened), [0, 1]);
        look(8);
        assert_eq!(closed(&opened), [0, 1]);
        look(1);
        assert_eq!(closed(&opened), [0, 1, 2], "and none while it is being answered");
    }
}
