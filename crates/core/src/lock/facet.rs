//! Labels and owners in 8 bytes each, as the index of a verifier has them for up to millions of tokens.
//!
//! A facet is two 32-bit hashes: of the key, and of key and value. Two labels are equal if both are, which for two different
//! ones has a chance of 2^-64; that two different keys have one hash, of 2^-32. Hashes are compared within one process only.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::crd::Owner;

/// A label, or a part of `spec.owner`.
pub type Facet = [u8; 8];

/// What a facet is of.
#[derive(Clone, Copy, Debug, Hash)]
enum Kind {
    Label,
    Owner,
}

/// The labels and the owner of a token.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facets<'a>(pub &'a [Facet]);

impl Facets<'_> {
    pub(super) fn contains(&self, facet: &Facet) -> bool {
        self.0.contains(facet)
    }

    /// Whether one has the key of this facet.
    pub(super) fn contains_key_of(&self, facet: &Facet) -> bool {
        self.0.iter().any(|own| own[..4] == facet[..4])
    }
}

/// The facets of a token.
pub fn facets(labels: Option<&BTreeMap<String, String>>, owner: Option<&Owner>) -> Vec<Facet> {
    let labels = labels.into_iter().flatten().map(|(key, value)| label(key, value));
    labels.chain(owner.into_iter().flat_map(owned)).collect()
}

pub(super) fn label(key: &str, value: &str) -> Facet {
    facet(Kind::Label, key, value)
}

/// The facets of an owner, one for each part that is set.
pub(super) fn owned(owner: &Owner) -> impl Iterator<Item = Facet> {
    let Owner { team, contact } = owner;
    let parts = [("team", team), ("contact", contact)];
    let set = parts.into_iter().filter_map(|(part, value)| Some((part, value.as_deref()?)));
    set.filter(|(_, value)| !value.is_empty()).map(|(part, value)| facet(Kind::Owner, part, value))
}

fn facet(kind: Kind, key: &str, value: &str) -> Facet {
    let hash = |value: Option<&str>| {
        let mut hasher = DefaultHasher::new();
        (kind, key, value).hash(&mut hasher);
        hasher.finish().to_be_bytes()
    };
    let ([a, b, c, d, ..], [e, f, g, h, ..]) = (hash(None), hash(Some(value)));
    [a, b, c, d, e, f, g, h]
}
