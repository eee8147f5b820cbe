//! Lists of scopes, kept once: many tokens have the same.

use std::collections::HashSet;
use std::sync::Arc;

/// A list of scopes, separated by spaces. A clone shares it.
// Boxed once more, so that a handle is one word.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Scopes(Arc<Box<str>>);

/// The lists that are in use.
#[derive(Debug, Default)]
pub struct ScopePool {
    lists: HashSet<Scopes>,
    /// How many lists were in use when it was last looked.
    used: usize,
}

impl Scopes {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split_ascii_whitespace()
    }
}

impl ScopePool {
    /// The one list that holds these scopes in this order.
    pub(super) fn share(&mut self, scopes: &[String]) -> Scopes {
        let wanted = Scopes(Arc::new(scopes.join(" ").into()));
        if let Some(list) = self.lists.get(&wanted) {
            return list.clone();
        }
        self.forget_unused();
        self.lists.insert(wanted.clone());
        wanted
    }

    /// Looks for lists that nobody uses, each time that as many again have come.
    fn forget_unused(&mut self) {
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

    fn list(number: usize) -> Vec<String> {
        vec![format!("orders-{number}:read"), "audit:read".to_owned()]
    }

    #[test]
    fn equal_lists_are_one() {
        let mut pool = ScopePool::default();
        let (one, same, other) = (pool.share(&list(1)), pool.share(&list(1)), pool.share(&list(2)));
        assert!(Arc::ptr_eq(&one.0, &same.0));
        assert_eq!(other.iter().collect::<Vec<_>>(), ["orders-2:read", "audit:read"]);
    }

    #[test]
    fn lists_that_nobody_uses_are_forgotten() {
        let mut pool = ScopePool::default();
        let kept = pool.share(&list(0));
        for number in 1..10_000 {
            pool.share(&list(number));
        }
        assert!(pool.lists.len() <= 200, "{}", pool.lists.len());
        assert!(Arc::ptr_eq(&kept.0, &pool.share(&list(0)).0));
    }
}
