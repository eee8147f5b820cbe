//! The registry: all TokenWebhooks with the channels to their workers, and all ApiTokens with undelivered events, as the
//! watches show them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use kube::runtime::reflector::ObjectRef;
use kube::{Client, ResourceExt};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::command::Command;
use super::delivery::resolve::Resolve;
use super::sender_permits::{ProcessPermits, SenderPermits};
use crate::apitoken::cache::StateCache;
use crate::metrics::WebhookMetrics;
use crate::recorder::EventRecorder;
use crate::requeue::{Load, RequeueSender};
use tokenward_core::crd::{ApiToken, EventType, OutboxEvent, Reason, TokenWebhook};
use tokenward_core::outbox::destination::AddressPolicy;
use tokenward_core::outbox::events::Receipt;
use tokenward_core::outbox::payload::Message;
use tokenward_core::outbox::queue::{Key, TokenEvents};
use tokenward_core::outbox::retry::Schedule;
use tokenward_core::outbox::subscription::{MAX_SUBSCRIPTIONS, Subscription};
use tokenward_runtime::cluster::lease::Claim;
use tokenward_runtime::sync::lock;

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) claim: watch::Receiver<Claim>,
    pub(crate) events: EventRecorder,
    pub(crate) metrics: WebhookMetrics,
    pub(crate) cache: Arc<StateCache>,
    pub(crate) schedule: Schedule,
    pub(crate) policy: Arc<AddressPolicy>,
    pub(crate) resolve: Resolve,
    pub(crate) requeue: RequeueSender,
    pub(crate) load: Load,
    pub(crate) registry: Mutex<Registry>,
}

/// All TokenWebhooks, and all tokens with undelivered events.
#[derive(Default)]
pub(crate) struct Registry {
    namespaces: HashMap<String, Namespace>,
    permits: ProcessPermits,
    /// The undelivered events of each token, with its namespace.
    tokens: HashMap<Key, (String, Arc<TokenEvents>)>,
    /// The tokens of a new list of the watch, until it is complete.
    listed_tokens: Option<HashSet<Key>>,
    /// The TokenWebhooks of a new list, by namespace and name.
    listed_webhooks: Option<HashSet<(String, String)>>,
}

struct Namespace {
    webhooks: BTreeMap<String, Entry>,
    subscriptions: Arc<[Subscription]>,
    permits: SenderPermits,
}

struct Entry {
    object: Arc<TokenWebhook>,
    /// Why it is not served, if it is not.
    unserved: Option<Reason>,
    commands: mpsc::UnboundedSender<Command>,
    stop: CancellationToken,
}

/// The result of [`Registry::apply`].
pub(super) struct Applied {
    /// Whether the subscriptions of the namespace have changed.
    pub(super) resubscribed: bool,
    /// What the worker of a new TokenWebhook needs. Commands are waiting for it already.
    pub(super) new: Option<NewWorker>,
}

/// The input of a worker that is not running yet.
pub(super) struct NewWorker {
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) unserved: Option<Reason>,
    pub(super) permits: SenderPermits,
    pub(super) stop: CancellationToken,
}

impl Shared {
    pub(super) fn registry(&self) -> MutexGuard<'_, Registry> {
        lock(&self.registry)
    }

    /// Notes that a TokenWebhook no longer needs an event of a token.
    pub(super) fn receipt(&self, key: &Key, message: &Message, namespace: &str, webhook: &Arc<str>) {
        let receipt = Receipt { id: message.id.clone(), webhook: webhook.clone() };
        let is_first = self.cache.with(key, |state| state.receipts.add(receipt));
        let token = || ObjectRef::new(message.name.as_deref().unwrap_or_default()).within(namespace);
        if message.type_ == EventType::Deleted.as_str() {
            // The deleted object waits for nothing else, so its receipts are not collected first.
            self.requeue.now(token());
        } else if is_first {
            self.requeue.collect(key.clone(), token());
        }
    }
}

impl Registry {
    /// The subscriptions of the TokenWebhooks of a namespace.
    pub(super) fn subscriptions(&self, namespace: &str) -> Arc<[Subscription]> {
        self.namespaces.get(namespace).map(|found| found.subscriptions.clone()).unwrap_or_default()
    }

    /// The channel to the worker of a TokenWebhook, if there is that TokenWebhook.
    pub(super) fn commands(&self, namespace: &str, name: &str) -> Option<&mpsc::UnboundedSender<Command>> {
        Some(&self.namespaces.get(namespace)?.webhooks.get(name)?.commands)
    }

    // === TokenWebhooks ===

    /// A new list of TokenWebhooks begins.
    pub(super) fn begin_webhooks(&mut self) {
        self.listed_webhooks = Some(HashSet::new());
    }

    /// The list is complete. Returns the TokenWebhooks that are not in it, by namespace and name.
    pub(super) fn end_webhooks(&mut self) -> Vec<(String, String)> {
        let listed = self.listed_webhooks.take().unwrap_or_default();
        let known = self.namespaces.iter().flat_map(|(namespace, found)| {
            found.webhooks.keys().map(move |name| (namespace.clone(), name.clone()))
        });
        known.filter(|webhook| !listed.contains(webhook)).collect()
    }

    /// Adds or updates a TokenWebhook. `stop` stops all workers.
    pub(super) fn apply(&mut self, object: &Arc<TokenWebhook>, stop: &CancellationToken) -> Applied {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        if let Some(listed) = &mut self.listed_webhooks {
            listed.insert((namespace.clone(), name.clone()));
        }
        let found = self
            .namespaces
            .entry(namespace.clone())
            .or_insert_with(|| Namespace::new(self.permits.of_namespace()));
        // An object that was deleted and created again between two watches has another uid, and gets a new worker.
        let before = found.webhooks.remove(&name).filter(|entry| entry.object.uid() == object.uid());
        let (commands, stop, received) = match before {
            Some(entry) => (entry.commands, entry.stop, None),
            None => {
                let (commands, received) = mpsc::unbounded_channel();
                (commands, stop.child_token(), Some(received))
            }
        };
        let entry =
            Entry { object: object.clone(), unserved: None, commands: commands.clone(), stop: stop.clone() };
        found.webhooks.insert(name.clone(), entry);
        let resubscribed = found.subscribe();
        let unserved = found.webhooks.get(&name).and_then(|entry| entry.unserved.clone());
        let Some(received) = received else {
            // The worker ends only with the process.
            let _ = commands.send(Command::Webhook(object.clone(), unserved));
            return Applied { resubscribed, new: None };
        };
        for (_, events) in self.tokens.values().filter(|(at, _)| *at == namespace) {
            // The receiver is returned below.
            let _ = commands.send(Command::Token(events.clone()));
        }
        let permits = found.permits.clone();
        Applied { resubscribed, new: Some(NewWorker { commands: received, unserved, permits, stop }) }
    }

    /// Removes a TokenWebhook, and stops its worker. Returns whether there was one.
    pub(super) fn remove(&mut self, namespace: &str, name: &str) -> bool {
        let Some(found) = self.namespaces.get_mut(namespace) else { return false };
        let Some(entry) = found.webhooks.remove(name) else { return false };
        entry.stop.cancel();
        found.subscribe();
        if found.webhooks.is_empty() {
            self.namespaces.remove(namespace);
        }
        true
    }

    // === ApiTokens ===

    /// A new list of tokens begins.
    pub(super) fn begin_tokens(&mut self) {
        self.listed_tokens = Some(HashSet::new());
    }

    /// The list is complete: tokens that are not in it are gone.
    pub(super) fn end_tokens(&mut self) {
        let listed = self.listed_tokens.take().unwrap_or_default();
        let gone = self.tokens.keys().filter(|key| !listed.contains(*key));
        for key in gone.cloned().collect::<Vec<_>>() {
            self.remove_token(&key);
        }
    }

    /// Passes the undelivered events of a token on to the workers of its namespace.
    pub(super) fn update_token(&mut self, token: &ApiToken) {
        let uid = token.uid().unwrap_or_default();
        let outbox = token.status.as_ref().and_then(|status| status.outbox.as_ref());
        if outbox.is_none() && !self.tokens.contains_key(&*uid) {
            return;
        }
        let key = Key::from(uid);
        let events = Arc::new(events_of(key.clone(), token));
        let namespace = token.namespace().unwrap_or_default();
        self.send_all(&namespace, || Command::Token(events.clone()));
        if outbox.is_some() {
            if let Some(listed) = &mut self.listed_tokens {
                listed.insert(key.clone());
            }
            self.tokens.insert(key, (namespace, events));
        } else {
            self.tokens.remove(&key);
        }
    }

    /// A token was deleted.
    pub(super) fn remove_token(&mut self, uid: &str) {
        if let Some((key, (namespace, _))) = self.tokens.remove_entry(uid) {
            self.send_all(&namespace, || Command::TokenGone(key.clone()));
        }
    }

    fn send_all(&self, namespace: &str, command: impl Fn() -> Command) {
        for entry in self.namespaces.get(namespace).iter().flat_map(|found| found.webhooks.values()) {
            // The worker ends only with the process.
            let _ = entry.commands.send(command());
        }
    }
}

impl Namespace {
    fn new(permits: SenderPermits) -> Self {
        Self { webhooks: BTreeMap::new(), subscriptions: Arc::default(), permits }
    }

    /// Computes the subscriptions. The oldest TokenWebhooks are served. Returns whether anything has changed.
    fn subscribe(&mut self) -> bool {
        let mut oldest_first: Vec<_> = self.webhooks.values_mut().collect();
        oldest_first.sort_by_cached_key(|entry| {
            (entry.object.metadata.creation_timestamp.clone(), entry.object.name_any())
        });
        let mut subscriptions = Vec::with_capacity(oldest_first.len());
        for (rank, entry) in oldest_first.into_iter().enumerate() {
            let name = entry.object.name_any();
            let (subscription, unserved) = match Subscription::of(&entry.object) {
                _ if rank >= MAX_SUBSCRIPTIONS => {
                    let advice =
                        format!("a namespace has at most {MAX_SUBSCRIPTIONS} TokenWebhooks; delete another");
                    (Subscription::empty(&name), Some(Reason::new("TooManyWebhooks", advice)))
                }
                Ok(subscription) => (subscription, None),
                Err(message) => (Subscription::empty(&name), Some(Reason::new("InvalidSpec", message))),
            };
            if entry.unserved != unserved {
                entry.unserved.clone_from(&unserved);
                let _ = entry.commands.send(Command::Webhook(entry.object.clone(), unserved));
            }
            subscriptions.push(subscription);
        }
        let changed = *subscriptions != *self.subscriptions;
        self.subscriptions = subscriptions.into();
        changed
    }
}

fn events_of(key: Key, token: &ApiToken) -> TokenEvents {
    let outbox = token.status.as_ref().and_then(|status| status.outbox.clone()).unwrap_or_default();
    let events = outbox.events.into_iter().map(|event| (message_of(token, &event).into(), event.webhooks));
    TokenEvents { key, events: events.collect(), lost: outbox.lost }
}

/// An event of a token, with what else the token's status says of it.
pub(super) fn message_of(token: &ApiToken, event: &OutboxEvent) -> Message {
    let status = token.status.as_ref();
    let token_id = status.and_then(|status| status.token_id.as_deref());
    let mut versions = status.into_iter().flat_map(|status| &status.versions);
    let scopes =
        versions.find(|version| Some(version.version) == event.version).map(|version| &*version.scopes);
    Message::of_token(event, &token.name_any(), token_id, scopes)
}

#[cfg(test)]
mod tests {
    use tokenward_core::crd::{ApiTokenSpec, ApiTokenStatus, Outbox, TokenWebhookSpec};

    use super::*;

    fn webhook(name: &str, uid: &str) -> Arc<TokenWebhook> {
        let spec = TokenWebhookSpec { events: vec!["*".to_owned()], ..Default::default() };
        let mut webhook = TokenWebhook::new(name, spec);
        webhook.metadata.namespace = Some("demo".to_owned());
        webhook.metadata.uid = Some(uid.to_owned());
        webhook.into()
    }

    fn token(uid: &str, outbox: Option<Outbox>) -> ApiToken {
        let mut token = ApiToken::new(uid, ApiTokenSpec::default());
        token.metadata.namespace = Some("demo".to_owned());
        token.metadata.uid = Some(uid.to_owned());
        token.status = Some(ApiTokenStatus { outbox, ..Default::default() });
        token
    }

    /// The commands that wait for a worker, in short.
    fn waiting(worker: &mut NewWorker) -> Vec<String> {
        let commands = std::iter::from_fn(|| worker.commands.try_recv().ok());
        let texts = commands.map(|command| match command {
            Command::Webhook(_, unserved) => format!("webhook {:?}", unserved.map(|reason| reason.code)),
            Command::Token(events) => format!("token {}", events.key),
            Command::TokenGone(key) => format!("gone {key}"),
            Command::Store(..) => "store".to_owned(),
        });
        texts.collect()
    }

    #[test]
    fn a_new_worker_receives_what_is_undelivered() {
        let (mut registry, stop) = (Registry::default(), CancellationToken::new());
        registry.update_token(&token("a", Some(Outbox::default())));
        registry.update_token(&token("b", None));
        let mut worker = registry.apply(&webhook("hook", "1"), &stop).new.expect("a new worker");
        assert_eq!(waiting(&mut worker), ["token a"]);
        registry.update_token(&token("b", Some(Outbox::default())));
        registry.update_token(&token("a", None));
        registry.remove_token("a");
        registry.remove_token("b");
        assert_eq!(waiting(&mut worker), ["token b", "token a", "gone b"]);
    }

    #[test]
    fn a_recreated_object_gets_a_new_worker_and_an_updated_one_does_not() {
        let (mut registry, stop) = (Registry::default(), CancellationToken::new());
        let first = registry.apply(&webhook("hook", "1"), &stop);
        assert!(first.resubscribed);
        let mut worker = first.new.expect("a new worker");
        let second = registry.apply(&webhook("hook", "1"), &stop);
        assert!(!second.resubscribed && second.new.is_none());
        assert_eq!(waiting(&mut worker), ["webhook None"]);
        let third = registry.apply(&webhook("hook", "2"), &stop).new.expect("a new worker");
        assert!(!third.stop.is_cancelled());
        assert!(registry.remove("demo", "hook") && !registry.remove("demo", "hook"));
        assert!(third.stop.is_cancelled() && registry.subscriptions("demo").is_empty());
    }

    #[test]
    fn what_is_missing_in_a_complete_list_is_gone() {
        let (mut registry, stop) = (Registry::default(), CancellationToken::new());
        let mut worker = registry.apply(&webhook("listed", "1"), &stop).new.expect("a new worker");
        registry.apply(&webhook("deleted", "2"), &stop);
        registry.begin_webhooks();
        registry.apply(&webhook("listed", "1"), &stop);
        assert_eq!(registry.end_webhooks(), [("demo".to_owned(), "deleted".to_owned())]);
        ["a", "b"].iter().for_each(|uid| registry.update_token(&token(uid, Some(Outbox::default()))));
        registry.begin_tokens();
        registry.update_token(&token("a", Some(Outbox::default())));
        waiting(&mut worker);
        registry.end_tokens();
        assert_eq!(waiting(&mut worker), ["gone b"]);
    }

    #[test]
    fn the_oldest_webhooks_of_a_namespace_are_served() {
        let (mut registry, stop) = (Registry::default(), CancellationToken::new());
        let mut workers = Vec::new();
        for n in 0..=MAX_SUBSCRIPTIONS {
            let name = format!("hook-{n:03}");
            workers.extend(registry.apply(&webhook(&name, &name), &stop).new);
        }
        let unserved: Vec<_> = workers.iter().filter_map(|worker| worker.unserved.as_ref()).collect();
        assert_eq!(unserved.iter().map(|reason| reason.code).collect::<Vec<_>>(), ["TooManyWebhooks"]);
        let last = workers.last_mut().expect("a worker");
        assert!(registry.remove("demo", "hook-000"));
        assert_eq!(waiting(last), ["webhook Some(\"TooManyWebhooks\")", "webhook None"]);
    }
}
