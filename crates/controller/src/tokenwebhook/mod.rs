//! TokenWebhooks: which events each receives, and the workers that deliver them.
//!
//! This file has what the rest of the controller uses, and the watch. `registry` has all TokenWebhooks, and all ApiTokens
//! with undelivered events, and sends each worker the commands that concern it. `worker` is the task of one TokenWebhook:
//! `serving` says whether anything is sent, `dispatcher` and `sender` send it within
//! `sender_permits`, `delivery` makes one request, `target` and
//! `signing_key` resolve where to and with what keys, and `status_writer` writes the status with the `conditions`. A
//! TokenWebhook receives events from the moment at which it is registered, which its condition Ready reports.

mod command;
mod conditions;
mod delivery;
mod dispatcher;
mod registry;
mod sender;
mod sender_permits;
mod serving;
mod signing_key;
mod status_writer;
mod target;
mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{Event, watcher};
use kube::{Api, Resource, ResourceExt};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::command::Command;
use self::registry::message_of;
use self::worker::Worker;
use crate::objects::{Hook, Token};
use tokenward_core::crd::{ApiToken, OutboxEvent};
use tokenward_core::outbox::dead_letters;
use tokenward_core::outbox::subscription::Subscription;
use tokenward_runtime::backoff::WatchBackoff;
use tokenward_runtime::cluster::error::watch_message;
use tokenward_runtime::cluster::watch::in_pages;

pub(crate) use self::delivery::resolve;
pub(crate) use self::registry::Shared;

/// How long a deleted token waits for its undelivered events to be stored elsewhere, before it tries again.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// The TokenWebhooks of the watched namespaces.
pub(crate) struct Webhooks {
    shared: Arc<Shared>,
    stop: CancellationToken,
    /// Whether the first list of TokenWebhooks is complete.
    listed: watch::Sender<bool>,
}

impl Webhooks {
    pub(crate) fn new(shared: Arc<Shared>, stop: CancellationToken) -> Self {
        Self { shared, stop, listed: watch::Sender::new(false) }
    }

    /// The subscriptions of the TokenWebhooks of a namespace.
    pub(crate) fn subscriptions(&self, namespace: &str) -> Arc<[Subscription]> {
        self.shared.registry().subscriptions(namespace)
    }

    /// Has the receipts of a token collected that are left after a status was written.
    pub(crate) fn collect_receipts(&self, token: &ApiToken) {
        let uid = token.uid().unwrap_or_default();
        let token = ObjectRef::new(&token.name_any()).within(&token.namespace().unwrap_or_default());
        self.shared.requeue.collect(uid.into(), token);
    }

    /// Waits until all TokenWebhooks are known. Before that no event may be recorded, since those that are not known yet
    /// would not receive it.
    pub(crate) async fn listed(&self) {
        // This struct has the sender, so the wait can't fail.
        let _ = self.listed.subscribe().wait_for(|listed| *listed).await;
    }

    /// Watches the TokenWebhooks of one namespace, or of all. `tokens` are reconciled when subscriptions change.
    pub(crate) async fn follow(&self, api: Api<Hook>, tokens: Store<Token>) {
        watcher(api, in_pages())
            .inspect_err(|error| {
                warn!(error = watch_message(error), "TokenWebhooks can't be watched; trying again");
            })
            .backoff(WatchBackoff::default())
            .filter_map(|event| std::future::ready(event.ok()))
            .for_each(|event| {
                self.on_webhook_event(event, &tokens);
                std::future::ready(())
            })
            .await;
    }

    fn on_webhook_event(&self, event: Event<Hook>, tokens: &Store<Token>) {
        match event {
            Event::Init => self.shared.registry().begin_webhooks(),
            Event::InitApply(hook) | Event::Apply(hook) => self.apply(hook, tokens),
            Event::Delete(hook) => {
                let metadata = hook.meta();
                let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
                self.remove(namespace.unwrap_or_default(), name.unwrap_or_default(), tokens);
            }
            Event::InitDone => {
                let deleted = self.shared.registry().end_webhooks();
                for (namespace, name) in deleted {
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
        let object = Arc::new(object);
        let applied = self.shared.registry().apply(&object, &self.stop);
        if let Some(new) = applied.new {
            let stop = new.stop.clone();
            let worker = Worker::new(self.shared.clone(), new, object.clone());
            tokio::spawn(worker.run(stop));
        }
        if applied.resubscribed {
            self.requeue_tokens(&object.namespace().unwrap_or_default(), tokens);
        }
    }

    fn remove(&self, namespace: &str, name: &str, tokens: &Store<Token>) {
        if self.shared.registry().remove(namespace, name) {
            self.requeue_tokens(namespace, tokens);
        }
    }

    /// Requeues the tokens of a namespace, whose subscriptions have changed.
    fn requeue_tokens(&self, namespace: &str, tokens: &Store<Token>) {
        // Before that no token has been reconciled.
        if !*self.listed.borrow() {
            return;
        }
        let tokens = tokens.state();
        for token in tokens.iter().filter(|token| token.meta().namespace.as_deref() == Some(namespace)) {
            self.shared.requeue.now(ObjectRef::from_obj(&**token));
        }
    }

    /// Handles an event of the watch of ApiTokens.
    pub(crate) fn on_token_event(&self, event: &Event<Token>) {
        let mut registry = self.shared.registry();
        match event {
            Event::Init => registry.begin_tokens(),
            Event::InitApply(token) | Event::Apply(token) => {
                if let Ok(token) = &token.0 {
                    registry.update_token(token);
                }
            }
            Event::Delete(token) => registry.remove_token(token.meta().uid.as_deref().unwrap_or_default()),
            Event::InitDone => registry.end_tokens(),
        }
    }

    /// Has the undelivered events of a deleted token stored in the TokenWebhooks that they are for. Returns the name of
    /// the first one that did not confirm it.
    pub(crate) async fn store(&self, token: &ApiToken, undelivered: &[OutboxEvent]) -> Result<(), String> {
        let namespace = token.namespace().unwrap_or_default();
        let now = Timestamp::now();
        let mut events_of = BTreeMap::<&str, Vec<_>>::new();
        for event in undelivered {
            let message = message_of(token, event);
            for webhook in &event.webhooks {
                events_of.entry(webhook).or_default().push(dead_letters::to_stored(&message, now));
            }
        }
        for (webhook, events) in events_of {
            let (confirm, stored) = oneshot::channel();
            match self.shared.registry().commands(&namespace, webhook) {
                Some(commands) => {
                    // If the worker has ended, `confirm` is dropped, which `stored` reports.
                    let _ = commands.send(Command::Store(events, confirm));
                }
                None => continue,
            }
            match tokio::time::timeout(STORE_TIMEOUT, stored).await {
                Ok(Ok(())) => {}
                // The worker ended with its TokenWebhook, so the events have no receiver.
                Ok(Err(_)) if self.shared.registry().commands(&namespace, webhook).is_none() => {}
                Ok(Err(_)) | Err(_) => return Err(webhook.to_owned()),
            }
        }
        Ok(())
    }
}
