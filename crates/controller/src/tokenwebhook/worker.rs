//! One endpoint: a task that owns its lanes, its key, its connections and the TokenWebhook's record.
//!
//! It takes notes (what waits, what has changed), starts what is due, and puts on record what has come of it. Only the
//! holder of the lease does more than take notes. Nothing here waits for anything but its own loop: reads and writes
//! are futures beside it, and requests are tasks, which the cores share; so a slow endpoint or API server holds up no
//! note.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use kube::ResourceExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Shared;
use super::conditions::{Health, View};
use super::problem::Problem;
use super::sender::{Queue, Run, Sent};
use super::status_writer::{AfterWrite, Answer, LATER, Record, SOON, Trouble};
use super::target;
use super::target::{DEFAULT_MAX_AGE, Target};
use tokenward_core::crd::labels::{PING_ANNOTATION, REPLAY_ANNOTATION};
use tokenward_core::crd::{ConditionType, DeadLetter, HeldEvent, TokenWebhook, find_condition};
use tokenward_core::outbox::dead_letters;
use tokenward_core::outbox::payload::Message;
use tokenward_core::outbox::queue::{DeliveryQueue, Job, Key, PendingEvent, Waiting, age};
use tokenward_core::outbox::retry::{Failure, Outcome};

/// How many events of one endpoint are under way at once. While nothing succeeds, one.
const CONCURRENCY: usize = 16;
/// How many are queued for each of them, once fewer than half of it are left.
const QUEUED: usize = 32;
/// How many reports are taken at once.
const REPORTS: usize = 64;
/// So many failures in a row, and an endpoint is asked one event at a time until it accepts one.
const PROBE_AFTER: u32 = 32;
/// How often Secrets are read again: nobody tells of changes in those that are not ours.
const LOOK: Duration = Duration::from_secs(60);
/// The same while something is wrong.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How often at most events that wait for a person are held against their greatest age.
const SWEEP: Duration = Duration::from_secs(1);

/// The annotations by which a person asks for something. Any change of the text asks once.
/// So many characters of it count.
const ANNOTATION: usize = 256;

/// The lane of events that wait in the TokenWebhook starts so; all others are uids.
const HELD: &str = "held:";

/// What an endpoint is told.
pub(crate) enum Note {
    /// The TokenWebhook as it is now, and why it is not served, if it is not.
    Webhook(Arc<TokenWebhook>, Option<Problem>),
    /// What waits in a token.
    Token(Arc<Waiting>),
    /// A token is gone.
    Gone(Key),
    /// Keep these, and say when they are stored.
    Keep(Vec<HeldEvent>, oneshot::Sender<()>),
}

/// What else was going on beside the loop.
enum Done {
    Looked(Result<Box<Target>, Problem>),
    Read(Answer),
    Seen(Answer),
    Written(Answer, Vec<AfterWrite>),
}

/// The task.
pub(crate) struct Endpoint {
    shared: Arc<Shared>,
    notes: mpsc::UnboundedReceiver<Note>,
    record: Record,
    unserved: Option<Problem>,
    lanes: DeliveryQueue,
    held: BTreeSet<Key>,
    target: Option<Box<Target>>,
    problem: Option<Problem>,
    health: Health,
    /// The generation that has answered 410.
    disabled: Option<i64>,
    queue: Arc<Queue>,
    runs: JoinSet<()>,
    reports: (mpsc::UnboundedSender<Vec<Sent>>, mpsc::UnboundedReceiver<Vec<Sent>>),
    beside: FuturesUnordered<BoxFuture<'static, Done>>,
    looking: bool,
    look_at: Instant,
    sweep_at: Instant,
    /// How many of the pending are in the metric.
    counted: usize,
}

impl Endpoint {
    pub(crate) fn new(
        shared: Arc<Shared>,
        notes: mpsc::UnboundedReceiver<Note>,
        object: Arc<TokenWebhook>,
        unserved: Option<Problem>,
    ) -> Self {
        Self {
            lanes: DeliveryQueue::of(&object.name_any()),
            record: Record::new(shared.clone(), object),
            shared,
            notes,
            unserved,
            held: BTreeSet::new(),
            target: None,
            problem: None,
            health: Health::default(),
            disabled: None,
            queue: Arc::default(),
            runs: JoinSet::new(),
            reports: mpsc::unbounded_channel(),
            beside: FuturesUnordered::new(),
            looking: false,
            look_at: Instant::now(),
            sweep_at: Instant::now(),
            counted: 0,
        }
    }

    /// Runs until the TokenWebhook is gone or the process ends.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut claim = self.shared.claim.clone();
        let mut reports = Vec::with_capacity(REPORTS);
        loop {
            self.lead();
            self.start_what_is_due();
            self.count();
            let wake = self.wake_at();
            tokio::select! {
                () = stop.cancelled() => break,
                note = self.notes.recv() => match note {
                    Some(note) => self.note(note),
                    None => break,
                },
                1.. = self.reports.1.recv_many(&mut reports, REPORTS) => {
                    let now = (Instant::now(), Timestamp::now());
                    reports.drain(..).flatten().for_each(|sent| self.sent(sent, now));
                }
                Some(ended) = self.runs.join_next(), if !self.runs.is_empty() => let_panic(ended),
                Some(done) = self.beside.next(), if !self.beside.is_empty() => self.finish(done),
                changed = claim.changed() => if changed.is_err() { break },
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
        self.shared.metrics.pending.dec_by(i64::try_from(self.counted).unwrap_or_default());
    }

    /// Takes up the record when the lease is ours, and leaves it when it no longer is.
    fn lead(&mut self) {
        if self.shared.claim.borrow().holds() {
            let read = self.record.read();
            self.beside.extend(read.map(|read| read.map(Done::Read).boxed()));
        } else if self.record.is_known() {
            self.leave();
        }
    }

    /// Another process goes on from what is stored, or this one later. What was not stored has not been: events that
    /// were given up off the record are open again. What was delivered is remembered, stored or not.
    fn leave(&mut self) {
        self.take_back();
        // With its connections. Who leads looks anew.
        self.target = None;
        for (key, message) in self.record.leave() {
            self.lanes.reopen(&key, &message.id, Instant::now());
        }
    }

    fn start_what_is_due(&mut self) {
        if !self.record.is_known() {
            return;
        }
        let now = Instant::now();
        if !self.looking && now >= self.look_at {
            if let Some(target) = &self.target {
                target.endpoint.rest();
            }
            self.look();
        }
        if self.write_at().is_some_and(|at| now >= at) {
            self.write();
        }
        if self.is_deliverable() {
            self.send_due(now);
        } else if self.is_held_back() {
            self.take_back();
            if now >= self.sweep_at {
                self.sweep_at = now + self.give_up_old();
            }
        }
    }

    fn is_deliverable(&self) -> bool {
        self.target.is_some() && !self.is_held_back()
    }

    /// Whether events wait for a person.
    fn is_held_back(&self) -> bool {
        let suspended = self.record.object().spec.suspend == Some(true);
        self.unserved.is_some() || self.problem.is_some() || self.disabled.is_some() || suspended
    }

    fn limit(&self) -> usize {
        if self.health.failures >= PROBE_AFTER { 1 } else { CONCURRENCY }
    }

    fn send_due(&mut self, now: Instant) {
        let limit = self.limit();
        let queued = if limit == 1 { 1 } else { limit * QUEUED };
        if self.queue.len() > queued {
            self.take_back();
        }
        let Some(target) = &self.target else { return };
        let room = queued.saturating_sub(self.queue.len());
        // By the half, so that runs find more before they come to an end. A probe goes alone.
        let is_time = if limit == 1 { self.runs.is_empty() } else { room > queued / 2 };
        if is_time {
            let lanes = &mut self.lanes;
            self.queue.extend(std::iter::from_fn(|| lanes.next(now)).take(room));
        }
        for _ in 0..self.queue.len().min(limit.saturating_sub(self.runs.len())) {
            let run = Run {
                queue: self.queue.clone(),
                reports: self.reports.0.clone(),
                load: self.shared.load.clone(),
                endpoint: target.endpoint.clone(),
                keys: target.keys.clone(),
                webhook: self.record.object().clone(),
            };
            self.runs.spawn(run.send());
        }
    }

    /// What is queued is not sent, or not now.
    fn take_back(&mut self) {
        let now = Instant::now();
        for job in self.queue.take_all() {
            self.lanes.undecided(&job.key, now);
        }
    }

    fn wake_at(&self) -> Instant {
        let far = Instant::now() + LOOK;
        if !self.record.is_known() {
            return far;
        }
        let look = (!self.looking).then_some(self.look_at);
        let turn = self.lanes.next_at().filter(|_| self.is_deliverable() && self.runs.len() < self.limit());
        let sweep = self.is_held_back().then_some(self.sweep_at);
        [look, self.write_at(), turn, sweep].into_iter().flatten().min().unwrap_or(far).min(far)
    }

    // Notes

    fn note(&mut self, note: Note) {
        let now = Instant::now();
        match note {
            Note::Webhook(object, unserved) => self.see(object, unserved),
            Note::Token(waiting) => {
                self.lanes.see(&waiting, now);
                self.record.touch(LATER);
            }
            Note::Gone(key) => {
                self.queue.forget(&key);
                for message in self.lanes.gone(&key) {
                    self.hold(dead_letters::held(&message, Timestamp::now()));
                }
            }
            // Without an answer it is asked again.
            Note::Keep(..) if !self.record.is_known() => {}
            Note::Keep(events, stored) => {
                events.into_iter().for_each(|event| self.hold(event));
                self.record.promise(AfterWrite::Word(stored));
                self.record.touch(Duration::ZERO);
            }
        }
    }

    fn see(&mut self, object: Arc<TokenWebhook>, unserved: Option<Problem>) {
        let before = self.record.object().metadata.generation;
        if !self.record.see(object) {
            return;
        }
        if self.record.object().metadata.generation != before || unserved != self.unserved {
            self.unserved = unserved;
            self.look_at = Instant::now();
            self.record.touch(SOON);
        }
        self.answer_annotations();
    }

    /// Pings and replays, as they are asked for.
    fn answer_annotations(&mut self) {
        if !self.record.is_known() {
            return;
        }
        let (object, now) = (self.record.object().clone(), Timestamp::now());
        let uid = object.uid().unwrap_or_default();
        let annotation = |name: &str| object.annotations().get(name).map(|text| bounded(text));
        let pinged =
            dead_letters::answer_ping(&mut self.record.status, &uid, annotation(PING_ANNOTATION), now);
        let replayed =
            dead_letters::answer_replay(&mut self.record.status, annotation(REPLAY_ANNOTATION), now);
        let is_edited = |generation| object.metadata.generation != Some(generation);
        if self.disabled.is_some_and(|generation| pinged || is_edited(generation)) {
            self.disabled = None;
        }
        if pinged || replayed {
            self.record.touch(Duration::ZERO);
        }
    }

    /// Keeps an event in the status.
    fn hold(&mut self, event: HeldEvent) {
        if self.record.is_known() {
            dead_letters::hold(&mut self.record.status, event);
            self.record.touch(Duration::ZERO);
        }
    }

    /// Makes lanes of what waits in the status, one a token. What is not stored yet waits for that: sent before, it
    /// would be sent again under another id if this process died.
    fn see_held(&mut self) {
        let me = self.record.name();
        let stored = self.record.stored();
        let mut lanes: BTreeMap<Key, Vec<PendingEvent>> = BTreeMap::new();
        for event in self.record.status.outbox.iter().filter(|event| stored.contains(&*event.id)) {
            let token = event.token.as_ref().map_or("", |token| &token.token_id);
            let events = lanes.entry(format!("{HELD}{token}").into()).or_default();
            events.push((Message::of_held(event).into(), vec![me.to_owned()]));
        }
        let emptied = self.held.iter().filter(|key| !lanes.contains_key(*key)).cloned().collect::<Vec<_>>();
        self.held = lanes.keys().cloned().collect();
        let now = Instant::now();
        let emptied = emptied.into_iter().map(|key| (key, Vec::new()));
        for (key, events) in lanes.into_iter().chain(emptied) {
            self.lanes.see(&Waiting { key, events, lost: BTreeMap::new() }, now);
        }
    }

    // What has come of what was started

    fn finish(&mut self, done: Done) {
        match done {
            Done::Looked(looked) => self.looked(looked),
            Done::Read(answer) => self.read(answer),
            // Unanswered, the watch will show it.
            Done::Seen(Err(_)) => {}
            Done::Seen(Ok(object)) => self.see(Arc::new(object), self.unserved.clone()),
            Done::Written(answer, pledges) => self.written(answer, pledges),
        }
    }

    fn sent(&mut self, sent: Sent, (clock, now): (Instant, Timestamp)) {
        let Sent { job, outcome, took } = sent;
        let metrics = &self.shared.metrics;
        match outcome {
            Outcome::Accepted => {
                metrics.attempted("accepted", took);
                metrics.delivered(now.duration_since(job.message.time).unsigned_abs());
                let was_probing = self.limit() == 1;
                if self.health.succeeded(now) {
                    self.record.touch(SOON);
                }
                self.lanes.done(&job.key, &job.message.id, clock);
                if was_probing {
                    // It is back. What was put off because it was away need not wait.
                    self.lanes.hurry(clock);
                }
                self.accepted(&job);
                self.record.touch(LATER);
            }
            Outcome::Failed(failure) => {
                metrics.attempted(failure.cause, took);
                debug!(
                    webhook = self.record.name(),
                    id = &*job.message.id,
                    cause = failure.cause,
                    "not accepted"
                );
                self.failed(job, failure, clock, now);
            }
            Outcome::Gone => {
                metrics.attempted("Gone", took);
                self.disable();
                self.lanes.undecided(&job.key, clock);
            }
        }
    }

    fn accepted(&mut self, job: &Job) {
        if is_held(&job.key) {
            dead_letters::accept(&mut self.record.status, &job.message.id);
            self.see_held();
            self.record.touch(SOON);
        } else {
            self.record.receipt(&job.key, &job.message);
        }
    }

    fn failed(&mut self, job: Job, failure: Failure, clock: Instant, now: Timestamp) {
        let left = self.max_age().saturating_sub(age(&job.message, now));
        let attempts = job.attempts.saturating_add(1);
        let cause = failure.cause;
        if left.is_zero() {
            self.dead_letter(&job.key, job.message, attempts, cause, clock, now);
        } else {
            let wait = self.shared.schedule.wait(attempts, rand::random(), failure.retry_after);
            // The last attempt is made when the event is as old as it may get.
            self.lanes.failed(&job.key, &job.message.id, clock + wait.min(left));
        }
        if self.health.failed(failure, now) {
            self.record.touch(SOON);
        }
        self.record.touch(LATER);
    }

    /// Gives an event up. Its token is told once that is on record.
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
        self.record.dead_lettered += 1;
        let event = HeldEvent { since: message.since, ..dead_letters::held(&message, now) };
        let letter = DeadLetter { event, at: now, attempts: attempts.into(), cause: cause.to_owned() };
        dead_letters::dead_letter(&mut self.record.status, letter);
        self.lanes.done(key, &message.id, clock);
        if is_held(key) {
            self.see_held();
        } else {
            self.record.promise(AfterWrite::Receipt(key.clone(), message));
        }
        self.record.touch(SOON);
    }

    /// Gives up what has waited too long for a person. Answers for how long nothing else will have, but looks again
    /// within a minute: a token that comes from a backup brings old events.
    fn give_up_old(&mut self) -> Duration {
        let (clock, now) = (Instant::now(), Timestamp::now());
        let cause = match (&self.unserved, &self.problem) {
            (Some(problem), _) | (None, Some(problem)) => problem.reason,
            _ if self.disabled.is_some() => "Disabled",
            _ => "Suspended",
        };
        let max_age = self.max_age();
        for job in self.lanes.older(max_age, now) {
            self.dead_letter(&job.key, job.message, job.attempts, cause, clock, now);
        }
        max_age.saturating_sub(self.lanes.oldest(now).unwrap_or_default()).clamp(SWEEP, LOOK)
    }

    fn max_age(&self) -> Duration {
        let asked =
            self.record.object().spec.delivery.as_ref().and_then(|delivery| delivery.max_age.as_ref());
        let asked = asked.and_then(|age| age.parse().ok()).map_or(DEFAULT_MAX_AGE, |age| age.unsigned_abs());
        let max_age = self.target.as_ref().map_or(asked, |target| target.max_age);
        self.shared.schedule.scaled(max_age)
    }

    fn disable(&mut self) {
        if self.disabled.is_none() {
            self.disabled = Some(self.record.object().metadata.generation.unwrap_or_default());
            self.record.tell("EndpointGone", true, "the endpoint has answered 410 Gone; nothing is sent until the spec or the annotation tokenward.dev/ping changes");
            self.record.touch(SOON);
        }
    }

    // Its configuration

    fn look(&mut self) {
        self.looking = true;
        let (shared, object) = (self.shared.clone(), self.record.object().clone());
        self.beside
            .push(async move { Done::Looked(target::look(&shared, &object).await.map(Box::new)) }.boxed());
    }

    fn looked(&mut self, looked: Result<Box<Target>, Problem>) {
        self.looking = false;
        // The greatest age may be another now.
        self.sweep_at = Instant::now();
        match looked {
            Ok(mut target) => {
                let now = Timestamp::now();
                let until =
                    target.until.map(|until| until.duration_since(now).max(jiff::SignedDuration::ZERO));
                self.look_at = Instant::now() + until.map_or(LOOK, |until| until.unsigned_abs().min(LOOK));
                if let Some((reason, sentence)) = target.done.take() {
                    self.record.tell(reason, false, &sentence);
                }
                let status = &self.record.status;
                let told = (Some(&target.secret), target.public_key.as_ref());
                if self.problem.take().is_some()
                    || (status.signing_secret_ref.as_ref(), status.public_key.as_ref()) != told
                    || self.target.is_none()
                {
                    self.record.touch(Duration::ZERO);
                }
                self.record.status.signing_secret_ref = Some(target.secret.clone());
                self.record.status.public_key.clone_from(&target.public_key);
                self.keep_connections(&mut target);
                // Runs know the target that they began with, and end when their queue is empty.
                self.take_back();
                self.queue = Arc::default();
                self.target = Some(target);
            }
            Err(problem) => {
                self.look_at = Instant::now() + LOOK_AGAIN;
                if self.problem.as_ref() != Some(&problem) {
                    self.record.tell(problem.reason, true, &problem.message);
                    self.record.touch(SOON);
                }
                self.problem = Some(problem);
            }
        }
    }

    /// The same endpoint goes on with the connections that it has.
    fn keep_connections(&self, target: &mut Target) {
        if let Some(before) = self.target.as_ref().filter(|before| before.endpoint.is_same(&target.endpoint))
        {
            target.endpoint = before.endpoint.clone();
        }
    }

    // Its record

    fn read(&mut self, answer: Answer) {
        if self.record.have_read(answer) {
            let generation = self.record.object().metadata.generation;
            self.disabled = find_condition(&self.record.status.conditions, ConditionType::Disabled)
                .filter(|c| c.status == "True" && c.observed_generation == generation)
                .and(generation);
            self.look_at = Instant::now();
            self.see_held();
            self.answer_annotations();
            self.record.touch(SOON);
        }
    }

    /// When the status is to be written: there is nothing to say before the first look.
    fn write_at(&self) -> Option<Instant> {
        let may_tell = self.target.is_some() || self.problem.is_some() || self.record.owes();
        self.record.write_at().filter(|_| may_tell)
    }

    fn write(&mut self) {
        let view = View {
            generation: self.record.object().metadata.generation,
            problem: self.unserved.as_ref().or(self.problem.as_ref()),
            suspended: self.record.object().spec.suspend == Some(true),
            disabled: self.disabled.is_some(),
            health: &self.health,
            pending: self.lanes.pending(),
            lost: self.lanes.lost(),
        };
        let write = self.record.write(&view);
        self.beside
            .extend(write.map(|write| write.map(|(answer, pledges)| Done::Written(answer, pledges)).boxed()));
    }

    fn written(&mut self, answer: Answer, pledges: Vec<AfterWrite>) {
        match self.record.have_written(answer, pledges) {
            Ok(()) => self.see_held(),
            Err(Trouble::Left) => self.leave(),
            Err(Trouble::Edited) => self.beside.push(self.record.look().map(Done::Seen).boxed()),
            Err(Trouble::Again) => {}
        }
    }

    fn count(&mut self) {
        let pending = self.lanes.pending();
        let delta =
            i64::try_from(pending).unwrap_or_default() - i64::try_from(self.counted).unwrap_or_default();
        self.shared.metrics.pending.inc_by(delta);
        self.counted = pending;
    }
}

/// A defect in a run is to be seen, not a lane that stands still.
fn let_panic(ended: Result<(), JoinError>) {
    if let Some(panic) = ended.err().and_then(|error| error.try_into_panic().ok()) {
        std::panic::resume_unwind(panic);
    }
}

fn is_held(key: &Key) -> bool {
    key.starts_with(HELD)
}

/// As much of an annotation as a status has room for.
fn bounded(text: &str) -> &str {
    text.char_indices().nth(ANNOTATION).map_or(text, |(at, _)| &text[..at])
}
