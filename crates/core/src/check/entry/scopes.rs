//! Lists of scopes, interned: many tokens have the same list.

use std::collections::HashSet;
use std::sync::Arc;

/// A list of scopes, separated by spaces. A clone shares it.
// The second box makes the handle one word: an Arc<str> is two.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::check) struct Scopes(Arc<Box<str>>);

/// The set of interned lists.
#[derive(Debug, Default)]
pub struct ScopePool {
    lists: HashSet<Scopes>,
    /// How many lists were in use after the last cleanup.
    used: usize,
}

impl Scopes {
    pub(in crate::check) fn as_str(&self) -> &str {
        &self.0
    }

    pub(in crate::check) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split_ascii_whitespace()
    }
}

impl ScopePool {
    /// The interned list of these scopes in this order.
    pub(in crate::check) fn share(&mut self, scopes: &[&str]) -> Scopes {
        let wanted = Scopes(Arc::new(scopes.join(" ").into()));
        if let Some(list) = self.lists.get(&wanted) {
            return list.clone();
        }
        self.remove_unused();
        self.lists.insert(wanted.clone());
        wanted
    }

    /// Removes unused lists, each time that the number of lists has doubled.
    fn remove_unused(&mut self) {
        if self.lists.len() > 2 * self.used + 64 {
            self.lists.retain(|list| Arc::strong_count(&list.0) > 1);
            self.lists.shrink_to_fit();
            self.used = self.lists.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(pool: &mut ScopePool, number: usize) -> Scopes {
        pool.share(&[&format!("orders-{number}:read"), "audit:read"])
    }

    #[test]
    fn equal_lists_share_an_allocation() {
        let mut pool = ScopePool::default();
        let (one, same, other) = (shared(&mut pool, 1), shared(&mut pool, 1), shared(&mut pool, 2));
        assert!(Arc::ptr_eq(&one.0, &same.0));
        assert_eq!(other.iter().collect::<Vec<_>>(), ["orders-2:read", "audit:read"]);
    }

    #[test]
    fn unused_lists_are_removed() {
        let mut pool = ScopePool::default();
        let used = shared(&mut pool, 0);
        for number in 1..10_000 {
            shared(&mut pool, number);
        }
        assert!(pool.lists.len() <= 200, "{}", pool.lists.len());
        assert!(Arc::ptr_eq(&used.0, &shared(&mut pool, 0).0));
    }
}
