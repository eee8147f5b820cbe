//! What a new lock will stop, told before it does.

use std::collections::BTreeSet;

use crate::crd::LockAction;

/// Names that are given beside the number.
const NAMES: usize = 5;

/// The tokens that a new lock matches.
#[derive(Clone, Debug, Default)]
pub struct Preview {
    tokens: usize,
    namespaces: BTreeSet<String>,
    /// The first ones, as `namespace/name`.
    first: BTreeSet<String>,
}

impl Preview {
    /// Adds a token.
    pub fn add(&mut self, namespace: &str, name: &str) {
        self.tokens += 1;
        if !self.namespaces.contains(namespace) {
            self.namespaces.insert(namespace.to_owned());
        }
        self.first.insert(format!("{namespace}/{name}"));
        if self.first.len() > NAMES {
            self.first.pop_last();
        }
    }

    /// What the lock will do, for whoever creates it.
    pub fn message(&self, action: LockAction) -> String {
        let does = match action {
            LockAction::Suspend => "suspends",
            LockAction::Revoke => "revokes, for good,",
        };
        let names = self.first.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if self.tokens > NAMES { ", …" } else { "" };
        match (self.tokens, self.namespaces.len()) {
            (0, _) => "this lock matches no ApiToken".to_owned(),
            (1, _) => format!("this lock {does} 1 ApiToken: {names}"),
            (tokens, 1) => format!("this lock {does} {tokens} ApiTokens: {names}{more}"),
            (tokens, namespaces) => {
                format!("this lock {does} {tokens} ApiTokens of {namespaces} namespaces: {names}{more}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_and_the_first_names() {
        let message = |action, tokens: &[(&str, &str)]| {
            let mut preview = Preview::default();
            tokens.iter().for_each(|(namespace, name)| preview.add(namespace, name));
            preview.message(action)
        };
        assert_eq!(message(LockAction::Revoke, &[]), "this lock matches no ApiToken");
        let one = message(LockAction::Revoke, &[("ns", "a")]);
        assert_eq!(one, "this lock revokes, for good, 1 ApiToken: ns/a");
        let two = message(LockAction::Suspend, &[("ns", "b"), ("ns", "a")]);
        assert_eq!(two, "this lock suspends 2 ApiTokens: ns/a, ns/b");
        let names = ["f", "e", "d", "c", "b", "a"].map(|name| ("ns", name));
        let many = message(LockAction::Suspend, &[&names[..], &[("other", "z")]].concat());
        assert_eq!(many, "this lock suspends 7 ApiTokens of 2 namespaces: ns/a, ns/b, ns/c, ns/d, ns/e, …");
    }
}
