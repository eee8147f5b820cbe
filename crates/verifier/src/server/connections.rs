//! The open connections: how many there may be, and which are closed.
//!
//! An inspection of all of them every few seconds closes those that have waited too long for a request head or for the
//! next request. hyper's own header timeout would need a timer for each request, and would also close idle connections,
//! which gateways keep open on purpose.
//!
//! At the maximum, a new connection displaces the one that has been quiet for longest, that is, has not begun or ended a
//! request. If the new one were rejected instead, ten thousand connections without a request could lock out everybody. Only
//! the addresses with at least the average number of connections lose any, so that one address, however busy, displaces its
//! own and not those of others. A fixed maximum for an address would be no better: a gateway may have most of them.
//!
//! The clock is read for inspections only, never for a request. A list has the quieter half of some hundred connections that
//! may be displaced; those on it are closed one by one unless they have been active since, and then the next hundreds have
//! their turn. So a client has at least about the time in which half of the slots are filled, and no answer waits until
//! thousands of connections are inspected.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use slab::Slab;
use tokio::sync::Notify;

use super::Timeouts;
use super::progress::{Progress, Signal};
use crate::metrics::ConnectionMetrics;
use tokenward_runtime::sync::lock;

/// Of how many connections a list has the quieter half.
const LISTED: usize = 256;
/// If the addresses with at least the average number of connections have less than this fraction of all, none has so many
/// that it matters, and all may lose some. Otherwise a few such connections would need a new list for each that is opened.
const CROWDED_DIVISOR: usize = 16;

/// The open connections of a listener.
#[derive(Clone, Debug)]
pub(super) struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    /// Notified when a connection is gone.
    gone: Notify,
    metrics: ConnectionMetrics,
}

#[derive(Debug, Default)]
struct Table {
    max: usize,
    entries: Slab<Entry>,
    /// How many connections each address has.
    peers: HashMap<IpAddr, usize>,
    /// Where the next list begins among `entries`.
    next: usize,
    /// The candidates for displacement, by the time since which they are quiet and their key in `entries`. The quietest is
    /// last.
    quiet: Vec<(Instant, usize)>,
}

/// An open connection, and the state at its last inspection.
#[derive(Debug)]
struct Entry {
    peer: IpAddr,
    progress: Arc<Progress>,
    steps: u64,
    /// The first inspection that found these steps.
    since: Instant,
    /// The first inspection that found a request head to be due.
    head_since: Option<Instant>,
}

/// The slot of an open connection, which is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    key: usize,
    connections: Connections,
}

impl Connections {
    /// At most `max` connections at a time, or one if it is 0.
    pub(super) fn new(max: usize, metrics: ConnectionMetrics) -> Self {
        let table = Table { max: max.max(1), ..Table::default() };
        Self(Arc::new(Shared { table: Mutex::new(table), gone: Notify::new(), metrics }))
    }

    /// Registers a new connection from this address. At the maximum, signals another to close.
    pub(super) fn open(&self, peer: IpAddr, now: Instant) -> (Slot, Arc<Progress>) {
        let progress = Arc::new(Progress::default());
        let mut table = self.table();
        if table.entries.len() >= table.max && table.close_one(now) {
            self.0.metrics.displaced.inc();
        }
        let key = table.insert(Entry::new(peer, progress.clone(), now));
        self.0.metrics.open.inc();
        (Slot { key, connections: self.clone() }, progress)
    }

    /// Closes the connections whose time has run out. To be called several times in `timeouts.header_read`.
    pub(super) fn close_stalled(&self, now: Instant, timeouts: Timeouts) {
        for (_, entry) in &mut self.table().entries {
            entry.inspect(now);
            if entry.is_stalled(now, timeouts) {
                entry.progress.send(Signal::Close);
            }
        }
    }

    /// Signals all connections to finish, and waits until they have.
    pub(super) async fn finish(&self) {
        for (_, entry) in &self.table().entries {
            entry.progress.send(Signal::Finish);
        }
        while self.len() > 0 {
            self.0.gone.notified().await;
        }
    }

    /// Waits until those that were signalled to close are gone, as far as they are too many. Only then may another be opened:
    /// a signal frees nothing, so a flood would outrun it. All places would be of connections that are closing, and those of
    /// others would be displaced for want of any else.
    pub(super) async fn room(&self) {
        while self.is_over_full() {
            self.0.gone.notified().await;
        }
    }

    fn is_over_full(&self) -> bool {
        let table = self.table();
        table.entries.len() > table.max
    }

    pub(super) fn len(&self) -> usize {
        self.table().entries.len()
    }

    /// Of how many, the last request was a stranger's.
    #[cfg(test)]
    pub(super) fn strangers(&self) -> usize {
        self.table().entries.iter().filter(|(_, entry)| entry.progress.is_strangers()).count()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.0.table)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let shared = &self.connections.0;
        let mut table = self.connections.table();
        let removed = table.remove(self.key);
        drop(table);
        // Only now, without the lock: this may drop a task's waker.
        drop(removed);
        shared.metrics.open.dec();
        shared.gone.notify_one();
    }
}

impl Table {
    /// Signals the connection that has been quiet for longest to close. False: all have been signalled already.
    fn close_one(&mut self, now: Instant) -> bool {
        if self.close_listed() {
            return true;
        }
        self.list_quiet(now);
        self.close_listed()
    }

    fn close_listed(&mut self) -> bool {
        while let Some((since, key)) = self.quiet.pop() {
            if let Some(entry) = self.entries.get(key)
                // Otherwise the connection is closed, and another one has its key.
                && entry.since == since
                && !entry.has_progressed()
                && !entry.progress.has_received(Signal::Close)
            {
                entry.progress.send(Signal::Close);
                return true;
            }
        }
        false
    }

    /// Lists the quieter half of the next connections that may be displaced.
    fn list_quiet(&mut self, now: Instant) {
        let (total, peers) = (self.entries.len(), self.peers.len());
        let is_crowded = |connections: usize| connections * peers >= total;
        let crowded: usize = self.peers.values().filter(|connections| is_crowded(**connections)).sum();
        let all_lose = crowded * CROWDED_DIVISOR < total;
        let slots = self.entries.capacity();
        for _ in 0..slots {
            if self.quiet.len() >= LISTED {
                break;
            }
            let key = self.next % slots;
            self.next = key + 1;
            let Some(entry) = self.entries.get_mut(key) else { continue };
            entry.inspect(now);
            let may_lose = all_lose || self.peers.get(&entry.peer).is_some_and(|count| is_crowded(*count));
            if may_lose && !entry.progress.has_received(Signal::Close) {
                self.quiet.push((entry.since, key));
            }
        }
        self.quiet.sort_unstable();
        self.quiet.truncate(self.quiet.len().div_ceil(2));
        self.quiet.reverse();
    }

    fn insert(&mut self, entry: Entry) -> usize {
        *self.peers.entry(entry.peer).or_default() += 1;
        self.entries.insert(entry)
    }

    fn remove(&mut self, key: usize) -> Option<Entry> {
        let entry = self.entries.try_remove(key)?;
        if let Some(connections) = self.peers.get_mut(&entry.peer) {
            *connections -= 1;
            if *connections == 0 {
                self.peers.remove(&entry.peer);
            }
        }
        Some(entry)
    }
}

impl Entry {
    fn new(peer: IpAddr, progress: Arc<Progress>, now: Instant) -> Self {
        Self { peer, progress, steps: 0, since: now, head_since: Some(now) }
    }

    fn has_progressed(&self) -> bool {
        self.progress.steps() != self.steps
    }

    /// Records progress since the last inspection.
    fn inspect(&mut self, now: Instant) {
        if self.has_progressed() {
            (self.steps, self.since, self.head_since) = (self.progress.steps(), now, None);
        }
        if self.progress.is_head_due() {
            self.head_since.get_or_insert(now);
        }
    }

    /// Whether the client's time has run out. A request in progress has limits of its own.
    fn is_stalled(&self, now: Instant, timeouts: Timeouts) -> bool {
        let head = self.head_since.is_some_and(|since| now - since > timeouts.header_read);
        !self.progress.is_busy() && (head || now - self.since > timeouts.keep_alive)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;

    const PEER: IpAddr = address(1);

    const TICK: Duration = Duration::from_secs(5);
    const TIMEOUTS: Timeouts = Timeouts {
        header_read: Duration::from_secs(10),
        keep_alive: Duration::from_secs(60),
        shutdown_grace: Duration::ZERO,
    };

    const fn address(last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
    }

    fn connections(max: usize) -> Connections {
        Connections::new(max, ConnectionMetrics::default())
    }

    fn request(progress: &Progress) {
        progress.read();
        progress.begin();
        progress.end();
    }

    fn closed(opened: &[(Slot, Arc<Progress>)]) -> Vec<usize> {
        (0..opened.len()).filter(|at| opened[*at].1.has_received(Signal::Close)).collect()
    }

    #[test]
    fn a_new_connection_displaces_the_one_that_was_quiet_for_longest() {
        let (connections, start) = (connections(4), Instant::now());
        let mut now = start;
        let mut open = || {
            now += TICK;
            connections.open(PEER, now)
        };
        let mut opened: Vec<_> = (0..4).map(|_| open()).collect();
        assert!(closed(&opened).is_empty());
        opened.push(open());
        assert_eq!(closed(&opened), [0]);
        request(&opened[1].1);
        opened.push(open());
        assert_eq!(closed(&opened), [0, 2], "the second has made a request since");
        opened.push(open());
        assert_eq!(closed(&opened), [0, 2, 3]);
        assert_eq!(connections.0.metrics.displaced.get(), 3);
        assert_eq!(connections.0.metrics.open.get(), 7);
        opened.clear();
        assert_eq!((connections.len(), connections.0.metrics.open.get()), (0, 0));
    }

    #[test]
    fn a_place_is_free_only_when_the_displaced_connection_is_gone() {
        let (connections, now) = (connections(2), Instant::now());
        let mut opened: Vec<_> = (0..2).map(|_| connections.open(PEER, now)).collect();
        assert_eq!(connections.room().now_or_never(), Some(()));
        opened.push(connections.open(PEER, now));
        let room = connections.room();
        let mut room = std::pin::pin!(room);
        assert_eq!(room.as_mut().now_or_never(), None);
        opened.retain(|(_, progress)| !progress.has_received(Signal::Close));
        assert_eq!(room.now_or_never(), Some(()));
    }

    #[test]
    fn an_active_connection_stays_open_and_a_new_one_has_a_moment() {
        for (max, moment) in [(100, 49), (10 * LISTED, 4 * LISTED)] {
            check_moment(max, moment);
        }
    }

    /// Whether the newest connections, as many as `moment`, stay open however many more there are.
    fn check_moment(max: usize, moment: usize) {
        let (connections, mut now) = (connections(max), Instant::now());
        let (_active_slot, active) = connections.open(PEER, now);
        let mut opened: Vec<_> = Vec::new();
        for round in 0..20 * max {
            now += Duration::from_micros(30);
            if round % (max / 3) == 0 {
                request(&active);
            }
            opened.push(connections.open(PEER, now));
            // A task that was signalled to close ends soon.
            opened.retain(|(_, progress)| !progress.has_received(Signal::Close));
            assert!(connections.len() <= max + 1);
            let newest = opened.len().saturating_sub(moment);
            assert!(closed(&opened[newest..]).is_empty());
            assert!(!active.has_received(Signal::Close), "in round {round}");
        }
    }

    #[test]
    fn an_address_with_many_connections_displaces_its_own() {
        let (connections, mut now) = (connections(100), Instant::now());
        let quiet: Vec<_> = (2..12).map(|peer| connections.open(address(peer), now)).collect();
        let mut flood: Vec<_> = Vec::new();
        for _ in 0..1000 {
            now += Duration::from_millis(1);
            flood.push(connections.open(PEER, now));
            // Busy ones are no less to be displaced than those of others that are quiet.
            flood.iter().for_each(|(_, progress)| request(progress));
            flood.retain(|(_, progress)| !progress.has_received(Signal::Close));
            assert!(connections.len() <= 101);
        }
        assert!(closed(&quiet).is_empty());
        let newest = connections.open(address(12), now);
        assert!(!newest.1.has_received(Signal::Close) && closed(&quiet).is_empty());
    }

    #[test]
    fn many_addresses_with_a_connection_each_displace_each_other() {
        let (connections, now) = (connections(100), Instant::now());
        let mut opened: Vec<_> = (0..99).map(|peer| connections.open(address(peer), now)).collect();
        opened.push(connections.open(address(0), now));
        for peer in 100..200 {
            opened.push(connections.open(address(peer), now));
            opened.retain(|(_, progress)| !progress.has_received(Signal::Close));
            assert!(opened.len() <= 100);
        }
    }

    #[test]
    fn connections_are_displaced_even_if_all_are_active_or_have_a_request_in_progress() {
        let (connections, now) = (connections(4), Instant::now());
        let mut opened: Vec<_> = (0..4).map(|_| connections.open(PEER, now)).collect();
        for _ in 0..10 {
            opened.iter().for_each(|(_, progress)| request(progress));
            opened.push(connections.open(PEER, now));
            opened.retain(|(_, progress)| !progress.has_received(Signal::Close));
            assert!(opened.len() <= 5);
        }
        opened.iter().for_each(|(_, progress)| progress.begin());
        opened.push(connections.open(PEER, now));
        opened.push(connections.open(PEER, now));
        assert!(!closed(&opened).is_empty());
    }

    #[test]
    fn a_head_has_less_time_than_an_idle_connection() {
        let (connections, mut now) = (connections(10), Instant::now());
        let mut inspect = |times: usize| {
            for _ in 0..times {
                now += TICK;
                connections.close_stalled(now, TIMEOUTS);
            }
        };
        let opened: Vec<_> = (0..4).map(|_| connections.open(PEER, Instant::now())).collect();
        let [silent, begun, idle, busy] = [0, 1, 2, 3].map(|at| &opened[at].1);
        request(begun);
        request(idle);
        busy.read();
        busy.begin();
        inspect(1);
        silent.read();
        begun.read();
        inspect(2);
        assert_eq!(closed(&opened), [0]);
        inspect(2);
        assert_eq!(closed(&opened), [0, 1]);
        inspect(8);
        assert_eq!(closed(&opened), [0, 1]);
        inspect(1);
        assert_eq!(closed(&opened), [0, 1, 2], "and none with a request in progress");
    }
}
