//! Which event of one endpoint is next, and when.
//!
//! Each token has a lane: its events go out one after the other, in their order, so an event that is not accepted
//! holds up those behind it, and no other token's. What a lane holds comes from the watch, which lags; so what was
//! accepted is remembered until the watch has seen it go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::payload::Message;

/// What identifies a lane: a token's uid, or another text for events that wait in the TokenWebhook.
pub type Key = Arc<str>;

/// An event, and the TokenWebhooks that have not accepted it.
pub type Awaited = (Arc<Message>, Vec<String>);

/// The events of one token as its status has them, and who waits for them.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The lane.
    pub key: Key,
    /// The events in their order.
    pub events: Vec<Awaited>,
    /// How many events were lost, by TokenWebhook.
    pub lost: BTreeMap<String, i64>,
}

/// An event whose turn it is.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its lane.
    pub key: Key,
    /// The event.
    pub message: Arc<Message>,
    /// How often it was tried before.
    pub attempts: u32,
}

/// The lanes of one endpoint.
#[derive(Debug)]
pub struct Lanes {
    webhook: String,
    lanes: HashMap<Key, Lane>,
    due: BTreeSet<(Instant, Key)>,
    pending: usize,
}

#[derive(Debug)]
struct Lane {
    waiting: Arc<Waiting>,
    /// Ids of events that need nothing more, although `waiting` still has them.
    done: Vec<String>,
    /// How often the first event was tried.
    attempts: u32,
    state: State,
    /// How many events are open.
    open: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Idle,
    Due(Instant),
    UnderWay,
}

impl Waiting {
    fn concerns(&self, webhook: &str) -> bool {
        self.lost.contains_key(webhook) || self.events_for(webhook).next().is_some()
    }

    fn events_for(&self, webhook: &str) -> impl Iterator<Item = &Arc<Message>> {
        let waits = move |(_, webhooks): &&Awaited| webhooks.iter().any(|name| name == webhook);
        self.events.iter().filter(waits).map(|(message, _)| message)
    }
}

impl Lanes {
    /// The lanes of a TokenWebhook, empty.
    pub fn of(webhook: &str) -> Self {
        Self { webhook: webhook.to_owned(), lanes: HashMap::new(), due: BTreeSet::new(), pending: 0 }
    }

    /// Takes note of what waits in a token.
    pub fn see(&mut self, waiting: Arc<Waiting>, now: Instant) {
        let key = waiting.key.clone();
        if !waiting.concerns(&self.webhook) && !self.lanes.contains_key(&key) {
            return;
        }
        let lane = self.lanes.entry(key.clone()).or_insert_with(|| Lane {
            waiting: waiting.clone(),
            done: Vec::new(),
            attempts: 0,
            state: State::Idle,
            open: 0,
        });
        let first = lane.head(&self.webhook).map(|message| message.id.clone());
        lane.waiting = waiting;
        let Lane { waiting, done, .. } = lane;
        done.retain(|id| waiting.events_for(&self.webhook).any(|message| message.id == *id));
        if lane.head(&self.webhook).map(|message| &message.id) != first.as_ref()
            && lane.state != State::UnderWay
        {
            lane.attempts = 0;
            lane.due_at(&key, None, &mut self.due);
        }
        self.settle(&key, now);
    }

    /// Forgets a token that is gone; answers what it leaves behind.
    pub fn gone(&mut self, key: &Key) -> Vec<Arc<Message>> {
        let Some(lane) = self.lanes.get(key) else { return Vec::new() };
        let left = lane.open_events(&self.webhook).cloned().collect();
        self.forget(key);
        left
    }

    /// The event whose turn it is, which is then under way.
    pub fn next(&mut self, now: Instant) -> Option<Job> {
        let (at, key) = self.due.first()?;
        if *at > now {
            return None;
        }
        let key = key.clone();
        self.due.pop_first();
        let lane = self.lanes.get_mut(&key)?;
        lane.state = State::UnderWay;
        let message = lane.head(&self.webhook)?.clone();
        Some(Job { key, message, attempts: lane.attempts })
    }

    /// When the next turn comes.
    pub fn next_at(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The event needs nothing more: it was accepted, or is kept elsewhere.
    pub fn done(&mut self, key: &Key, id: &str, now: Instant) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.done.push(id.to_owned());
            lane.attempts = 0;
            lane.state = State::Idle;
            self.settle(key, now);
        }
    }

    /// The event is open after all.
    pub fn reopen(&mut self, key: &Key, id: &str, now: Instant) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.done.retain(|done| done != id);
            self.settle(key, now);
        }
    }

    /// The attempt failed: again at that time.
    pub fn failed(&mut self, key: &Key, id: &str, again: Instant) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.state = State::Idle;
        let same = lane.head(&self.webhook).is_some_and(|message| message.id == id);
        lane.attempts = if same { lane.attempts.saturating_add(1) } else { 0 };
        self.settle(key, again);
    }

    /// Nobody knows what came of the attempt: again at that time, as if it had not been made.
    pub fn undecided(&mut self, key: &Key, again: Instant) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.state = State::Idle;
            self.settle(key, again);
        }
    }

    /// Brings every lane's turn forward to now, where something has changed for the better.
    pub fn hurry(&mut self, now: Instant) {
        let waiting: Vec<Key> = self.due.iter().map(|(_, key)| key.clone()).collect();
        for key in waiting {
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.due_at(&key, Some(now), &mut self.due);
            }
        }
    }

    /// How many events wait.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// How many events were lost for want of room.
    pub fn lost(&self) -> i64 {
        self.lanes.values().filter_map(|lane| lane.waiting.lost.get(&self.webhook)).sum()
    }

    /// Events that have waited for longer than this, of lanes that are not under way.
    pub fn older(&self, than: Duration, now: Timestamp) -> Vec<Job> {
        let idle = self.resting();
        idle.flat_map(|(key, lane)| {
            let events = lane.open_events(&self.webhook).enumerate();
            events.filter(|(_, message)| age(message, now) >= than).map(|(at, message)| Job {
                key: key.clone(),
                message: message.clone(),
                attempts: if at == 0 { lane.attempts } else { 0 },
            })
        })
        .collect()
    }

    /// For how long the oldest event has waited, of lanes that are not under way.
    pub fn oldest(&self, now: Timestamp) -> Option<Duration> {
        let events = self.resting().flat_map(|(_, lane)| lane.open_events(&self.webhook));
        events.map(|message| age(message, now)).max()
    }

    fn resting(&self) -> impl Iterator<Item = (&Key, &Lane)> {
        self.lanes.iter().filter(|(_, lane)| lane.state != State::UnderWay)
    }

    /// Counts a lane anew, gives its first event a turn if it has none, and forgets it if there is nothing left.
    fn settle(&mut self, key: &Key, at: Instant) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        let open = lane.open_events(&self.webhook).count();
        self.pending = self.pending + open - lane.open;
        lane.open = open;
        match (&lane.state, open) {
            (State::Idle, 1..) => lane.due_at(key, Some(at), &mut self.due),
            (State::Due(_), 0) => lane.due_at(key, None, &mut self.due),
            _ => {}
        }
        if lane.state == State::Idle && !lane.waiting.concerns(&self.webhook) {
            self.forget(key);
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(mut lane) = self.lanes.remove(key) {
            lane.due_at(key, None, &mut self.due);
            self.pending -= lane.open;
        }
    }
}

impl Lane {
    fn open_events<'a>(&'a self, webhook: &'a str) -> impl Iterator<Item = &'a Arc<Message>> {
        self.waiting.events_for(webhook).filter(|message| !self.done.contains(&message.id))
    }

    fn due_at(&mut self, key: &Key, at: Option<Instant>, due: &mut BTreeSet<(Instant, Key)>) {
        if let State::Due(before) = self.state {
            due.remove(&(before, key.clone()));
        }
        self.state = at.map_or(State::Idle, State::Due);
        due.extend(at.map(|at| (at, key.clone())));
    }

    fn head<'a>(&'a self, webhook: &'a str) -> Option<&'a Arc<Message>> {
        self.open_events(webhook).next()
    }
}

/// How long an event has waited.
pub fn age(message: &Message, now: Timestamp) -> Duration {
    now.duration_since(message.since).max(jiff::SignedDuration::ZERO).unsigned_abs()
}

#[cfg(test)]
mod tests;
