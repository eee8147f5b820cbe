//! Which event is sent to an endpoint next, and when.
//!
//! Each token has a FIFO queue: its events are sent one after the other, in order, so an event that is not
//! accepted delays those behind it, but none of another token. Queues are filled from the watch, which lags; so an
//! accepted event is remembered until the watch shows that it was removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::payload::Message;

/// The key of a queue: the uid of a token, or another text for events in the outbox of the TokenWebhook.
pub type Key = Arc<str>;

/// An event, and the names of the TokenWebhooks that have not accepted it.
pub type PendingEvent = (Arc<Message>, Vec<String>);

/// The undelivered events of one token, as its status has them.
#[derive(Clone, Debug)]
pub struct TokenEvents {
    /// The key of the queue.
    pub key: Key,
    /// The oldest event first.
    pub events: Vec<PendingEvent>,
    /// How many events were lost, by TokenWebhook.
    pub lost: BTreeMap<String, i64>,
}

/// An event to send now.
#[derive(Clone, Debug)]
pub struct Job {
    /// The key of its queue.
    pub key: Key,
    /// The event to send.
    pub message: Arc<Message>,
    /// How many attempts failed before.
    pub attempts: u32,
}

/// The queues of one endpoint, one for each token.
#[derive(Debug)]
pub struct DeliveryQueue {
    webhook: String,
    queues: HashMap<Key, TokenQueue>,
    due: BTreeSet<(Instant, Key)>,
    pending: usize,
}

#[derive(Debug, Default)]
struct TokenQueue {
    /// The events that the token's status has for this endpoint.
    events: Vec<Event>,
    /// How many events this endpoint has lost.
    lost: i64,
    /// How many attempts with the first open event have failed.
    attempts: u32,
    state: State,
}

#[derive(Debug)]
struct Event {
    message: Arc<Message>,
    /// Whether it needs no attempt any more, although the status still has it.
    done: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    Due(Instant),
    UnderWay,
}

impl TokenEvents {
    fn events_for(&self, webhook: &str) -> impl Iterator<Item = &Arc<Message>> {
        let is_pending = move |(_, webhooks): &&PendingEvent| webhooks.iter().any(|name| name == webhook);
        self.events.iter().filter(is_pending).map(|(message, _)| message)
    }
}

impl DeliveryQueue {
    /// An empty queue for a TokenWebhook.
    pub fn new(webhook: &str) -> Self {
        Self { webhook: webhook.to_owned(), queues: HashMap::new(), due: BTreeSet::new(), pending: 0 }
    }

    /// Updates the queue of a token from its outbox.
    pub fn update(&mut self, token: &TokenEvents, now: Instant) {
        let key = &token.key;
        let before = self.queues.remove(key);
        let known = before.iter().flat_map(|queue| &queue.events);
        let is_done = |id: &str| known.clone().any(|known| known.done && *known.message.id == *id);
        let events = token
            .events_for(&self.webhook)
            .map(|message| Event { message: message.clone(), done: is_done(&message.id) });
        let mut queue = TokenQueue {
            events: events.collect(),
            lost: token.lost.get(&self.webhook).copied().unwrap_or_default(),
            ..TokenQueue::default()
        };
        if before.is_none() && queue.is_empty() {
            return;
        }
        let before = before.unwrap_or_default();
        self.pending = self.pending + queue.open().count() - before.open().count();
        let first = |queue: &TokenQueue| queue.head().map(|message| message.id.clone());
        let is_same = first(&queue) == first(&before);
        (queue.attempts, queue.state) = (before.attempts, before.state);
        if !is_same && queue.state != State::UnderWay {
            queue.attempts = 0;
            queue.due_at(key, None, &mut self.due);
        }
        self.queues.insert(key.clone(), queue);
        self.reschedule(key, now);
    }

    /// Removes the queue of a deleted token. Returns its undelivered events.
    pub fn remove_token(&mut self, key: &Key) -> Vec<Arc<Message>> {
        let Some(queue) = self.queues.get(key) else { return Vec::new() };
        let left = queue.open().cloned().collect();
        self.remove(key);
        left
    }

    /// The next event that is due. No other event of its queue is, until the result is reported.
    pub fn next(&mut self, now: Instant) -> Option<Job> {
        let (at, key) = self.due.first()?;
        if *at > now {
            return None;
        }
        let key = key.clone();
        self.due.pop_first();
        let queue = self.queues.get_mut(&key)?;
        queue.state = State::UnderWay;
        let message = queue.head()?.clone();
        Some(Job { key, message, attempts: queue.attempts })
    }

    /// When the next event is due.
    pub fn next_at(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Reports that an event needs no attempt any more: it was accepted or dead-lettered.
    pub fn done(&mut self, key: &Key, id: &str, now: Instant) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        self.pending -= usize::from(queue.set_done(id, true));
        queue.attempts = 0;
        queue.state = State::Idle;
        self.reschedule(key, now);
    }

    /// Reverts [`Self::done`], because the dead letter could not be stored.
    pub fn reopen(&mut self, key: &Key, id: &str, now: Instant) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        self.pending += usize::from(queue.set_done(id, false));
        self.reschedule(key, now);
    }

    /// Reports that an attempt failed. The next one is due at `again`.
    pub fn failed(&mut self, key: &Key, id: &str, again: Instant) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        queue.state = State::Idle;
        let same = queue.head().is_some_and(|message| *message.id == *id);
        queue.attempts = if same { queue.attempts.saturating_add(1) } else { 0 };
        self.reschedule(key, again);
    }

    /// Reports that an event was not sent, or that its attempt does not count. The next one is due at `again`.
    pub fn requeue(&mut self, key: &Key, again: Instant) {
        if let Some(queue) = self.queues.get_mut(key) {
            queue.state = State::Idle;
            self.reschedule(key, again);
        }
    }

    /// Makes every waiting queue due now, for example when the endpoint has recovered.
    pub fn make_all_due(&mut self, now: Instant) {
        let waiting: Vec<Key> = self.due.iter().map(|(_, key)| key.clone()).collect();
        self.make_due(&waiting, now);
    }

    /// Makes these queues due now, if they are waiting.
    pub fn make_due<'k>(&mut self, keys: impl IntoIterator<Item = &'k Key>, now: Instant) {
        for key in keys {
            if let Some(queue) = self.queues.get_mut(key).filter(|queue| matches!(queue.state, State::Due(_)))
            {
                queue.due_at(key, Some(now), &mut self.due);
            }
        }
    }

    /// How many events are not done.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// How many events were lost for want of room.
    pub fn lost(&self) -> i64 {
        self.queues.values().map(|queue| queue.lost).sum()
    }

    /// Events of at least this age, of queues that are not under way.
    pub fn events_of_age(&self, least: Duration, now: Timestamp) -> Vec<Job> {
        let idle = self.idle();
        idle.flat_map(|(key, queue)| {
            let events = queue.open().enumerate();
            events.filter(|(_, message)| age(message, now) >= least).map(|(at, message)| Job {
                key: key.clone(),
                message: message.clone(),
                attempts: if at == 0 { queue.attempts } else { 0 },
            })
        })
        .collect()
    }

    /// The age of the oldest event of queues that are not under way.
    pub fn oldest_age(&self, now: Timestamp) -> Option<Duration> {
        let events = self.idle().flat_map(|(_, queue)| queue.open());
        events.map(|message| age(message, now)).max()
    }

    fn idle(&self) -> impl Iterator<Item = (&Key, &TokenQueue)> {
        self.queues.iter().filter(|(_, queue)| queue.state != State::UnderWay)
    }

    /// Schedules the first event of a queue if it is not scheduled, and removes the queue if it is empty.
    fn reschedule(&mut self, key: &Key, at: Instant) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        match (&queue.state, queue.head()) {
            (State::Idle, Some(_)) => queue.due_at(key, Some(at), &mut self.due),
            (State::Due(_), None) => queue.due_at(key, None, &mut self.due),
            _ => {}
        }
        if queue.state == State::Idle && queue.is_empty() {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(mut queue) = self.queues.remove(key) {
            queue.due_at(key, None, &mut self.due);
            self.pending -= queue.open().count();
        }
    }
}

impl TokenQueue {
    /// Whether the token's status has nothing for this endpoint.
    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.lost == 0
    }

    fn open(&self) -> impl Iterator<Item = &Arc<Message>> {
        self.events.iter().filter(|event| !event.done).map(|event| &event.message)
    }

    fn head(&self) -> Option<&Arc<Message>> {
        self.open().next()
    }

    /// Returns whether the event was in the other state before.
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

/// The age of an event. Zero if the clock is behind the one that recorded it.
pub fn age(message: &Message, now: Timestamp) -> Duration {
    now.duration_since(message.since).max(jiff::SignedDuration::ZERO).unsigned_abs()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "an Instant can only be made by now()")]
mod tests;
