//! One endpoint: a task that owns its lanes, its key, its connections and the TokenWebhook's status.
//!
//! It takes notes (what waits, what has changed), starts what is due, and writes down what has come of it. Only the
//! holder of the lease does more than take notes. Nothing here waits for anything but its own loop: requests, reads
//! and writes are futures beside it, so that a slow endpoint or API server holds up no note.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Shared;
use super::problem::Problem;
use super::status::{self, Health, View};
use super::target::{self, DEFAULT_MAX_AGE, Target};
use crate::cluster::error::{Remedy, message, remedy};
use crate::controller::events::Told;
use crate::crd::{ConditionType, DeadLetter, HeldEvent, TokenWebhook, TokenWebhookStatus, find_condition};
use crate::failpoint;
use crate::webhook::lanes::{Job, Key, Lanes, Waiting, age};
use crate::webhook::ledger;
use crate::webhook::payload::Message;
use crate::webhook::schedule::{Failure, Outcome};

/// How many events of one endpoint are under way at once. While nothing succeeds, one.
const CONCURRENCY: usize = 16;
/// So many failures in a row, and an endpoint is asked one event at a time until it accepts one.
const PROBE_AFTER: u32 = 32;
/// How soon a status is written after something that counts, and after something that is a figure only.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(5);
/// How often Secrets are read again: nobody tells of changes in those that are not ours.
const LOOK: Duration = Duration::from_secs(60);
/// The same while something is wrong.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How often events that wait for a person are held against their greatest age.
const SWEEP: Duration = Duration::from_secs(1);

/// The annotations by which a person asks for something. Any change of the text asks once.
const PING: &str = "tokenward.dev/ping";
const REPLAY: &str = "tokenward.dev/replay";
/// So many characters of it count.
const ANNOTATION: usize = 256;

/// The lane of events that wait in the TokenWebhook starts so; all others are uids.
const HELD: &str = "held:";

/// What an endpoint is told.
pub(super) enum Note {
    /// The TokenWebhook as it is now, and why it is not served, if it is not.
    Webhook(Arc<TokenWebhook>, Option<Problem>),
    /// What waits in a token.
    Token(Arc<Waiting>),
    /// A token is gone.
    Gone(Key),
    /// Keep these, and say when they are stored.
    Keep(Vec<HeldEvent>, oneshot::Sender<()>),
}

/// What was going on beside the loop.
enum Done {
    Sent { job: Job, outcome: Outcome, took: Duration },
    Looked(Result<Box<Target>, Problem>),
    Loaded(Result<TokenWebhook, kube::Error>),
    Written { result: Result<TokenWebhook, kube::Error>, pledges: Vec<Pledge> },
}

/// What is owed once the status is stored.
enum Pledge {
    /// A word to who waits for it.
    Word(oneshot::Sender<()>),
    /// A receipt to a token: its event was given up, and that is on record.
    Receipt(Key, Message),
}

/// The task.
pub(super) struct Endpoint {
    shared: Arc<Shared>,
    notes: mpsc::UnboundedReceiver<Note>,
    /// The object as last heard of or written.
    object: Arc<TokenWebhook>,
    unserved: Option<Problem>,
    /// The status as this process would have it. Its own, while it leads.
    status: TokenWebhookStatus,
    loaded: bool,
    lanes: Lanes,
    held: BTreeSet<Key>,
    target: Option<Box<Target>>,
    problem: Option<Problem>,
    health: Health,
    /// The generation that has answered 410.
    disabled: Option<i64>,
    beside: FuturesUnordered<BoxFuture<'static, Done>>,
    sending: usize,
    looking: bool,
    look_at: Instant,
    sweep_at: Instant,
    writing: bool,
    write_at: Option<Instant>,
    write_failures: u32,
    pledges: Vec<Pledge>,
    /// How many of the pending are in the metric.
    counted: usize,
    buried: u64,
}

impl Endpoint {
    pub(super) fn new(
        shared: Arc<Shared>,
        notes: mpsc::UnboundedReceiver<Note>,
        object: Arc<TokenWebhook>,
        unserved: Option<Problem>,
    ) -> Self {
        Self {
            shared,
            notes,
            lanes: Lanes::of(&object.name_any()),
            object,
            unserved,
            status: TokenWebhookStatus::default(),
            loaded: false,
            held: BTreeSet::new(),
            target: None,
            problem: None,
            health: Health::default(),
            disabled: None,
            beside: FuturesUnordered::new(),
            sending: 0,
            looking: false,
            look_at: Instant::now(),
            sweep_at: Instant::now(),
            writing: false,
            write_at: None,
            write_failures: 0,
            pledges: Vec::new(),
            counted: 0,
            buried: 0,
        }
    }

    /// Runs until the TokenWebhook is gone or the process ends.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut claim = self.shared.claim.clone();
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
                Some(done) = self.beside.next(), if !self.beside.is_empty() => self.finish(done),
                changed = claim.changed() => if changed.is_err() { break },
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
        self.shared.metrics.pending.dec_by(i64::try_from(self.counted).unwrap_or_default());
    }

    /// Takes up the status when the lease is ours, and lets it go when it no longer is.
    fn lead(&mut self) {
        let leads = self.shared.claim.borrow().holds();
        if !leads {
            if std::mem::take(&mut self.loaded) {
                self.forget();
            }
            return;
        }
        if !self.loaded && !self.looking {
            self.looking = true;
            let (api, name) = (self.api(), self.object.name_any());
            self.beside.push(async move { Done::Loaded(api.get(&name).await) }.boxed());
        }
    }

    /// Another process goes on from what is stored, or this one later. What was not stored has not been: events that
    /// were given up off the record are open again. What was delivered is remembered, stored or not.
    fn forget(&mut self) {
        for pledge in std::mem::take(&mut self.pledges) {
            if let Pledge::Receipt(key, message) = pledge {
                self.lanes.reopen(&key, &message.id, Instant::now());
            }
        }
        self.buried = 0;
    }

    fn start_what_is_due(&mut self) {
        if !self.loaded {
            return;
        }
        let now = Instant::now();
        if !self.looking && now >= self.look_at {
            self.look();
        }
        if !self.writing && self.write_at.is_some_and(|at| now >= at) {
            self.write();
        }
        if self.is_deliverable() {
            self.send_due(now);
        } else if self.is_held_back() && now >= self.sweep_at {
            self.sweep_at = now + SWEEP;
            self.give_up_old();
        }
    }

    fn is_deliverable(&self) -> bool {
        self.target.is_some() && !self.is_held_back()
    }

    /// Whether events wait for a person.
    fn is_held_back(&self) -> bool {
        let suspended = self.object.spec.suspend == Some(true);
        self.unserved.is_some() || self.problem.is_some() || self.disabled.is_some() || suspended
    }

    fn limit(&self) -> usize {
        if self.health.failures >= PROBE_AFTER { 1 } else { CONCURRENCY }
    }

    fn send_due(&mut self, now: Instant) {
        let Some(target) = &self.target else { return };
        let namespace: Arc<str> = self.object.namespace().unwrap_or_default().into();
        while self.sending < self.limit() {
            let Some(job) = self.lanes.next(now) else { return };
            let (endpoint, keys, namespace) =
                (target.endpoint.clone(), target.keys.clone(), namespace.clone());
            self.sending += 1;
            let send = async move {
                let start = Instant::now();
                failpoint::before("send");
                let outcome = endpoint.send(&job.message, &namespace, &keys).await;
                failpoint::after("send");
                Done::Sent { job, outcome, took: start.elapsed() }
            };
            self.beside.push(send.boxed());
        }
    }

    fn wake_at(&self) -> Instant {
        let far = Instant::now() + LOOK;
        if !self.loaded {
            return far;
        }
        let look = (!self.looking).then_some(self.look_at);
        let write = self.write_at.filter(|_| !self.writing);
        let turn = self.lanes.next_at().filter(|_| self.is_deliverable() && self.sending < self.limit());
        let sweep = self.is_held_back().then_some(self.sweep_at);
        [look, write, turn, sweep].into_iter().flatten().min().unwrap_or(far).min(far)
    }

    // Notes

    fn note(&mut self, note: Note) {
        let now = Instant::now();
        match note {
            Note::Webhook(object, unserved) => self.see(object, unserved),
            Note::Token(waiting) => {
                self.lanes.see(waiting, now);
                self.touch(LATER);
            }
            Note::Gone(key) => {
                for message in self.lanes.gone(&key) {
                    self.hold(ledger::held(&message, Timestamp::now()));
                }
            }
            // Without an answer it is asked again.
            Note::Keep(..) if !self.loaded => {}
            Note::Keep(events, stored) => {
                events.into_iter().for_each(|event| self.hold(event));
                self.pledges.push(Pledge::Word(stored));
                self.touch(Duration::ZERO);
            }
        }
    }

    fn see(&mut self, object: Arc<TokenWebhook>, unserved: Option<Problem>) {
        let version = |object: &TokenWebhook| object.resource_version().and_then(|v| v.parse::<u64>().ok());
        if version(&object) < version(&self.object) {
            return;
        }
        let changed =
            object.metadata.generation != self.object.metadata.generation || unserved != self.unserved;
        self.object = object;
        self.unserved = unserved;
        if changed {
            self.look_at = Instant::now();
            self.touch(SOON);
        }
        self.answer_annotations();
    }

    /// Pings and replays, as they are asked for.
    fn answer_annotations(&mut self) {
        if !self.loaded {
            return;
        }
        let now = Timestamp::now();
        let uid = self.object.uid().unwrap_or_default();
        let annotation = |name: &str| self.object.annotations().get(name).map(|text| bounded(text));
        let (ping, replay) = (annotation(PING), annotation(REPLAY));
        let pinged = ledger::answer_ping(&mut self.status, &uid, ping, now);
        let replayed = ledger::answer_replay(&mut self.status, replay, now);
        if self
            .disabled
            .is_some_and(|generation| pinged || self.object.metadata.generation != Some(generation))
        {
            self.disabled = None;
        }
        if pinged || replayed {
            self.touch(Duration::ZERO);
        }
    }

    /// Keeps an event in the status.
    fn hold(&mut self, event: HeldEvent) {
        if self.loaded {
            ledger::hold(&mut self.status, event);
            self.touch(Duration::ZERO);
        }
    }

    /// Makes lanes of what waits in the status, one a token. What is not stored yet waits for that: sent before, it
    /// would be sent again under another id if this process died.
    fn see_held(&mut self) {
        let me = self.object.name_any();
        let stored: HashSet<&str> =
            self.object.status.iter().flat_map(|status| &status.outbox).map(|event| &*event.id).collect();
        let mut lanes: BTreeMap<Key, Vec<(Message, Vec<String>)>> = BTreeMap::new();
        for event in self.status.outbox.iter().filter(|event| stored.contains(&*event.id)) {
            let token = event.token.as_ref().map_or("", |token| &token.token_id);
            let events = lanes.entry(format!("{HELD}{token}").into()).or_default();
            events.push((Message::of_held(event), vec![me.clone()]));
        }
        let emptied = self.held.iter().filter(|key| !lanes.contains_key(*key)).cloned().collect::<Vec<_>>();
        self.held = lanes.keys().cloned().collect();
        let now = Instant::now();
        let emptied = emptied.into_iter().map(|key| (key, Vec::new()));
        for (key, events) in lanes.into_iter().chain(emptied) {
            self.lanes.see(Arc::new(Waiting { key, events, lost: BTreeMap::new() }), now);
        }
    }

    // What has come of what was started

    fn finish(&mut self, done: Done) {
        match done {
            Done::Sent { job, outcome, took } => self.sent(job, outcome, took),
            Done::Looked(looked) => self.looked(looked),
            Done::Loaded(loaded) => self.load(loaded),
            Done::Written { result, pledges } => self.written(result, pledges),
        }
    }

    fn sent(&mut self, job: Job, outcome: Outcome, took: Duration) {
        self.sending -= 1;
        let (clock, now) = (Instant::now(), Timestamp::now());
        let metrics = &self.shared.metrics;
        match outcome {
            Outcome::Accepted => {
                metrics.attempted("accepted", took);
                metrics.delivered(now.duration_since(job.message.time).unsigned_abs());
                let was_probing = self.limit() == 1;
                if self.health.succeeded(now) {
                    self.touch(SOON);
                }
                self.lanes.done(&job.key, &job.message.id, clock);
                if was_probing {
                    // It is back. What was put off because it was away need not wait.
                    self.lanes.hurry(clock);
                }
                self.accepted(&job);
                self.touch(LATER);
            }
            Outcome::Failed(failure) => {
                metrics.attempted(failure.cause, took);
                debug!(
                    webhook = self.object.name_any(),
                    id = job.message.id,
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
            ledger::accept(&mut self.status, &job.message.id);
            self.see_held();
            self.touch(SOON);
        } else {
            self.shared.receipt(&job.key, &self.object, &job.message);
        }
    }

    fn failed(&mut self, job: Job, failure: Failure, clock: Instant, now: Timestamp) {
        let left = self.max_age().saturating_sub(age(&job.message, now));
        let attempts = job.attempts.saturating_add(1);
        let cause = failure.cause;
        if left.is_zero() {
            self.bury(&job.key, job.message, attempts, cause, clock, now);
        } else {
            let wait = self.shared.schedule.wait(attempts, rand::random(), failure.retry_after);
            // The last attempt is made when the event is as old as it may get.
            self.lanes.failed(&job.key, &job.message.id, clock + wait.min(left));
        }
        if self.health.failed(failure, now) {
            self.touch(SOON);
        }
        self.touch(LATER);
    }

    /// Gives an event up. Its token is told once that is on record.
    fn bury(
        &mut self,
        key: &Key,
        message: Message,
        attempts: u32,
        cause: &str,
        clock: Instant,
        now: Timestamp,
    ) {
        self.shared.metrics.dead(cause);
        self.buried += 1;
        let event = HeldEvent { since: message.since, ..ledger::held(&message, now) };
        let letter = DeadLetter { event, at: now, attempts: attempts.into(), cause: cause.to_owned() };
        ledger::bury(&mut self.status, letter);
        self.lanes.done(key, &message.id, clock);
        if is_held(key) {
            self.see_held();
        } else {
            self.pledges.push(Pledge::Receipt(key.clone(), message));
        }
        self.touch(SOON);
    }

    /// Gives up what has waited too long for a person.
    fn give_up_old(&mut self) {
        let (clock, now) = (Instant::now(), Timestamp::now());
        let cause = match (&self.unserved, &self.problem) {
            (Some(problem), _) | (None, Some(problem)) => problem.reason,
            _ if self.disabled.is_some() => "Disabled",
            _ => "Suspended",
        };
        for job in self.lanes.older(self.max_age(), now) {
            self.bury(&job.key, job.message, job.attempts, cause, clock, now);
        }
    }

    fn max_age(&self) -> Duration {
        let asked = self.object.spec.delivery.as_ref().and_then(|delivery| delivery.max_age.as_ref());
        let asked = asked.and_then(|age| age.parse().ok()).map_or(DEFAULT_MAX_AGE, |age| age.unsigned_abs());
        let max_age = self.target.as_ref().map_or(asked, |target| target.max_age);
        self.shared.schedule.scaled(max_age)
    }

    fn disable(&mut self) {
        if self.disabled.is_none() {
            self.disabled = Some(self.object.metadata.generation.unwrap_or_default());
            self.tell("EndpointGone", true, "the endpoint has answered 410 Gone; nothing is sent until the spec or the annotation tokenward.dev/ping changes");
            self.touch(SOON);
        }
    }

    // Its configuration

    fn look(&mut self) {
        self.looking = true;
        let (shared, object) = (self.shared.clone(), self.object.clone());
        self.beside
            .push(async move { Done::Looked(target::look(&shared, &object).await.map(Box::new)) }.boxed());
    }

    fn looked(&mut self, looked: Result<Box<Target>, Problem>) {
        self.looking = false;
        match looked {
            Ok(mut target) => {
                let now = Timestamp::now();
                let until =
                    target.until.map(|until| until.duration_since(now).max(jiff::SignedDuration::ZERO));
                self.look_at = Instant::now() + until.map_or(LOOK, |until| until.unsigned_abs().min(LOOK));
                if let Some((reason, sentence)) = target.done.take() {
                    self.tell(reason, false, &sentence);
                }
                let told = (Some(&target.secret), target.public_key.as_ref());
                if self.problem.take().is_some()
                    || (self.status.signing_secret_ref.as_ref(), self.status.public_key.as_ref()) != told
                    || self.target.is_none()
                {
                    self.touch(Duration::ZERO);
                }
                self.status.signing_secret_ref = Some(target.secret.clone());
                self.status.public_key.clone_from(&target.public_key);
                self.keep_connections(&mut target);
                self.target = Some(target);
            }
            Err(problem) => {
                self.look_at = Instant::now() + LOOK_AGAIN;
                if self.problem.as_ref() != Some(&problem) {
                    self.tell(problem.reason, true, &problem.message);
                    self.touch(SOON);
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

    // Its status

    fn load(&mut self, loaded: Result<TokenWebhook, kube::Error>) {
        self.looking = false;
        match loaded {
            Ok(object) => {
                self.status = object.status.clone().unwrap_or_default();
                let generation = object.metadata.generation;
                self.disabled = find_condition(&self.status.conditions, ConditionType::Disabled)
                    .filter(|c| c.status == "True" && c.observed_generation == generation)
                    .and(generation);
                self.object = Arc::new(object);
                self.loaded = true;
                self.write_failures = 0;
                self.look_at = Instant::now();
                self.see_held();
                self.answer_annotations();
                self.touch(SOON);
            }
            Err(error) => {
                // Asked again with the next renewal of the lease, which wakes this task.
                debug!(
                    webhook = self.object.name_any(),
                    error = message(&error),
                    "the status can't be read yet"
                );
            }
        }
    }

    /// Has the status written after a while at the latest.
    fn touch(&mut self, after: Duration) {
        let at = Instant::now() + after;
        self.write_at = Some(self.write_at.map_or(at, |before| before.min(at)));
    }

    fn write(&mut self) {
        self.write_at = None;
        if self.target.is_none() && self.problem.is_none() && self.pledges.is_empty() {
            // There is nothing to say before the first look.
            return;
        }
        let view = View {
            generation: self.object.metadata.generation,
            problem: self.unserved.as_ref().or(self.problem.as_ref()),
            suspended: self.object.spec.suspend == Some(true),
            disabled: self.disabled.is_some(),
            health: &self.health,
            pending: self.lanes.pending(),
            lost: self.lanes.lost(),
        };
        status::describe(&mut self.status, &view, Timestamp::now());
        if self.object.status.as_ref() == Some(&self.status) {
            let pledges = std::mem::take(&mut self.pledges);
            self.fulfil(pledges);
            return;
        }
        if !self.shared.claim.borrow().holds() {
            return;
        }
        self.writing = true;
        let object = TokenWebhook { status: Some(self.status.clone()), ..(*self.object).clone() };
        let (api, pledges) = (self.api(), std::mem::take(&mut self.pledges));
        let write = async move {
            failpoint::before("ledger");
            let result = api.replace_status(&object.name_any(), &PostParams::default(), &object).await;
            failpoint::after("ledger");
            Done::Written { result, pledges }
        };
        self.beside.push(write.boxed());
    }

    fn written(&mut self, result: Result<TokenWebhook, kube::Error>, pledges: Vec<Pledge>) {
        self.writing = false;
        match result {
            Ok(object) => {
                self.shared.metrics.status_writes.inc();
                self.write_failures = 0;
                self.tell_of_change(&object);
                self.object = Arc::new(object);
                self.see_held();
                self.fulfil(pledges);
            }
            Err(error) => {
                self.pledges.splice(0..0, pledges);
                if !self.loaded {
                    self.forget();
                    return;
                }
                self.write_failures = self.write_failures.saturating_add(1);
                let wait = Duration::from_millis(100) * 2u32.saturating_pow(self.write_failures.min(7));
                self.touch(wait);
                if remedy(&error) == Remedy::ReadAgain {
                    // The object was edited. The watch may lag, so it is asked for; the status stays ours.
                    let (api, name) = (self.api(), self.object.name_any());
                    let shared = self.shared.clone();
                    let unserved = self.unserved.clone();
                    tokio::spawn(async move {
                        if let Ok(object) = api.get(&name).await {
                            shared.note(&object, unserved);
                        }
                    });
                } else if remedy(&error) != Remedy::Drop {
                    warn!(
                        webhook = self.object.name_any(),
                        error = message(&error),
                        "the status was not written; trying again"
                    );
                }
            }
        }
    }

    fn fulfil(&mut self, pledges: Vec<Pledge>) {
        for pledge in pledges {
            match pledge {
                // Who no longer waits has given up.
                Pledge::Word(stored) => drop(stored.send(())),
                Pledge::Receipt(key, message) => self.shared.receipt(&key, &self.object, &message),
            }
        }
    }

    /// Events for what a person should see.
    fn tell_of_change(&mut self, written: &TokenWebhook) {
        let reason = |status: Option<&TokenWebhookStatus>| {
            let healthy = find_condition(&status?.conditions, ConditionType::Healthy)?;
            Some((healthy.status.clone(), healthy.reason.clone(), healthy.message.clone()))
        };
        let before = reason(self.object.status.as_ref());
        let was_failing = before.is_some_and(|(status, ..)| status == "False");
        match reason(written.status.as_ref()) {
            Some((status, ..)) if status == "True" && was_failing => {
                self.tell("EndpointRecovered", false, "the endpoint accepts events again");
            }
            Some((status, reason, message)) if status == "False" && !was_failing => {
                self.tell("EndpointFailing", true, &format!("{reason}: {message}"));
            }
            _ => {}
        }
        if self.buried > 0 {
            let buried = std::mem::take(&mut self.buried);
            self.tell("EventsGivenUp", true, &format!("{buried} events were given up; status.deadLetters has the last of them. To send them again, change the annotation tokenward.dev/replay"));
        }
    }

    fn tell(&self, reason: &'static str, warning: bool, sentence: &str) {
        let (namespace, name) = (self.object.namespace(), self.object.name_any());
        info!(namespace, webhook = name, event = reason, "{sentence}");
        self.shared.events.send(&*self.object, Told { reason, warning, message: sentence.to_owned() });
    }

    fn count(&mut self) {
        let pending = self.lanes.pending();
        let delta =
            i64::try_from(pending).unwrap_or_default() - i64::try_from(self.counted).unwrap_or_default();
        self.shared.metrics.pending.inc_by(delta);
        self.counted = pending;
    }

    fn api(&self) -> Api<TokenWebhook> {
        Api::namespaced(self.shared.client.clone(), &self.object.namespace().unwrap_or_default())
    }
}

fn is_held(key: &Key) -> bool {
    key.starts_with(HELD)
}

/// As much of an annotation as a status has room for.
fn bounded(text: &str) -> &str {
    text.char_indices().nth(ANNOTATION).map_or(text, |(at, _)| &text[..at])
}
