//! All locks of a cluster.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Lock, Subject, SubjectVersion};

/// All locks that are known, as they were at one moment.
#[derive(Clone, Debug, Default)]
pub struct Locks {
    /// Another one for each set, so that what was found out by one is not taken for what another would find.
    generation: u32,
    /// Those that count first come first.
    cluster: Vec<Arc<Lock>>,
    by_namespace: HashMap<String, Vec<Arc<Lock>>>,
}

impl Locks {
    /// `generation` differs from that of every other set. 0 is that of the empty set before any was known.
    pub fn new(generation: u32, locks: impl IntoIterator<Item = Arc<Lock>>) -> Self {
        let mut set = Self { generation, ..Self::default() };
        for lock in locks {
            match lock.namespace() {
                None => set.cluster.push(lock),
                Some(namespace) => match set.by_namespace.get_mut(namespace) {
                    Some(own) => own.push(lock),
                    None => _ = set.by_namespace.insert(namespace.to_owned(), vec![lock]),
                },
            }
        }
        set.cluster.sort_by(|a, b| a.precedence(b));
        set.by_namespace.values_mut().for_each(|own| own.sort_by(|a, b| a.precedence(b)));
        set
    }

    pub fn generation(&self) -> u32 {
        self.generation
    }

    pub fn is_empty(&self) -> bool {
        self.cluster.is_empty() && self.by_namespace.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Lock>> {
        self.cluster.iter().chain(self.by_namespace.values().flatten())
    }

    /// The lock that stops a secret: of several one that revokes, and of those the oldest.
    pub fn on(&self, subject: &Subject<'_>, version: &SubjectVersion<'_>) -> Option<&Arc<Lock>> {
        self.first(subject.namespace, |lock| lock.stops(subject, version))
    }

    /// The lock that stops a token without a secret that works. `scopes` are those of its spec, separated by spaces.
    pub fn on_unissued(&self, subject: &Subject<'_>, scopes: &str) -> Option<&Arc<Lock>> {
        self.first(subject.namespace, |lock| lock.stops_unissued(subject, scopes))
    }

    fn first(&self, namespace: &str, stops: impl Fn(&Lock) -> bool) -> Option<&Arc<Lock>> {
        let own = self.by_namespace.get(namespace).map_or(&[][..], Vec::as_slice);
        let first = |locks: &'_ [Arc<Lock>]| locks.iter().position(|lock| stops(lock));
        let of_cluster = first(&self.cluster).and_then(|at| self.cluster.get(at));
        let of_namespace = first(own).and_then(|at| own.get(at));
        of_cluster.into_iter().chain(of_namespace).min_by(|a, b| a.precedence(b))
    }
}
