//! TokenWebhooks: which events each receives, and the workers that deliver them.
//!
//! This file has the registry: all TokenWebhooks, and all ApiTokens with waiting events, as the watches show them. It
//! sends each worker the commands that concern it. `worker` is the task of one TokenWebhook: `serving` says whether
//! anything is sent, `dispatcher` and `sender` send it, `delivery` makes one request, `target` and `signing_key` resolve
//! where to and with what keys, and `status_writer` writes the status with the `conditions`. A TokenWebhook receives
//! events from the moment at which it is registered here, which its condition Ready reports.

mod command;
mod conditions;
mod delivery;
mod dispatcher;
mod sender;
mod serving;
mod signing_key;
mod status_writer;
mod target;
mod worker;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::command::Command;
use self::worker::Worker;
use crate::apitoken::cache::StateCache;
use crate::metrics::WebhookMetrics;
use crate::objects::{Hook, Token};
use crate::recorder;
use crate::requeue::{Load, RequeueSender};
use tokenward_core::crd::{ApiToken, OutboxEvent, Reason, TokenWebhook};
use tokenward_core::outbox::EventType;
use tokenward_core::outbox::dead_letters;
use tokenward_core::outbox::destination::AddressPolicy;
use tokenward_core::outbox::events::Receipt;
use tokenward_core::outbox::payload::Message;
use tokenward_core::outbox::queue::{Key, TokenEvents};
use tokenward_core::outbox::retry::Schedule;
use tokenward_core::outbox::subscription::{MAX_SUBSCRIPTIONS, Subscription};
use tokenward_runtime::backoff::WatchBackoff;
use tokenward_runtime::cluster::error::watch_message;
use tokenward_runtime::cluster::lease::Claim;
use tokenward_runtime::sync::lock;

/// How long a deleted token waits for its undelivered events to be stored elsewhere, before it tries again.
const KEEP: Duration = Duration::from_secs(5);

/// What every endpoint's task shares.
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) claim: watch::Receiver<Claim>,
    pub(crate) events: recorder::Sender,
    pub(crate) metrics: WebhookMetrics,
    pub(crate) memories: Arc<StateCache>,
    pub(crate) schedule: Schedule,
    pub(crate) policy: Arc<AddressPolicy>,
    pub(crate) nudges: RequeueSender,
    pub(crate) load: Load,
    pub(crate) registry: Mutex<Registry>,
}

/// All TokenWebhooks, and all tokens that wait.
#[derive(Default)]
pub(crate) struct Registry {
    namespaces: HashMap<String, Namespace>,
    waiting: HashMap<Key, (String, Arc<TokenEvents>)>,
    /// The tokens of a new list, until it is complete.
    listed_tokens: Option<HashSet<Key>>,
    /// The TokenWebhooks of a new list, by namespace and name.
    listed_hooks: Option<HashSet<(String, String)>>,
}

#[derive(Default)]
struct Namespace {
    hooks: BTreeMap<String, Entry>,
    subscriptions: Arc<[Subscription]>,
}

struct Entry {
    object: Arc<TokenWebhook>,
    problem: Option<Reason>,
    commands: mpsc::UnboundedSender<Command>,
    stop: CancellationToken,
}

/// The TokenWebhooks of the watched namespaces.
pub(crate) struct Webhooks {
    shared: Arc<Shared>,
    stop: CancellationToken,
    listed: watch::Sender<bool>,
}

impl Webhooks {
    pub(crate) fn new(shared: Arc<Shared>, stop: CancellationToken) -> Self {
        Self { shared, stop, listed: watch::Sender::new(false) }
    }

    /// The subscriptions of the TokenWebhooks of a namespace.
    pub(crate) fn subscriptions(&self, namespace: &str) -> Arc<[Subscription]> {
        let registry = self.shared.registry();
        registry.namespaces.get(namespace).map(|found| found.subscriptions.clone()).unwrap_or_default()
    }

    /// Receipts of a token still wait after a status was written.
    pub(crate) fn collect_receipts(&self, token: &ApiToken) {
        let uid = token.uid().unwrap_or_default();
        let token = ObjectRef::new(&token.name_any()).within(&token.namespace().unwrap_or_default());
        self.shared.nudges.collect(uid.into(), token);
    }

    /// Comes to an end when all TokenWebhooks are known. Before that nothing may be recorded, since it would not be
    /// recorded for those.
    pub(crate) async fn listed(&self) {
        // The other end is ours, so this ends by nothing else.
        let _ = self.listed.subscribe().wait_for(|listed| *listed).await;
    }

    /// Watches the TokenWebhooks of one namespace, or of all. `tokens` are reconciled when one is created or deleted.
    pub(crate) async fn follow(&self, api: Api<Hook>, tokens: Store<Token>) {
        watcher(api, watcher::Config::default())
            .inspect_err(|error| {
                warn!(error = watch_message(error), "TokenWebhooks can't be watched; trying again");
            })
            .backoff(WatchBackoff::default())
            .filter_map(|event| std::future::ready(event.ok()))
            .for_each(|event| {
                self.heard(event, &tokens);
                std::future::ready(())
            })
            .await;
    }

    fn heard(&self, event: Event<Hook>, tokens: &Store<Token>) {
        match event {
            Event::Init => self.shared.registry().listed_hooks = Some(HashSet::new()),
            Event::InitApply(hook) | Event::Apply(hook) => self.apply(hook, tokens),
            Event::Delete(hook) => {
                let metadata = hook.meta();
                let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
                self.remove(namespace.unwrap_or_default(), name.unwrap_or_default(), tokens);
            }
            Event::InitDone => {
                for (namespace, name) in self.shared.registry().unlisted_hooks() {
                    self.remove(&namespace, &name, tokens);
                }
                self.listed.send_replace(true);
            }
        }
    }

    fn apply(&self, hook: Hook, tokens: &Store<Token>) {
        let Ok(mut object) = hook.0 else {
            warn!("a TokenWebhook can't be read; install the CRDs of this version of tokenward");
            return;
        };
        object.metadata.managed_fields = None;
        let (namespace, name, object) =
            (object.namespace().unwrap_or_default(), object.name_any(), Arc::new(object));
        let mut registry = self.shared.registry();
        if let Some(listed) = &mut registry.listed_hooks {
            listed.insert((namespace.clone(), name.clone()));
        }
        let found = registry.namespaces.entry(namespace.clone()).or_default();
        // An object that was deleted and created again between two watches has another uid.
        let is_new = found.hooks.get(&name).is_none_or(|entry| entry.object.uid() != object.uid());
        let (commands, stop, received) = match found.hooks.remove(&name).filter(|_| !is_new) {
            Some(entry) => (entry.commands, entry.stop, None),
            None => {
                let (commands, received) = mpsc::unbounded_channel();
                (commands, self.stop.child_token(), Some(received))
            }
        };
        let entry =
            Entry { object: object.clone(), problem: None, commands: commands.clone(), stop: stop.clone() };
        found.hooks.insert(name.clone(), entry);
        let changed = found.subscribe();
        let problem = found.hooks.get(&name).and_then(|entry| entry.problem.clone());
        match received {
            Some(received) => {
                let here = registry.waiting.values().filter(|(at, _)| *at == namespace);
                for (_, waiting) in here {
                    // The worker below receives it.
                    let _ = commands.send(Command::Token(waiting.clone()));
                }
                let task = Worker::new(self.shared.clone(), received, object, problem);
                tokio::spawn(task.run(stop));
            }
            None => {
                // The worker ends only with the process.
                let _ = commands.send(Command::Webhook(object, problem));
            }
        }
        drop(registry);
        if changed {
            self.look_at_tokens(&namespace, tokens);
        }
    }

    fn remove(&self, namespace: &str, name: &str, tokens: &Store<Token>) {
        let mut registry = self.shared.registry();
        let Some(found) = registry.namespaces.get_mut(namespace) else { return };
        let Some(entry) = found.hooks.remove(name) else { return };
        entry.stop.cancel();
        found.subscribe();
        if found.hooks.is_empty() {
            registry.namespaces.remove(namespace);
        }
        drop(registry);
        self.look_at_tokens(namespace, tokens);
    }

    /// Requeues the tokens of a namespace, whose subscriptions have changed.
    fn look_at_tokens(&self, namespace: &str, tokens: &Store<Token>) {
        // Each is reconciled for the first time later.
        if !*self.listed.borrow() {
            return;
        }
        for token in
            tokens.state().iter().filter(|token| token.meta().namespace.as_deref() == Some(namespace))
        {
            self.shared.nudges.now(ObjectRef::from_obj(&**token));
        }
    }

    /// Takes note of what the watch of the tokens shows.
    pub(crate) fn saw(&self, event: &Event<Token>) {
        match event {
            Event::Init => self.shared.registry().listed_tokens = Some(HashSet::new()),
            Event::InitApply(token) | Event::Apply(token) => {
                if let Ok(token) = &token.0 {
                    self.shared.registry().see(token);
                }
            }
            Event::Delete(token) => {
                let uid = token.meta().uid.as_deref().unwrap_or_default();
                self.shared.registry().gone(uid);
            }
            Event::InitDone => {
                let mut registry = self.shared.registry();
                let listed = registry.listed_tokens.take().unwrap_or_default();
                let gone = registry.waiting.keys().filter(|key| !listed.contains(*key));
                for key in gone.cloned().collect::<Vec<_>>() {
                    registry.gone(&key);
                }
            }
        }
    }

    /// Has the TokenWebhooks keep what a token that goes leaves undelivered. Answers the one that could not.
    pub(crate) async fn keep(&self, token: &ApiToken, undelivered: &[OutboxEvent]) -> Result<(), String> {
        let now = Timestamp::now();
        let mut kept = BTreeMap::<&str, Vec<_>>::new();
        for event in undelivered {
            let message = message_of(token, event);
            for webhook in &event.webhooks {
                kept.entry(webhook).or_default().push(dead_letters::to_stored(&message, now));
            }
        }
        for (webhook, events) in kept {
            let (word, stored) = oneshot::channel();
            {
                let registry = self.shared.registry();
                let found = registry.namespaces.get(&token.namespace().unwrap_or_default());
                let Some(entry) = found.and_then(|found| found.hooks.get(webhook)) else { continue };
                let _ = entry.commands.send(Command::Store(events, word));
            }
            match tokio::time::timeout(KEEP, stored).await {
                Ok(Ok(())) => {}
                // The worker ended with its TokenWebhook, so the events have no receiver.
                Ok(Err(_)) if !self.has(token, webhook) => {}
                Ok(Err(_)) | Err(_) => return Err(webhook.to_owned()),
            }
        }
        Ok(())
    }
}

impl Webhooks {
    fn has(&self, token: &ApiToken, webhook: &str) -> bool {
        let registry = self.shared.registry();
        let found = registry.namespaces.get(&token.namespace().unwrap_or_default());
        found.is_some_and(|found| found.hooks.contains_key(webhook))
    }
}

impl Shared {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        // A panic elsewhere leaves plain data behind.
        lock(&self.registry)
    }

    /// A token's event needs nothing more from a TokenWebhook.
    fn receipt(&self, key: &Key, message: &Message, namespace: &str, webhook: &Arc<str>) {
        let receipt = Receipt { id: message.id.clone(), webhook: webhook.clone() };
        let is_first = self.memories.with(key, |memory| memory.receipts.add(receipt));
        let token = || ObjectRef::new(message.name.as_deref().unwrap_or_default()).within(namespace);
        if message.type_ == EventType::Deleted.as_str() {
            // The object waits for nothing else.
            self.nudges.now(token());
        } else if is_first {
            self.nudges.collect(key.clone(), token());
        }
    }
}

impl Registry {
    fn see(&mut self, token: &ApiToken) {
        let uid = token.uid().unwrap_or_default();
        let outbox = token.status.as_ref().and_then(|status| status.outbox.as_ref());
        if outbox.is_none() && !self.waiting.contains_key(&*uid) {
            return;
        }
        let key = Key::from(uid);
        let waiting = Arc::new(waiting(key.clone(), token));
        let namespace = token.namespace().unwrap_or_default();
        if let Some(found) = self.namespaces.get(&namespace) {
            for entry in found.hooks.values() {
                let _ = entry.commands.send(Command::Token(waiting.clone()));
            }
        }
        if outbox.is_some() {
            if let Some(listed) = &mut self.listed_tokens {
                listed.insert(key.clone());
            }
            self.waiting.insert(key, (namespace, waiting));
        } else {
            self.waiting.remove(&key);
        }
    }

    fn gone(&mut self, uid: &str) {
        let Some((key, (namespace, _))) = self.waiting.remove_entry(uid) else { return };
        for entry in self.namespaces.get(&namespace).iter().flat_map(|found| found.hooks.values()) {
            let _ = entry.commands.send(Command::TokenGone(key.clone()));
        }
    }

    fn unlisted_hooks(&mut self) -> Vec<(String, String)> {
        let listed = self.listed_hooks.take().unwrap_or_default();
        let known = self.namespaces.iter().flat_map(|(namespace, found)| {
            found.hooks.keys().map(move |name| (namespace.clone(), name.clone()))
        });
        known.filter(|hook| !listed.contains(hook)).collect()
    }
}

impl Namespace {
    /// Makes the subscriptions anew; the oldest TokenWebhooks are served. Answers whether anything has changed.
    fn subscribe(&mut self) -> bool {
        let mut order: Vec<_> = self.hooks.values_mut().collect();
        order.sort_by_cached_key(|entry| {
            (entry.object.metadata.creation_timestamp.clone(), entry.object.name_any())
        });
        let mut subscriptions = Vec::with_capacity(order.len());
        for (rank, entry) in order.into_iter().enumerate() {
            let name = entry.object.name_any();
            let (subscription, problem) = match Subscription::of(&entry.object) {
                _ if rank >= MAX_SUBSCRIPTIONS => {
                    let advice =
                        format!("a namespace has at most {MAX_SUBSCRIPTIONS} TokenWebhooks; delete another");
                    (Subscription::empty(&name), Some(Reason::new("TooManyWebhooks", advice)))
                }
                Ok(subscription) => (subscription, None),
                Err(message) => (Subscription::empty(&name), Some(Reason::new("InvalidSpec", message))),
            };
            if entry.problem != problem {
                entry.problem.clone_from(&problem);
                let _ = entry.commands.send(Command::Webhook(entry.object.clone(), problem));
            }
            subscriptions.push(subscription);
        }
        let changed = *subscriptions != *self.subscriptions;
        self.subscriptions = subscriptions.into();
        changed
    }
}

fn waiting(key: Key, token: &ApiToken) -> TokenEvents {
    let outbox = token.status.as_ref().and_then(|status| status.outbox.clone()).unwrap_or_default();
    let events = outbox.events.into_iter().map(|event| (message_of(token, &event).into(), event.webhooks));
    TokenEvents { key, events: events.collect(), lost: outbox.lost }
}

fn message_of(token: &ApiToken, event: &OutboxEvent) -> Message {
    let status = token.status.as_ref();
    let token_id = status.and_then(|status| status.token_id.as_deref());
    let mut versions = status.into_iter().flat_map(|status| &status.versions);
    let scopes =
        versions.find(|version| Some(version.version) == event.version).map(|version| &*version.scopes);
    Message::of_token(event, &token.name_any(), token_id, scopes)
}
