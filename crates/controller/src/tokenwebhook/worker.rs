//! The worker of one TokenWebhook: a task that owns its events, its configuration and its status.
//!
//! It handles commands (undelivered events, changes of the TokenWebhook), starts what is due, and records the results.
//! Unless this process has the lease, it only handles commands. The loop waits for nothing else: reads and writes are
//! futures beside it, and requests are tasks of the dispatcher; so a slow endpoint or API server delays no command.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use tokenward_core::crd::labels::{PING_ANNOTATION, REPLAY_ANNOTATION};
use tokenward_core::crd::{ConditionType, DeadLetter, Reason, StoredEvent, TokenWebhook, find_condition};
use tokenward_core::outbox::dead_letters;
use tokenward_core::outbox::payload::Message;
use tokenward_core::outbox::queue::{Job, Key, PendingEvent, TokenEvents, age};
use tokenward_core::outbox::retry::{Failure, Outcome};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Shared;
use super::command::Command;
use super::conditions::{Health, View};
use super::dispatcher::{Dispatcher, MAX_RESULTS, is_probing};
use super::registry::NewWorker;
use super::sender::Sent;
use super::serving::Serving;
use super::status_writer::{
    AfterWrite, ApiResult, NUMBERS_WRITE_DELAY, StatusWriter, WRITE_DELAY, WriteError, Written,
};
use super::target;
use super::target::Target;

/// How often the target is resolved again, since the Secrets that a spec names are not watched.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(60);
/// The same after a resolution that failed.
const RESOLVE_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// The shortest time between two searches for events that are older than `maxAge` while nothing is sent.
const MIN_SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The length in characters to which the annotations for a ping or a replay are cut, as the CRD bounds them in the status.
const MAX_ANNOTATION_CHARS: usize = 256;

/// The prefix of the queue keys of events that are stored in the TokenWebhook. All other keys are uids of tokens.
const STORED_PREFIX: &str = "stored:";

/// The result of a future beside the loop.
enum Completed {
    Resolved(Result<Box<Target>, Reason>),
    Read(ApiResult),
    Reread(ApiResult),
    Written(Written),
}

pub(crate) struct Worker {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedReceiver<Command>,
    writer: StatusWriter,
    serving: Serving,
    dispatcher: Dispatcher,
    /// The queue keys of the events that are stored in the TokenWebhook.
    stored_keys: BTreeSet<Key>,
    /// The age at which events are dead-lettered: the last valid one of the spec.
    max_age: Duration,
    health: Health,
    /// Reads, writes and resolutions under way.
    beside: FuturesUnordered<BoxFuture<'static, Completed>>,
    /// Whether a resolution of the target is under way.
    resolving: bool,
    /// When the next one is due. One that is under way delays it.
    resolve_at: Instant,
    /// When the next search for events older than `max_age` is due, while nothing is sent.
    sweep_at: Instant,
    /// How many pending events this worker has added to the metric.
    counted: usize,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, new: NewWorker, object: Arc<TokenWebhook>) -> Self {
        let NewWorker { commands, unserved, permits, stop: _ } = new;
        let now = Instant::now();
        Self {
            dispatcher: Dispatcher::new(&object.name_any(), permits, shared.load.clone()),
            writer: StatusWriter::new(shared.clone(), object),
            shared,
            commands,
            serving: Serving { unserved, ..Serving::default() },
            stored_keys: BTreeSet::new(),
            max_age: target::DEFAULT_MAX_AGE,
            health: Health::default(),
            beside: FuturesUnordered::new(),
            resolving: false,
            resolve_at: now,
            sweep_at: now,
            counted: 0,
        }
    }

    /// Runs until the TokenWebhook is deleted or the process ends.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut claim = self.shared.claim.clone();
        let mut results = Vec::with_capacity(MAX_RESULTS);
        loop {
            self.follow_leadership();
            self.start_due();
            self.count();
            let wake = self.wake_at();
            tokio::select! {
                () = stop.cancelled() => break,
                command = self.commands.recv() => match command {
                    Some(command) => self.handle(command),
                    None => break,
                },
                () = self.dispatcher.progress(&mut results) => {
                    let now = (Instant::now(), Timestamp::now());
                    results.drain(..).flatten().for_each(|sent| self.on_sent(sent, now));
                }
                Some(completed) = self.beside.next(), if !self.beside.is_empty() => self.on_completed(completed),
                changed = claim.changed() => if changed.is_err() { break },
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
        self.shared.metrics.pending.dec_by(i64::try_from(self.counted).unwrap_or_default());
    }

    /// Reads the status when this process becomes the leader, and steps down when it no longer is.
    fn follow_leadership(&mut self) {
        if self.shared.claim.borrow().is_valid() {
            let read = self.writer.read();
            self.beside.extend(read.map(|read| read.map(Completed::Read).boxed()));
        } else if self.writer.is_known() {
            self.step_down();
        }
    }

    /// Stops sending and writing. The next leader, which may be this process again, goes on from the stored status. So
    /// events whose dead letter is not stored are pending again; delivered events stay delivered, stored or not.
    fn step_down(&mut self) {
        self.dispatcher.recall();
        // This closes its idle connections. A new leader reads the Secrets again.
        self.serving.target = None;
        for (key, message) in self.writer.step_down() {
            self.dispatcher.queue.reopen(&key, &message.id, Instant::now());
        }
    }

    fn start_due(&mut self) {
        if !self.writer.is_known() {
            return;
        }
        let now = Instant::now();
        if !self.resolving && now >= self.resolve_at {
            if let Some(target) = &self.serving.target {
                target.endpoint.close_idle();
            }
            self.resolve();
        }
        if self.write_at().is_some_and(|at| now >= at) {
            self.write();
        }
        let suspended = self.is_suspended();
        if let Some(target) = self.serving.active(suspended) {
            self.dispatcher.send_due(target, self.writer.object(), self.health.failures, now);
        } else if let Some(blocked) = self.serving.blocked(suspended) {
            let cause = blocked.cause();
            self.dispatcher.recall();
            if now >= self.sweep_at {
                self.sweep_at = now + self.dead_letter_old(cause);
            }
        }
    }

    fn is_suspended(&self) -> bool {
        self.writer.object().spec.suspend == Some(true)
    }

    fn wake_at(&self) -> Instant {
        let latest = Instant::now() + RESOLVE_INTERVAL;
        if !self.writer.is_known() {
            return latest;
        }
        let suspended = self.is_suspended();
        let is_active = self.serving.active(suspended).is_some();
        let due = self.dispatcher.next_at(self.health.failures).filter(|_| is_active);
        let sweep = self.serving.blocked(suspended).map(|_| self.sweep_at);
        let resolve = (!self.resolving).then_some(self.resolve_at);
        [resolve, self.write_at(), due, sweep].into_iter().flatten().min().unwrap_or(latest).min(latest)
    }

    // === Commands ===

    fn handle(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Webhook(object, unserved) => self.update(object, unserved),
            Command::Token(events) => {
                self.dispatcher.queue.update(&events, now);
                self.writer.write_within(NUMBERS_WRITE_DELAY);
            }
            Command::TokenGone(key) => {
                self.dispatcher.remove_ready(&key);
                for message in self.dispatcher.queue.remove_token(&key) {
                    self.store(dead_letters::to_stored(&message, Timestamp::now()));
                }
            }
            // Without a confirmation, the controller sends the command again.
            Command::Store(..) if !self.writer.is_known() => {}
            Command::Store(events, stored) => {
                events.into_iter().for_each(|event| self.store(event));
                self.writer.on_stored(AfterWrite::Confirm(stored));
                self.writer.write_within(Duration::ZERO);
            }
        }
    }

    fn update(&mut self, object: Arc<TokenWebhook>, unserved: Option<Reason>) {
        let before = self.writer.object().metadata.generation;
        if !self.writer.update(object) {
            return;
        }
        if self.writer.object().metadata.generation != before || unserved != self.serving.unserved {
            self.serving.unserved = unserved;
            self.resolve_at = Instant::now();
            self.writer.write_within(WRITE_DELAY);
        }
        self.handle_annotations();
    }

    /// Stores a ping or replays dead letters when the annotation for it has changed.
    fn handle_annotations(&mut self) {
        if !self.writer.is_known() {
            return;
        }
        let (object, now) = (self.writer.object().clone(), Timestamp::now());
        let uid = object.uid().unwrap_or_default();
        let annotation = |name: &str| object.annotations().get(name).map(|text| bounded(text));
        let pinged =
            dead_letters::handle_ping(&mut self.writer.status, &uid, annotation(PING_ANNOTATION), now);
        let replayed =
            dead_letters::handle_replay(&mut self.writer.status, annotation(REPLAY_ANNOTATION), now);
        let is_edited = |generation| object.metadata.generation != Some(generation);
        if self.serving.gone.is_some_and(|generation| pinged || is_edited(generation)) {
            self.serving.gone = None;
        }
        if pinged || replayed {
            // Who asks for it wants to see an attempt now. Events that wait here would go before it.
            self.dispatcher.queue.make_due(&self.stored_keys, Instant::now());
            self.writer.write_within(Duration::ZERO);
        }
    }

    /// Stores an event in the status.
    fn store(&mut self, event: StoredEvent) {
        if self.writer.is_known() {
            dead_letters::store(&mut self.writer.status, event);
            self.writer.write_within(Duration::ZERO);
        }
    }

    /// Queues the events in the outbox of the status, by token. One that is not stored yet is not sent: if this process
    /// died, it would be sent again with another id.
    fn queue_stored(&mut self) {
        let me = self.writer.name();
        let stored = self.writer.stored_ids();
        let mut by_token: BTreeMap<Key, Vec<PendingEvent>> = BTreeMap::new();
        for event in self.writer.status.outbox.iter().filter(|event| stored.contains(&*event.id)) {
            let token = event.token.as_ref().map_or("", |token| &token.token_id);
            let events = by_token.entry(format!("{STORED_PREFIX}{token}").into()).or_default();
            events.push((Message::of_stored(event).into(), vec![me.to_owned()]));
        }
        let emptied =
            self.stored_keys.iter().filter(|key| !by_token.contains_key(*key)).cloned().collect::<Vec<_>>();
        self.stored_keys = by_token.keys().cloned().collect();
        let now = Instant::now();
        let emptied = emptied.into_iter().map(|key| (key, Vec::new()));
        for (key, events) in by_token.into_iter().chain(emptied) {
            self.dispatcher.queue.update(&TokenEvents { key, events, lost: BTreeMap::new() }, now);
        }
    }

    // === Results ===

    fn on_completed(&mut self, completed: Completed) {
        match completed {
            Completed::Resolved(resolved) => self.on_resolved(resolved),
            Completed::Read(result) => self.on_read(result),
            // The watch shows the object sooner or later.
            Completed::Reread(Err(_)) => {}
            Completed::Reread(Ok(object)) => self.update(Arc::new(object), self.serving.unserved.clone()),
            Completed::Written(written) => self.on_written(written),
        }
    }

    fn on_sent(&mut self, sent: Sent, (clock, now): (Instant, Timestamp)) {
        let Sent { job, outcome, took } = sent;
        let metrics = &self.shared.metrics;
        match outcome {
            Outcome::Accepted => {
                metrics.attempted("accepted", took);
                metrics.delivered(now.duration_since(job.message.time).unsigned_abs());
                let was_probing = is_probing(self.health.failures);
                if self.health.succeeded(now) {
                    self.writer.write_within(WRITE_DELAY);
                }
                self.dispatcher.queue.done(&job.key, &job.message.id, clock);
                if was_probing {
                    // The endpoint works again, so no event needs to wait for its next attempt.
                    self.dispatcher.queue.make_all_due(clock);
                }
                self.accepted(&job);
                self.writer.write_within(NUMBERS_WRITE_DELAY);
            }
            Outcome::Failed(failure) => {
                metrics.attempted(failure.reason.code, took);
                debug!(
                    webhook = self.writer.name(),
                    id = &*job.message.id,
                    cause = failure.reason.code,
                    "not accepted"
                );
                self.failed(job, failure, clock, now);
            }
            Outcome::Gone => {
                metrics.attempted("Gone", took);
                self.disable();
                self.dispatcher.queue.requeue(&job.key, clock);
            }
        }
    }

    fn accepted(&mut self, job: &Job) {
        if is_stored_here(&job.key) {
            dead_letters::accept(&mut self.writer.status, &job.message.id);
            self.queue_stored();
            self.writer.write_within(WRITE_DELAY);
        } else {
            self.writer.receipt(&job.key, &job.message);
        }
    }

    fn failed(&mut self, job: Job, failure: Failure, clock: Instant, now: Timestamp) {
        let left = self.max_age().saturating_sub(age(&job.message, now));
        let attempts = job.attempts.saturating_add(1);
        let cause = failure.reason.code;
        if left.is_zero() {
            self.dead_letter(&job.key, job.message, attempts, cause, clock, now);
        } else {
            let wait = self.shared.schedule.wait(attempts, rand::random(), failure.retry_after);
            // The last attempt is made when the event reaches its maximum age.
            self.dispatcher.queue.failed(&job.key, &job.message.id, clock + wait.min(left));
        }
        if self.health.failed(failure, now) {
            self.writer.write_within(WRITE_DELAY);
        }
        self.writer.write_within(NUMBERS_WRITE_DELAY);
    }

    /// Dead-letters an event. Its token gets the receipt once that is stored.
    fn dead_letter(
        &mut self,
        key: &Key,
        message: Arc<Message>,
        attempts: u32,
        cause: &str,
        clock: Instant,
        now: Timestamp,
    ) {
        self.shared.metrics.dead(cause);
        self.writer.dead_lettered += 1;
        let event = StoredEvent { since: message.since, ..dead_letters::to_stored(&message, now) };
        let letter = DeadLetter { event, at: now, attempts: attempts.into(), cause: cause.to_owned() };
        dead_letters::dead_letter(&mut self.writer.status, letter);
        self.dispatcher.queue.done(key, &message.id, clock);
        if is_stored_here(key) {
            self.queue_stored();
        } else {
            self.writer.on_stored(AfterWrite::Receipt(key.clone(), message));
        }
        self.writer.write_within(WRITE_DELAY);
    }

    /// Dead-letters the events older than `maxAge` while nothing is sent. Returns after how long to search again: when
    /// the next event will be too old, and within a minute, since a token that is restored from a backup has old events.
    fn dead_letter_old(&mut self, cause: &str) -> Duration {
        let (clock, now) = (Instant::now(), Timestamp::now());
        let max_age = self.max_age();
        for job in self.dispatcher.queue.events_of_age(max_age, now) {
            self.dead_letter(&job.key, job.message, job.attempts, cause, clock, now);
        }
        max_age
            .saturating_sub(self.dispatcher.queue.oldest_age(now).unwrap_or_default())
            .clamp(MIN_SWEEP_INTERVAL, RESOLVE_INTERVAL)
    }

    fn max_age(&self) -> Duration {
        self.shared.schedule.scaled(self.max_age)
    }

    fn disable(&mut self) {
        if self.serving.gone.is_none() {
            self.serving.gone = Some(self.writer.object().metadata.generation.unwrap_or_default());
            let message = "the endpoint has answered 410 Gone; nothing is sent until the spec or the annotation tokenward.dev/ping changes";
            self.writer.emit(Reason::new("EndpointGone", message), true);
            self.writer.write_within(WRITE_DELAY);
        }
    }

    // === Configuration ===

    fn resolve(&mut self) {
        self.resolving = true;
        self.resolve_at = Instant::now() + RESOLVE_INTERVAL;
        let (shared, object) = (self.shared.clone(), self.writer.object().clone());
        let max_age = target::max_age(&object).map(|max_age| self.max_age = max_age);
        let resolve = async move {
            let target = match max_age {
                Ok(()) => target::resolve(&shared, &object).await.map(Box::new),
                Err(reason) => Err(reason),
            };
            Completed::Resolved(target)
        };
        self.beside.push(resolve.boxed());
    }

    fn on_resolved(&mut self, resolved: Result<Box<Target>, Reason>) {
        self.resolving = false;
        // `maxAge` may have changed.
        self.sweep_at = Instant::now();
        match resolved {
            Ok(mut target) => {
                let now = Timestamp::now();
                if let Some(until) = target.until {
                    let left = until.duration_since(now).max(SignedDuration::ZERO).unsigned_abs();
                    self.resolve_within(left);
                }
                if let Some(reason) = target.done.take() {
                    self.writer.emit(reason, false);
                }
                let status = &self.writer.status;
                let reported = (Some(&target.secret), target.public_key.as_ref());
                if self.serving.misconfigured.take().is_some()
                    || (status.signing_secret_ref.as_ref(), status.public_key.as_ref()) != reported
                    || self.serving.target.is_none()
                {
                    self.writer.write_within(Duration::ZERO);
                }
                self.writer.status.signing_secret_ref = Some(target.secret.clone());
                self.writer.status.public_key.clone_from(&target.public_key);
                self.reuse_connections(&mut target);
                self.dispatcher.retarget();
                self.serving.target = Some(target);
            }
            Err(problem) => {
                self.resolve_within(RESOLVE_RETRY_INTERVAL);
                if self.serving.misconfigured.as_ref() != Some(&problem) {
                    self.writer.emit(problem.clone(), true);
                    self.writer.write_within(WRITE_DELAY);
                }
                self.serving.misconfigured = Some(problem);
            }
        }
    }

    /// Schedules the next resolution after this time, or earlier if it is due earlier, as after an edit in the meantime.
    fn resolve_within(&mut self, after: Duration) {
        self.resolve_at = self.resolve_at.min(Instant::now() + after);
    }

    /// Reuses the connections, if the endpoint is the same.
    fn reuse_connections(&self, target: &mut Target) {
        if let Some(before) =
            self.serving.target.as_ref().filter(|before| before.endpoint.is_same(&target.endpoint))
        {
            target.endpoint = before.endpoint.clone();
        }
    }

    // === Status ===

    fn on_read(&mut self, result: ApiResult) {
        if self.writer.on_read(result) {
            let generation = self.writer.object().metadata.generation;
            self.serving.gone = find_condition(&self.writer.status.conditions, ConditionType::Disabled)
                .filter(|c| c.status == "True" && c.observed_generation == generation)
                .and(generation);
            self.resolve_at = Instant::now();
            self.queue_stored();
            self.handle_annotations();
            self.writer.write_within(WRITE_DELAY);
        }
    }

    /// When the status is due to be written: not before the first resolution, unless an action waits for the write.
    fn write_at(&self) -> Option<Instant> {
        let has_content = self.serving.is_resolved() || self.writer.has_pending();
        self.writer.write_at().filter(|_| has_content)
    }

    fn write(&mut self) {
        let view = View {
            generation: self.writer.object().metadata.generation,
            problem: self.serving.problem(),
            suspended: self.is_suspended(),
            disabled: self.serving.gone.is_some(),
            health: &self.health,
            pending: self.dispatcher.queue.pending(),
            lost: self.dispatcher.queue.lost(),
        };
        let write = self.writer.write(&view);
        self.beside.extend(write.map(|write| write.map(Completed::Written).boxed()));
    }

    fn on_written(&mut self, written: Written) {
        match self.writer.on_written(written) {
            Ok(()) => self.queue_stored(),
            Err(WriteError::NotLeading) => self.step_down(),
            Err(WriteError::Conflict) => {
                self.beside.push(self.writer.reread().map(Completed::Reread).boxed())
            }
            Err(WriteError::Retry) => {}
        }
    }

    fn count(&mut self) {
        let pending = self.dispatcher.queue.pending();
        let delta =
            i64::try_from(pending).unwrap_or_default() - i64::try_from(self.counted).unwrap_or_default();
        self.shared.metrics.pending.inc_by(delta);
        self.counted = pending;
    }
}

fn is_stored_here(key: &Key) -> bool {
    key.starts_with(STORED_PREFIX)
}

/// An annotation, cut to [`MAX_ANNOTATION_CHARS`].
fn bounded(text: &str) -> &str {
    text.char_indices().nth(MAX_ANNOTATION_CHARS).map_or(text, |(at, _)| &text[..at])
}
