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
pub type PendingEvent = (Arc<Message>, Vec<String>);

/// The events of one token as its status has them, and who waits for them.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The lane.
    pub key: Key,
    /// The events in their order.
    pub events: Vec<PendingEvent>,
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
pub struct DeliveryQueue {
    webhook: String,
    lanes: HashMap<Key, Lane>,
    due: BTreeSet<(Instant, Key)>,
    pending: usize,
}

#[derive(Debug, Default)]
struct Lane {
    /// What the token's status has for this endpoint.
    events: Vec<Event>,
    /// How many events this endpoint has lost.
    lost: i64,
    /// How often the first open event was tried.
    attempts: u32,
    state: State,
}

#[derive(Debug)]
struct Event {
    message: Arc<Message>,
    /// Needs nothing more, although the status still has it.
    done: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    Due(Instant),
    UnderWay,
}

impl Waiting {
    fn events_for(&self, webhook: &str) -> impl Iterator<Item = &Arc<Message>> {
        let waits = move |(_, webhooks): &&PendingEvent| webhooks.iter().any(|name| name == webhook);
        self.events.iter().filter(waits).map(|(message, _)| message)
    }
}

impl DeliveryQueue {
    /// The lanes of a TokenWebhook, empty.
    pub fn of(webhook: &str) -> Self {
        Self { webhook: webhook.to_owned(), lanes: HashMap::new(), due: BTreeSet::new(), pending: 0 }
    }

    /// Takes note of what waits in a token.
    pub fn see(&mut self, waiting: &Waiting, now: Instant) {
        let key = &waiting.key;
        let before = self.lanes.remove(key);
        let known = before.iter().flat_map(|lane| &lane.events);
        let is_done = |id: &str| known.clone().any(|known| known.done && *known.message.id == *id);
        let events = waiting
            .events_for(&self.webhook)
            .map(|message| Event { message: message.clone(), done: is_done(&message.id) });
        let mut lane = Lane {
            events: events.collect(),
            lost: waiting.lost.get(&self.webhook).copied().unwrap_or_default(),
            ..Lane::default()
        };
        if before.is_none() && lane.is_empty() {
            return;
        }
        let before = before.unwrap_or_default();
        self.pending = self.pending + lane.open().count() - before.open().count();
        let first = |lane: &Lane| lane.head().map(|message| message.id.clone());
        let is_same = first(&lane) == first(&before);
        (lane.attempts, lane.state) = (before.attempts, before.state);
        if !is_same && lane.state != State::UnderWay {
            lane.attempts = 0;
            lane.due_at(key, None, &mut self.due);
        }
        self.lanes.insert(key.clone(), lane);
        self.settle(key, now);
    }

    /// Forgets a token that is gone; answers what it leaves behind.
    pub fn gone(&mut self, key: &Key) -> Vec<Arc<Message>> {
        let Some(lane) = self.lanes.get(key) else { return Vec::new() };
        let left = lane.open().cloned().collect();
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
        let message = lane.head()?.clone();
        Some(Job { key, message, attempts: lane.attempts })
    }

    /// When the next turn comes.
    pub fn next_at(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The event needs nothing more: it was accepted, or is kept elsewhere.
    pub fn done(&mut self, key: &Key, id: &str, now: Instant) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        self.pending -= usize::from(lane.set_done(id, true));
        lane.attempts = 0;
        lane.state = State::Idle;
        self.settle(key, now);
    }

    /// The event is open after all.
    pub fn reopen(&mut self, key: &Key, id: &str, now: Instant) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        self.pending += usize::from(lane.set_done(id, false));
        self.settle(key, now);
    }

    /// The attempt failed: again at that time.
    pub fn failed(&mut self, key: &Key, id: &str, again: Instant) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.state = State::Idle;
        let same = lane.head().is_some_and(|message| *message.id == *id);
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
        self.lanes.values().map(|lane| lane.lost).sum()
    }

    /// Events that have waited for longer than this, of lanes that are not under way.
    pub fn older(&self, than: Duration, now: Timestamp) -> Vec<Job> {
        let idle = self.resting();
        idle.flat_map(|(key, lane)| {
            let events = lane.open().enumerate();
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
        let events = self.resting().flat_map(|(_, lane)| lane.open());
        events.map(|message| age(message, now)).max()
    }

    fn resting(&self) -> impl Iterator<Item = (&Key, &Lane)> {
        self.lanes.iter().filter(|(_, lane)| lane.state != State::UnderWay)
    }

    /// Gives a lane's first event a turn if it has none, and forgets the lane if there is nothing left.
    fn settle(&mut self, key: &Key, at: Instant) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        match (&lane.state, lane.head()) {
            (State::Idle, Some(_)) => lane.due_at(key, Some(at), &mut self.due),
            (State::Due(_), None) => lane.due_at(key, None, &mut self.due),
            _ => {}
        }
        if lane.state == State::Idle && lane.is_empty() {
            self.forget(key);
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(mut lane) = self.lanes.remove(key) {
            lane.due_at(key, None, &mut self.due);
            self.pending -= lane.open().count();
        }
    }
}

impl Lane {
    /// Whether the status has nothing for this endpoint.
    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.lost == 0
    }

    fn open(&self) -> impl Iterator<Item = &Arc<Message>> {
        self.events.iter().filter(|event| !event.done).map(|event| &event.message)
    }

    fn head(&self) -> Option<&Arc<Message>> {
        self.open().next()
    }

    /// Answers whether that has changed anything.
    fn set_done(&mut self, id: &str, done: bool) -> bool {
        let event = self.events.iter_mut().find(|event| *event.message.id == *id && event.done != done);
        event.map(|event| event.done = done).is_some()
    }

    fn due_at(&mut self, key: &Key, at: Option<Instant>, due: &mut BTreeSet<(Instant, Key)>) {
        if let State::Due(before) = self.state {
            due.remove(&(before, key.clone()));
        }
        self.state = at.map_or(State::Idle, State::Due);
        due.extend(at.map(|at| (at, key.clone())));
    }
}

/// How long an event has waited.
pub fn age(message: &Message, now: Timestamp) -> Duration {
    now.duration_since(message.since).max(jiff::SignedDuration::ZERO).unsigned_abs()
}

#[cfg(test)]
mod tests;
