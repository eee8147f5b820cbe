//! The transactional outbox in the status of an ApiToken.
//!
//! An event is recorded by the status write that makes the transition, with the names of the TokenWebhooks that subscribe
//! to it, so a crash can't separate the two. It is removed once each of them has accepted or dead-lettered it. A
//! TokenWebhook that is created later does not receive it; one that is deleted is removed from it. An event without
//! subscribers is not recorded.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::subscription::Subscription;
use crate::crd::{EventType, Outbox, OutboxEvent};
use crate::token::format::base62_of;

/// The capacity of an outbox, in events. A token has few transitions, so it fills up only if an endpoint is down for
/// long. Then the oldest event is dropped, since the newest describes the current state.
pub const MAX_EVENTS: usize = 32;

/// The note that a TokenWebhook has accepted an event, or has stored it in its own status.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// The id of the event.
    pub id: Arc<str>,
    /// The name of the TokenWebhook.
    pub webhook: Arc<str>,
}

/// The receipts of one token that its stored status does not reflect yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipts {
    pub accepted: HashSet<Receipt>,
    /// Whether the status is to be written for them alone. Until then they wait for a write that happens anyway.
    pub due: bool,
}

impl Receipts {
    /// Adds a receipt. Returns whether it is the only one now.
    pub fn add(&mut self, receipt: Receipt) -> bool {
        self.accepted.insert(receipt) && self.accepted.len() == 1
    }

    /// Removes the receipts that the written outbox reflects. Returns whether any are left.
    pub fn retain(&mut self, written: Option<&Outbox>) -> bool {
        let waits = |receipt: &Receipt| {
            let event = written.and_then(|o| o.events.iter().find(|event| *event.id == *receipt.id));
            event.is_some_and(|event| event.webhooks.iter().any(|webhook| **webhook == *receipt.webhook))
        };
        self.accepted.retain(waits);
        self.due = false;
        !self.accepted.is_empty()
    }
}

/// An event to record, which has no id and no recipients yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    pub type_: EventType,
    /// The version concerned. `None`: the event concerns no single version.
    pub version: Option<i64>,
    /// The reason of the rotation or revocation.
    pub reason: Option<String>,
}

/// The ApiToken that has the outbox.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// The uid of the ApiToken.
    pub uid: &'a str,
    /// The labels that subscriptions select by.
    pub labels: &'a BTreeMap<String, String>,
}

/// Records events for the TokenWebhooks that subscribe to them. Returns the events that were dropped to make room.
pub fn record(
    outbox: &mut Option<Outbox>,
    owner: Owner<'_>,
    subscriptions: &[Subscription],
    events: &[NewEvent],
    now: Timestamp,
) -> Vec<OutboxEvent> {
    let mut dropped = Vec::new();
    for event in events {
        let subscribed = subscriptions.iter().filter(|s| s.selects(event.type_, owner.labels));
        let webhooks: Vec<String> = subscribed.map(|s| s.name().to_owned()).collect();
        if webhooks.is_empty() {
            continue;
        }
        let outbox = outbox.get_or_insert_default();
        if outbox.events.len() >= MAX_EVENTS {
            let oldest = outbox.events.remove(0);
            for webhook in &oldest.webhooks {
                *outbox.lost.entry(webhook.clone()).or_default() += 1;
            }
            dropped.push(oldest);
        }
        outbox.events.push(OutboxEvent {
            id: id(owner.uid, event, now),
            type_: event.type_.as_str().to_owned(),
            time: now,
            version: event.version,
            reason: event.reason.clone(),
            webhooks,
        });
    }
    dropped
}

/// Removes TokenWebhooks from the events for which there is a receipt, and events that need no TokenWebhook any more.
pub fn remove_delivered(outbox: &mut Option<Outbox>, receipts: &HashSet<Receipt>) {
    if receipts.is_empty() {
        return;
    }
    retain(outbox, |id, webhook| !receipts.contains(&Receipt { id: id.into(), webhook: webhook.into() }));
}

/// Removes TokenWebhooks that no longer exist, from the events and from the counts of lost ones.
pub fn remove_missing_webhooks(outbox: &mut Option<Outbox>, exists: impl Fn(&str) -> bool) {
    if let Some(outbox) = outbox {
        outbox.lost.retain(|webhook, _| exists(webhook));
    }
    retain(outbox, |_, webhook| exists(webhook));
}

/// The id of an event, derived from the token, the event and the time, so that it differs after a restore from a
/// backup too. It is stored with the event, so all deliveries have the same.
pub fn id(uid: &str, event: &NewEvent, now: Timestamp) -> String {
    let version = event.version.unwrap_or_default();
    let text = format!("{uid}/{}/{version}/{}", event.type_.as_str(), now.as_nanosecond());
    let mut digest = [0; 16];
    digest.copy_from_slice(&Sha256::digest(text)[..16]);
    format!("evt_{}", base62_of(u128::from_be_bytes(digest)))
}

fn retain(outbox: &mut Option<Outbox>, is_open: impl Fn(&str, &str) -> bool) {
    if let Some(retained) = outbox {
        for event in &mut retained.events {
            event.webhooks.retain(|webhook| is_open(&event.id, webhook));
        }
        retained.events.retain(|event| !event.webhooks.is_empty());
        if *retained == Outbox::default() {
            *outbox = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crd::{TokenWebhook, TokenWebhookSpec};

    fn subscription(name: &str, pattern: &str) -> Subscription {
        let spec = TokenWebhookSpec { events: vec![pattern.to_owned()], ..Default::default() };
        Subscription::of(&TokenWebhook::new(name, spec)).expect("a subscription")
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + millis).expect("an instant")
    }

    fn event(type_: EventType, version: i64) -> NewEvent {
        NewEvent { type_, version: Some(version), reason: None }
    }

    const LABELS: BTreeMap<String, String> = BTreeMap::new();

    fn owner() -> Owner<'static> {
        static NONE: BTreeMap<String, String> = LABELS;
        Owner { uid: "u", labels: &NONE }
    }

    fn receipt(id: &str, webhook: &str) -> Receipt {
        Receipt { id: id.into(), webhook: webhook.into() }
    }

    #[test]
    fn an_event_without_subscribers_is_not_recorded() {
        let mut outbox = None;
        let hooks = [subscription("a", "token.revoked")];
        record(&mut outbox, owner(), &hooks, &[event(EventType::Rotated, 2)], at(0));
        record(&mut outbox, owner(), &[], &[event(EventType::Revoked, 2)], at(0));
        assert_eq!(outbox, None);
    }

    #[test]
    fn an_event_is_removed_once_all_its_webhooks_have_accepted_it() {
        let mut outbox = None;
        let hooks =
            [subscription("a", "*"), subscription("b", "token.*"), subscription("c", "token.deleted")];
        record(&mut outbox, owner(), &hooks, &[event(EventType::Revoked, 1)], at(0));
        let id = outbox.as_ref().expect("an outbox").events[0].id.clone();
        remove_delivered(&mut outbox, &[receipt(&id, "a"), receipt("evt_other", "b")].into());
        assert_eq!(outbox.as_ref().expect("an outbox").events[0].webhooks, ["b"]);
        remove_delivered(&mut outbox, &[receipt(&id, "b")].into());
        assert_eq!(outbox, None);
    }

    #[test]
    fn a_webhook_that_is_gone_is_not_waited_for() {
        let mut outbox = None;
        let hooks = [subscription("a", "*"), subscription("b", "*")];
        record(&mut outbox, owner(), &hooks, &[event(EventType::Revoked, 1)], at(0));
        remove_missing_webhooks(&mut outbox, |name| name == "b");
        assert_eq!(outbox.as_ref().expect("an outbox").events[0].webhooks, ["b"]);
        remove_missing_webhooks(&mut outbox, |_| false);
        assert_eq!(outbox, None);
    }

    #[test]
    fn a_full_outbox_drops_its_oldest_event_and_counts_it() {
        let mut outbox = None;
        let hooks = [subscription("a", "*"), subscription("b", "token.revoked")];
        for version in 0..MAX_EVENTS as i64 + 3 {
            let dropped =
                record(&mut outbox, owner(), &hooks, &[event(EventType::Rotated, version)], at(version));
            assert_eq!(dropped.len(), usize::from(version >= MAX_EVENTS as i64));
        }
        let outbox = outbox.expect("an outbox");
        assert_eq!(outbox.events.len(), MAX_EVENTS);
        assert_eq!(outbox.events[0].version, Some(3));
        assert_eq!(outbox.lost, [("a".to_owned(), 3)].into());
    }

    #[test]
    fn receipts_stay_until_a_written_status_reflects_them() {
        let mut outbox = None;
        record(&mut outbox, owner(), &[subscription("a", "*")], &[event(EventType::Revoked, 1)], at(0));
        let id = outbox.as_ref().expect("an outbox").events[0].id.clone();
        let mut receipts = Receipts::default();
        assert!(receipts.add(receipt(&id, "a")));
        assert!(!receipts.add(receipt(&id, "a")), "the same once more");
        assert!(!receipts.add(receipt(&id, "b")), "another");
        receipts.due = true;
        assert!(receipts.retain(outbox.as_ref()), "the write was decided on before");
        assert_eq!(receipts, Receipts { accepted: [receipt(&id, "a")].into(), due: false });
        remove_delivered(&mut outbox, &receipts.accepted);
        assert!(!receipts.retain(outbox.as_ref()));
        assert_eq!(receipts, Receipts::default());
    }

    #[derive(Clone, Debug)]
    enum Act {
        Happens(u8),
        Delivers(usize, usize),
        Goes(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            3 => (0u8..4).prop_map(Act::Happens),
            3 => (0usize..40, 0usize..3).prop_map(|(event, hook)| Act::Delivers(event, hook)),
            1 => (0usize..3).prop_map(Act::Goes),
        ]
    }

    proptest! {
        /// In any sequence of acts, each event that a webhook selects is delivered to it, waits for it, or is counted as
        /// lost, unless the webhook is deleted; events stay in order; no two have the same id.
        #[test]
        fn no_event_vanishes(acts in proptest::collection::vec(act(), 0..120)) {
            let names = ["a", "b", "c"];
            let mut hooks = vec![subscription("a", "*"), subscription("b", "token.r*"), subscription("c", "token.revoked")];
            let (mut outbox, mut selected, mut ids) = (None, BTreeMap::<&str, i64>::new(), HashSet::new());
            let mut delivered = BTreeMap::<&str, i64>::new();
            for (moment, act) in (0..).zip(&acts) {
                match act {
                    Act::Happens(kind) => {
                        let type_ = [EventType::Created, EventType::Rotated, EventType::Revoked, EventType::Expired][usize::from(*kind)];
                        for hook in &hooks {
                            if hook.selects(type_, &LABELS) {
                                let name = names.iter().find(|name| **name == hook.name()).expect("a name");
                                *selected.entry(name).or_default() += 1;
                            }
                        }
                        record(&mut outbox, owner(), &hooks, &[event(type_, 1)], at(moment));
                        if let Some(event) = outbox.as_ref().and_then(|o| o.events.last()).filter(|e| e.time == at(moment)) {
                            prop_assert!(ids.insert(event.id.clone()), "the same id twice");
                        }
                    }
                    Act::Delivers(event, hook) => {
                        let event = outbox.as_ref().and_then(|o| o.events.get(*event)).cloned();
                        if let Some(event) = event.filter(|e| e.webhooks.iter().any(|w| w == names[*hook])) {
                            remove_delivered(&mut outbox, &[receipt(&event.id, names[*hook])].into());
                            *delivered.entry(names[*hook]).or_default() += 1;
                        }
                    }
                    Act::Goes(hook) => {
                        hooks.retain(|h| h.name() != names[*hook]);
                        selected.remove(names[*hook]);
                        delivered.remove(names[*hook]);
                        remove_missing_webhooks(&mut outbox, |name| hooks.iter().any(|h| h.name() == name));
                    }
                }
                let waits = |name: &str| outbox.iter().flat_map(|o| &o.events).filter(|e| e.webhooks.iter().any(|w| w == name)).count() as i64;
                let lost = |name: &str| outbox.as_ref().and_then(|o| o.lost.get(name)).copied().unwrap_or_default();
                for (name, selected) in &selected {
                    let known = delivered.get(name).copied().unwrap_or_default() + waits(name) + lost(name);
                    prop_assert_eq!(*selected, known, "{}", name);
                }
                let times: Vec<_> = outbox.iter().flat_map(|o| &o.events).map(|e| e.time).collect();
                prop_assert!(times.is_sorted() && times.len() <= MAX_EVENTS);
            }
        }
    }
}
