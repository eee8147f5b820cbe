//! The index: from a key id to the tokens that claim it. Reads take no lock; one feed writes.
//!
//! Several tokens may claim one key id, since anybody who may write statuses can copy it. All are kept, and
//! [`crate::check::decide`] believes the one whose proof holds, so a copy can't shadow the real one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use papaya::HashMap as ConcurrentMap;

use crate::check::Entry;
use crate::token::KeyId;

/// The tokens, by key id.
#[derive(Debug, Default)]
pub struct Index {
    by_key_id: ConcurrentMap<KeyId, Claimants>,
    /// The feed's own list, by which it knows what an object had put into the map above. Never read by a check.
    by_object: Mutex<HashMap<Object, Arc<Entry>>>,
}

/// An ApiToken's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Object(Box<str>);

impl Object {
    /// Names an object. Neither part may hold a slash.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// Whether it is in a namespace.
    pub fn is_in(&self, namespace: &str) -> bool {
        self.0.strip_prefix(namespace).is_some_and(|rest| rest.starts_with('/'))
    }
}

/// Those who claim a key id: one, but for copies.
#[derive(Clone, Debug)]
enum Claimants {
    One(Arc<Entry>),
    Many(Box<[Arc<Entry>]>),
}

impl Claimants {
    fn as_slice(&self) -> &[Arc<Entry>] {
        match self {
            Self::One(entry) => std::slice::from_ref(entry),
            Self::Many(entries) => entries,
        }
    }

    fn of(mut entries: Vec<Arc<Entry>>) -> Option<Self> {
        match entries.len() {
            0 => None,
            1 => entries.pop().map(Self::One),
            _ => Some(Self::Many(entries.into())),
        }
    }
}

impl Index {
    /// Calls `f` with those who claim a key id.
    pub fn claimants<T>(&self, key_id: KeyId, f: impl FnOnce(&[Arc<Entry>]) -> T) -> T {
        f(self.by_key_id.pin().get(&key_id).map_or(&[], Claimants::as_slice))
    }

    /// Takes an object as it is now. The new entry is in place before what the old one had more is taken out, so
    /// no valid token is missing for a moment.
    pub fn apply(&self, object: Object, entry: Entry) {
        let entry = Arc::new(entry);
        let mut objects = self.by_object.lock().unwrap_or_else(PoisonError::into_inner);
        let before = objects.insert(object, entry.clone());
        for key_id in entry.key_ids() {
            self.claim(key_id, before.as_ref(), Some(&entry));
        }
        if let Some(before) = before {
            for key_id in before.key_ids().filter(|key_id| entry.key_ids().all(|other| other != *key_id)) {
                self.claim(key_id, Some(&before), None);
            }
        }
    }

    /// Forgets an object that is gone, or that can't be read.
    pub fn delete(&self, object: &Object) {
        let mut objects = self.by_object.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = objects.remove(object) {
            for key_id in before.key_ids() {
                self.claim(key_id, Some(&before), None);
            }
        }
    }

    /// Forgets every object but these: what a fresh list did not show is gone.
    pub fn retain(&self, present: impl Fn(&Object) -> bool) {
        let gone: Vec<Object> = {
            let objects = self.by_object.lock().unwrap_or_else(PoisonError::into_inner);
            objects.keys().filter(|object| !present(object)).cloned().collect()
        };
        for object in gone {
            self.delete(&object);
        }
    }

    /// How many objects it holds.
    pub fn len(&self) -> usize {
        self.by_object.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Replaces one claim on a key id by another, in one step for every reader.
    fn claim(&self, key_id: KeyId, before: Option<&Arc<Entry>>, after: Option<&Arc<Entry>>) {
        let map = self.by_key_id.pin();
        let others = map.get(&key_id).map_or(&[][..], Claimants::as_slice).iter();
        let others = others.filter(|entry| before.is_none_or(|before| !Arc::ptr_eq(entry, before)));
        let claimants = others.cloned().chain(after.cloned()).collect();
        match Claimants::of(claimants) {
            Some(claimants) => map.insert(key_id, claimants),
            None => map.remove(&key_id),
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crd::{ApiToken, ApiTokenSpec};

    fn key_id(byte: u8) -> KeyId {
        KeyId::from_bytes([byte; 16])
    }

    fn entry(name: &str, keys: &[u8]) -> Entry {
        let versions: Vec<_> = keys
            .iter()
            .map(|key| {
                serde_json::json!({
                    "version": 1, "keyId": key_id(*key).as_str(), "state": "Active", "reason": "Created",
                    "hash": format!("hmac-sha256:p1:{}", "A".repeat(43)), "issuedAt": "2026-01-01T00:00:00Z",
                })
            })
            .collect();
        let mut token =
            ApiToken::new(name, ApiTokenSpec { scopes: vec!["a:b".to_owned()], ..Default::default() });
        token.status = serde_json::from_value(serde_json::json!({ "versions": versions })).expect("status");
        Entry::of(&token)
    }

    fn names(index: &Index, key: u8) -> Vec<String> {
        let mut names: Vec<_> =
            index.claimants(key_id(key), |entries| entries.iter().map(|e| e.name.to_string()).collect());
        names.sort();
        names
    }

    #[derive(Clone, Debug)]
    enum Event {
        Apply(u8, Vec<u8>),
        Delete(u8),
        Relist(u8),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0u8..4, proptest::collection::vec(0u8..5, 0..3))
                .prop_map(|(name, keys)| Event::Apply(name, keys)),
            (0u8..4).prop_map(Event::Delete),
            any::<u8>().prop_map(Event::Relist),
        ]
    }

    proptest! {
        /// Whatever comes, the index shows what a plain map of the objects would.
        #[test]
        fn it_shows_what_is_there(events in proptest::collection::vec(event(), 0..40)) {
            let index = Index::default();
            let mut model: HashMap<u8, Vec<u8>> = HashMap::new();
            let object = |name: u8| Object::new("ns", &name.to_string());
            for event in events {
                match event {
                    Event::Apply(name, mut keys) => {
                        keys.dedup();
                        index.apply(object(name), entry(&name.to_string(), &keys));
                        model.insert(name, keys);
                    }
                    Event::Delete(name) => {
                        index.delete(&object(name));
                        model.remove(&name);
                    }
                    Event::Relist(bits) => {
                        index.retain(|o| (0..4).any(|name| bits & (1 << name) != 0 && *o == object(name)));
                        model.retain(|name, _| bits & (1 << name) != 0);
                    }
                }
                prop_assert_eq!(index.len(), model.len());
                for key in 0..5 {
                    let mut expected: Vec<_> =
                        model.iter().filter(|(_, keys)| keys.contains(&key)).map(|(name, _)| name.to_string()).collect();
                    expected.sort();
                    prop_assert_eq!(names(&index, key), expected);
                }
            }
        }
    }
}
