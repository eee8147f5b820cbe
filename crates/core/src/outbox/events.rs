//! What waits in an ApiToken's status: a transactional outbox.
//!
//! An event is recorded in the very status write that makes the transition, with the TokenWebhooks that want it, so
//! no crash can part the two. It leaves once each of them has accepted it, or has given it up. A TokenWebhook that is
//! made later is not told of it; one that is gone is no longer waited for. Where no TokenWebhook wants an event,
//! nothing is recorded.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::EventType;
use super::subscription::Subscription;
use crate::crd::{Outbox, OutboxEvent};
use crate::token::format::base62_of;

/// How many events wait at most. A token has few transitions, so this many wait only where an endpoint was away for
/// long; then the oldest gives way, since the newest says what is true now.
pub const MAX_EVENTS: usize = 32;

/// That a TokenWebhook needs an event no longer: it has accepted it, or it was set aside elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// The event.
    pub id: Arc<str>,
    /// The TokenWebhook.
    pub webhook: Arc<str>,
}

/// All receipts of one token that are not recorded yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipts {
    /// Who needs which event no longer.
    pub accepted: HashSet<Receipt>,
    /// Whether a status is to be written for them alone. Until then they wait for one that is written anyway.
    pub due: bool,
}

impl Receipts {
    /// Takes a receipt. Answers whether it is the first of those that wait.
    pub fn take(&mut self, receipt: Receipt) -> bool {
        self.accepted.insert(receipt) && self.accepted.len() == 1
    }

    /// Keeps those that the status which was written does not reflect yet. Answers whether there are any.
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

/// Something that has happened, before it is known who wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// What.
    pub type_: EventType,
    /// The version that it is about.
    pub version: Option<i64>,
    /// Why.
    pub reason: Option<String>,
}

/// Whose outbox it is.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// The ApiToken's uid.
    pub uid: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// Records what has happened for those who want it. Answers the events that gave way.
pub fn record(
    outbox: &mut Option<Outbox>,
    owner: Owner<'_>,
    subscriptions: &[Subscription],
    happened: &[Transition],
    now: Timestamp,
) -> Vec<OutboxEvent> {
    let mut gave_way = Vec::new();
    for happened in happened {
        let wanting = subscriptions.iter().filter(|s| s.wants(happened.type_, owner.labels));
        let webhooks: Vec<String> = wanting.map(|s| s.name().to_owned()).collect();
        if webhooks.is_empty() {
            continue;
        }
        let outbox = outbox.get_or_insert_default();
        if outbox.events.len() >= MAX_EVENTS {
            let oldest = outbox.events.remove(0);
            for webhook in &oldest.webhooks {
                *outbox.lost.entry(webhook.clone()).or_default() += 1;
            }
            gave_way.push(oldest);
        }
        outbox.events.push(OutboxEvent {
            id: id(owner.uid, happened, now),
            type_: happened.type_.as_str().to_owned(),
            time: now,
            version: happened.version,
            reason: happened.reason.clone(),
            webhooks,
        });
    }
    gave_way
}

/// Takes out what is delivered.
pub fn remove_delivered(outbox: &mut Option<Outbox>, receipts: &HashSet<Receipt>) {
    if receipts.is_empty() {
        return;
    }
    keep(outbox, |id, webhook| !receipts.contains(&Receipt { id: id.into(), webhook: webhook.into() }));
}

/// Takes out what waits for TokenWebhooks that are gone.
pub fn remove_missing_webhooks(outbox: &mut Option<Outbox>, exists: impl Fn(&str) -> bool) {
    if let Some(outbox) = outbox {
        outbox.lost.retain(|webhook, _| exists(webhook));
    }
    keep(outbox, |_, webhook| exists(webhook));
}

/// The id of an event: of this token, this transition and this moment, so that it differs after a restore from a
/// backup too. It is stored with the event, and so the same for all its deliveries.
pub fn id(uid: &str, happened: &Transition, now: Timestamp) -> String {
    let version = happened.version.unwrap_or_default();
    let text = format!("{uid}/{}/{version}/{}", happened.type_.as_str(), now.as_nanosecond());
    let mut digest = [0; 16];
    digest.copy_from_slice(&Sha256::digest(text)[..16]);
    format!("evt_{}", base62_of(u128::from_be_bytes(digest)))
}

fn keep(outbox: &mut Option<Outbox>, wanted: impl Fn(&str, &str) -> bool) {
    if let Some(kept) = outbox {
        for event in &mut kept.events {
            event.webhooks.retain(|webhook| wanted(&event.id, webhook));
        }
        kept.events.retain(|event| !event.webhooks.is_empty());
        if *kept == Outbox::default() {
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

    fn happened(type_: EventType, version: i64) -> Transition {
        Transition { type_, version: Some(version), reason: None }
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
    fn without_a_webhook_that_wants_it_nothing_is_recorded() {
        let mut outbox = None;
        let hooks = [subscription("a", "token.revoked")];
        record(&mut outbox, owner(), &hooks, &[happened(EventType::Rotated, 2)], at(0));
        record(&mut outbox, owner(), &[], &[happened(EventType::Revoked, 2)], at(0));
        assert_eq!(outbox, None);
    }

    #[test]
    fn an_event_leaves_when_all_who_wanted_it_have_it() {
        let mut outbox = None;
        let hooks =
            [subscription("a", "*"), subscription("b", "token.*"), subscription("c", "token.deleted")];
        record(&mut outbox, owner(), &hooks, &[happened(EventType::Revoked, 1)], at(0));
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
        record(&mut outbox, owner(), &hooks, &[happened(EventType::Revoked, 1)], at(0));
        remove_missing_webhooks(&mut outbox, |name| name == "b");
        assert_eq!(outbox.as_ref().expect("an outbox").events[0].webhooks, ["b"]);
        remove_missing_webhooks(&mut outbox, |_| false);
        assert_eq!(outbox, None);
    }

    #[test]
    fn a_full_outbox_gives_up_its_oldest_and_counts() {
        let mut outbox = None;
        let hooks = [subscription("a", "*"), subscription("b", "token.revoked")];
        for version in 0..MAX_EVENTS as i64 + 3 {
            let gave_way =
                record(&mut outbox, owner(), &hooks, &[happened(EventType::Rotated, version)], at(version));
            assert_eq!(gave_way.len(), usize::from(version >= MAX_EVENTS as i64));
        }
        let outbox = outbox.expect("an outbox");
        assert_eq!(outbox.events.len(), MAX_EVENTS);
        assert_eq!(outbox.events[0].version, Some(3));
        assert_eq!(outbox.lost, [("a".to_owned(), 3)].into());
    }

    #[test]
    fn receipts_wait_until_a_status_reflects_them() {
        let mut outbox = None;
        record(&mut outbox, owner(), &[subscription("a", "*")], &[happened(EventType::Revoked, 1)], at(0));
        let id = outbox.as_ref().expect("an outbox").events[0].id.clone();
        let mut receipts = Receipts::default();
        assert!(receipts.take(receipt(&id, "a")));
        assert!(!receipts.take(receipt(&id, "a")), "the same once more");
        assert!(!receipts.take(receipt(&id, "b")), "another");
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
        /// Whatever happens, each event that a webhook wanted is delivered to it, waits for it, is counted as lost,
        /// or the webhook is gone; the order stays; no id is given twice.
        #[test]
        fn nothing_vanishes(acts in proptest::collection::vec(act(), 0..120)) {
            let names = ["a", "b", "c"];
            let mut hooks = vec![subscription("a", "*"), subscription("b", "token.r*"), subscription("c", "token.revoked")];
            let (mut outbox, mut wanted, mut ids) = (None, BTreeMap::<&str, i64>::new(), HashSet::new());
            let mut delivered = BTreeMap::<&str, i64>::new();
            for (moment, act) in (0..).zip(&acts) {
                match act {
                    Act::Happens(kind) => {
                        let type_ = [EventType::Created, EventType::Rotated, EventType::Revoked, EventType::Expired][usize::from(*kind)];
                        for hook in &hooks {
                            if hook.wants(type_, &LABELS) {
                                let name = names.iter().find(|name| **name == hook.name()).expect("a name");
                                *wanted.entry(name).or_default() += 1;
                            }
                        }
                        record(&mut outbox, owner(), &hooks, &[happened(type_, 1)], at(moment));
                        if let Some(event) = outbox.as_ref().and_then(|o| o.events.last()).filter(|e| e.time == at(moment)) {
                            prop_assert!(ids.insert(event.id.clone()), "an id twice");
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
                        wanted.remove(names[*hook]);
                        delivered.remove(names[*hook]);
                        remove_missing_webhooks(&mut outbox, |name| hooks.iter().any(|h| h.name() == name));
                    }
                }
                let waits = |name: &str| outbox.iter().flat_map(|o| &o.events).filter(|e| e.webhooks.iter().any(|w| w == name)).count() as i64;
                let lost = |name: &str| outbox.as_ref().and_then(|o| o.lost.get(name)).copied().unwrap_or_default();
                for (name, wanted) in &wanted {
                    let known = delivered.get(name).copied().unwrap_or_default() + waits(name) + lost(name);
                    prop_assert_eq!(*wanted, known, "{}", name);
                }
                let times: Vec<_> = outbox.iter().flat_map(|o| &o.events).map(|e| e.time).collect();
                prop_assert!(times.is_sorted() && times.len() <= MAX_EVENTS);
            }
        }
    }
}
