//! The index: a map from a key id to the versions that claim it. Reads take no lock; only the feed writes.
//!
//! Several tokens may claim one key id, since anybody who may write statuses can copy it. All are stored, and
//! [`tokenward_core::check::decide`] accepts the one whose hash matches, so a copy can't shadow the real one.

use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;

use hashbrown::HashTable;
use papaya::{Guard, HashMap as ConcurrentMap};

use tokenward_core::check::{Entry, Indexed, NotAnEntry, ScopePool, Version, WireToken};
use tokenward_core::token::{KeyId, Peppers};
use tokenward_core::tombstone::{Tombstone, Tombstones};
use tokenward_runtime::sync::lock;

/// The versions of all tokens, by key id.
#[derive(Debug, Default)]
pub struct Index {
    by_key_id: ConcurrentMap<KeyId, Claimants>,
    /// Locked for each change of `by_key_id`, and never by a check.
    objects: Mutex<Objects>,
}

/// In so many parts the objects are kept. One of a million is copied in a moment, while the feed waits.
const PARTS: usize = 64;

/// The objects that the feed has seen, to find the earlier versions of one that changes.
#[derive(Debug)]
struct Objects {
    /// By namespace and name. Tables rather than maps, because the entries contain their keys.
    parts: [HashTable<Entry>; PARTS],
    hasher: RandomState,
    scopes: ScopePool,
    /// What this verifier has seen revoked stays so, though an older state of the cluster be restored.
    tombstones: Tombstones,
}

impl Default for Objects {
    fn default() -> Self {
        Self {
            parts: std::array::from_fn(|_| HashTable::new()),
            hasher: RandomState::new(),
            scopes: ScopePool::default(),
            tombstones: Tombstones::default(),
        }
    }
}

/// The versions that claim a key id: more than one only if a status was copied.
#[derive(Clone, Debug)]
enum Claimants {
    One(Version),
    Many(Box<[Version]>),
}

impl Claimants {
    fn as_slice(&self) -> &[Version] {
        match self {
            Self::One(version) => std::slice::from_ref(version),
            Self::Many(versions) => versions,
        }
    }

    fn of(mut versions: Vec<Version>) -> Option<Self> {
        match versions.len() {
            0 => None,
            1 => versions.pop().map(Self::One),
            _ => Some(Self::Many(versions.into())),
        }
    }
}

impl Index {
    /// Calls `f` with the versions that claim a key id.
    pub fn claimants<T>(&self, key_id: KeyId, f: impl FnOnce(&[Version]) -> T) -> T {
        f(self.by_key_id.pin().get(&key_id).map_or(&[], Claimants::as_slice))
    }

    /// Applies the current state of an object. New versions are inserted before obsolete ones are removed, so that no
    /// valid token is missing in between. `seen_in` is stored for [`Entry::seen_in`]. Returns whether a version is missing
    /// because its pepper is not among these.
    pub fn apply(&self, token: &WireToken, peppers: &Peppers, seen_in: u32) -> bool {
        let mut objects = lock(&self.objects);
        let Objects { scopes, tombstones, .. } = &mut *objects;
        let indexed = Entry::of(token, peppers, seen_in, scopes, tombstones);
        let lacks_pepper = indexed.lacks_pepper;
        self.put(&mut objects, indexed);
        lacks_pepper
    }

    /// Removes an object that was deleted, or that can't be parsed.
    pub fn delete(&self, namespace: &str, name: &str) {
        let mut objects = lock(&self.objects);
        if let Some(before) = objects.remove((namespace, name)) {
            self.remove_claims(&before, |_| true);
        }
    }

    /// Removes all other objects: those that a complete list does not contain were deleted.
    pub fn retain(&self, mut present: impl FnMut(&Entry) -> bool) {
        let mut objects = lock(&self.objects);
        for part in &mut objects.parts {
            for deleted in part.extract_if(|entry| !present(entry)) {
                self.remove_claims(&deleted, |_| true);
            }
        }
        // Frees the memory of removed entries, which otherwise waits for later writes.
        self.by_key_id.guard().flush();
    }

    /// The number of objects, not of key ids.
    pub fn len(&self) -> usize {
        lock(&self.objects).parts.iter().map(HashTable::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The objects, part by part, each as of the moment in which it is asked for.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Vec<Entry>> {
        (0..PARTS).map(|part| lock(&self.objects).parts[part].iter().cloned().collect())
    }

    /// The versions of an entry. None, if its object has changed since.
    pub(crate) fn versions(&self, entry: &Entry) -> Vec<(KeyId, Version)> {
        let of_key_id = |key_id| {
            self.claimants(key_id, |versions| {
                let own = versions.iter().filter(|version| version.entry.is(entry));
                own.map(|version| (key_id, version.clone())).collect::<Vec<_>>()
            })
        };
        distinct(entry.key_ids()).into_iter().flat_map(of_key_id).collect()
    }

    /// What was seen revoked.
    pub(crate) fn tombstones(&self) -> Vec<Tombstone> {
        lock(&self.objects).tombstones.all()
    }

    /// Makes room for so many objects more.
    pub(crate) fn reserve(&self, objects: usize) {
        let Objects { parts, hasher, .. } = &mut *lock(&self.objects);
        for part in parts {
            part.reserve(objects / PARTS, |entry| hasher.hash_one(entry.object()));
        }
        self.by_key_id.pin().reserve(objects);
    }

    /// Puts back the objects that are packed in `bytes`, end to end, once what was revoked has been.
    pub(crate) fn restore(&self, mut bytes: &[u8]) -> Result<(), NotAnEntry> {
        let mut objects = lock(&self.objects);
        while !bytes.is_empty() {
            let Objects { scopes, tombstones, .. } = &mut *objects;
            let (indexed, rest) = Entry::unpack(bytes, scopes, tombstones)?;
            bytes = rest;
            self.put(&mut objects, indexed);
        }
        Ok(())
    }

    /// Puts back what was seen revoked, before anything else.
    pub(crate) fn restore_tombstones(&self, tombstones: impl IntoIterator<Item = Tombstone>) {
        lock(&self.objects).tombstones.extend(tombstones);
    }

    /// Puts an object in the place of its earlier state.
    fn put(&self, objects: &mut Objects, Indexed { entry, versions, .. }: Indexed) {
        let before = objects.replace(entry.clone());
        for key_id in distinct(entry.key_ids()) {
            let claims = versions.iter().filter(|(id, _)| *id == key_id).map(|(_, version)| version);
            self.claim(key_id, before.as_ref(), claims);
        }
        if let Some(before) = before {
            self.remove_claims(&before, |key_id| entry.key_ids().all(|current| current != key_id));
        }
    }

    /// Removes an entry's claims on those of its key ids that match.
    fn remove_claims(&self, entry: &Entry, matches: impl Fn(KeyId) -> bool) {
        for key_id in entry.key_ids().filter(|key_id| matches(*key_id)) {
            self.claim(key_id, Some(entry), []);
        }
    }

    /// Replaces one entry's claims on a key id by others. Every reader sees either the old or the new ones.
    fn claim<'v>(&self, key_id: KeyId, before: Option<&Entry>, after: impl IntoIterator<Item = &'v Version>) {
        let map = self.by_key_id.pin();
        let others = map.get(&key_id).map_or(&[][..], Claimants::as_slice).iter();
        let others = others.filter(|version| before.is_none_or(|before| !version.entry.is(before)));
        match Claimants::of(others.cloned().chain(after.into_iter().cloned()).collect()) {
            Some(claimants) => map.insert(key_id, claimants),
            None => map.remove(&key_id),
        };
    }
}

impl Objects {
    /// Inserts an entry, and removes the earlier one of the same object.
    fn replace(&mut self, entry: Entry) -> Option<Entry> {
        let before = self.remove(entry.object());
        let Self { parts, hasher, .. } = self;
        let hash = hasher.hash_one(entry.object());
        parts[part_of(hash)].insert_unique(hash, entry, |entry| hasher.hash_one(entry.object()));
        before
    }

    fn remove(&mut self, object: (&str, &str)) -> Option<Entry> {
        let hash = self.hasher.hash_one(object);
        let found = self.parts[part_of(hash)].find_entry(hash, |entry| entry.object() == object).ok()?;
        Some(found.remove().0)
    }
}

/// The part of an object with this hash: by bits of which the tables make no use.
fn part_of(hash: u64) -> usize {
    (hash >> 40) as usize % PARTS
}

/// Each key id once: a status may contain one twice.
fn distinct(key_ids: impl Iterator<Item = KeyId>) -> Vec<KeyId> {
    let mut key_ids: Vec<_> = key_ids.collect();
    key_ids.sort_unstable();
    key_ids.dedup();
    key_ids
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use tokenward_core::crd::{ApiToken, ApiTokenSpec};

    /// These are what a million tokens have a million of.
    #[test]
    fn entries_and_claims_stay_small() {
        assert_eq!((size_of::<Entry>(), size_of::<Version>(), size_of::<Claimants>()), (8, 64, 64));
    }

    fn key_id(byte: u8) -> KeyId {
        KeyId::from_bytes([byte; 16])
    }

    fn token(name: &str, keys: &[u8]) -> WireToken {
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
        token.metadata.namespace = Some("ns".to_owned());
        crate::endpoints::fixture::signed(token, &peppers())
    }

    fn peppers() -> Peppers {
        Peppers::from_data(
            &[("current", b"p1".to_vec()), ("p1", vec![1; 32])].map(|(k, v)| (k.to_owned(), v)).into(),
        )
        .expect("peppers")
    }

    fn names(index: &Index, key: u8) -> Vec<String> {
        let mut names: Vec<_> = index
            .claimants(key_id(key), |versions| versions.iter().map(|v| v.entry.name().to_owned()).collect());
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
        /// After any events, the index finds what a plain map of the objects would.
        #[test]
        fn the_index_matches_a_plain_map(events in proptest::collection::vec(event(), 0..40)) {
            let index = Index::default();
            let mut model: HashMap<u8, Vec<u8>> = HashMap::new();
            for event in events {
                match event {
                    Event::Apply(name, mut keys) => {
                        keys.dedup();
                        index.apply(&token(&name.to_string(), &keys), &peppers(), 0);
                        model.insert(name, keys);
                    }
                    Event::Delete(name) => {
                        index.delete("ns", &name.to_string());
                        model.remove(&name);
                    }
                    Event::Relist(bits) => {
                        index.retain(|e| (0..4).any(|name| bits & (1 << name) != 0 && e.name() == name.to_string()));
                        model.retain(|name, _| bits & (1 << name) != 0);
                    }
                }
                prop_assert_eq!(index.len(), model.len());
                // A checkpoint of it is the same.
                let restored = Index::default();
                for entry in index.parts().flatten() {
                    let packed = entry.pack(&index.versions(&entry), Vec::new()).expect("packed");
                    restored.restore(&packed).expect("an entry");
                }
                prop_assert_eq!(restored.len(), model.len());
                for key in 0..5 {
                    prop_assert_eq!(names(&restored, key), names(&index, key));
                }
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
