//! Lists of scopes, interned: many tokens have the same list.

use std::collections::HashSet;
use std::sync::Arc;

use crate::token::scope::any_covers;

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

/// The scopes that two lists both grant: of each list those that the other covers.
///
/// It covers what both cover. Where two scopes cover a third, one of them covers the other, since both are it or a
/// beginning of it; and that other one is in the list.
pub(in crate::check) fn granted_by_both<'a>(one: &'a [String], other: &'a [String]) -> Vec<&'a str> {
    let covered = |scope: &&str, by: &[String]| any_covers(by.iter().map(String::as_str), scope);
    let of_one = one.iter().map(String::as_str).filter(|scope| covered(scope, other));
    // A scope that is in both lists is returned once.
    let of_other = other.iter().filter(|scope| !one.contains(scope));
    of_one.chain(of_other.map(String::as_str).filter(|scope| covered(scope, one))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn granted_by_both_is_granted_by_each(
            one in proptest::collection::vec("(a|b)(:(a|b)){0,2}:(a|b|[*])", 0..4),
            other in proptest::collection::vec("(a|b)(:(a|b)){0,2}:(a|b|[*])", 0..4),
            required in "(a|b)(:(a|b)){0,3}:(a|b|[*])",
        ) {
            let covers = |list: &[String]| any_covers(list.iter().map(String::as_str), &required);
            let both = granted_by_both(&one, &other);
            prop_assert_eq!(any_covers(both.iter().copied(), &required), covers(&one) && covers(&other));
        }
    }

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
