//! Lists of scopes, interned: many tokens have the same ones.

use std::collections::HashSet;
use std::sync::Arc;

/// The scopes of a version, as lists separated by spaces. A clone shares them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::check) struct Scopes(Arc<Lists>);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Lists {
    /// What both the version and the spec grant.
    granted: Box<str>,
    /// What the version was issued with, if that is something else.
    issued: Option<Box<str>>,
}

/// The set of interned lists.
#[derive(Debug, Default)]
pub struct ScopePool {
    lists: HashSet<Scopes>,
    /// How many lists were in use after the last cleanup.
    used: usize,
}

impl Scopes {
    /// Those that both the version and the spec grant.
    pub(in crate::check) fn as_str(&self) -> &str {
        &self.0.granted
    }

    pub(in crate::check) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.granted.split_ascii_whitespace()
    }

    /// Those that the version was issued with, if these are others.
    pub(in crate::check) fn issued_otherwise(&self) -> Option<&str> {
        self.0.issued.as_deref()
    }

    /// Those that the version was issued with, whatever the spec says by now.
    pub(in crate::check) fn issued(&self) -> &str {
        self.0.issued.as_ref().unwrap_or(&self.0.granted)
    }
}

impl ScopePool {
    /// The interned lists of these scopes in this order.
    pub(in crate::check) fn share(&mut self, granted: &[&str], issued: &[String]) -> Scopes {
        let issued = (granted != issued).then(|| issued.join(" ").into());
        self.intern(granted.join(" ").into(), issued)
    }

    /// The same of lists separated by spaces. `issued`: `None` is what is granted.
    pub(in crate::check) fn intern(&mut self, granted: Box<str>, issued: Option<Box<str>>) -> Scopes {
        let wanted = Scopes(Arc::new(Lists { granted, issued }));
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
        let scopes = [format!("orders-{number}:read"), "audit:read".to_owned()];
        pool.share(&scopes.each_ref().map(String::as_str), &scopes)
    }

    #[test]
    fn equal_lists_share_an_allocation() {
        let mut pool = ScopePool::default();
        let (one, same, other) = (shared(&mut pool, 1), shared(&mut pool, 1), shared(&mut pool, 2));
        assert!(Arc::ptr_eq(&one.0, &same.0));
        assert_eq!(other.iter().collect::<Vec<_>>(), ["orders-2:read", "audit:read"]);
    }

    #[test]
    fn what_a_version_was_issued_with_is_known() {
        let issued = ["orders:*".to_owned(), "audit:read".to_owned()];
        let narrowed = ScopePool::default().share(&["audit:read"], &issued);
        assert_eq!((narrowed.as_str(), narrowed.issued()), ("audit:read", "orders:* audit:read"));
        let whole = ScopePool::default().share(&["orders:*", "audit:read"], &issued);
        assert_eq!((whole.as_str(), whole.issued()), ("orders:* audit:read", "orders:* audit:read"));
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
