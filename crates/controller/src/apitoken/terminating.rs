//! The namespaces that are being deleted, as far as the API server has said so when it denied a write.
//!
//! Their objects go one kind after the other. If the Secrets go before the ApiTokens, each token would have its Secret made
//! anew, which the API server denies, as it denies everything that is new there. One denial holds for the whole namespace.
//! That way no right on namespaces is needed.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokenward_runtime::sync::lock;

/// For how long a denial holds. Then one token of the namespace tries again: somebody may have made a new one of that name.
pub(super) const HOLDS_FOR: Duration = Duration::from_secs(60);

/// When the API server last said so, by namespace.
#[derive(Default)]
pub(crate) struct Terminating(Mutex<HashMap<String, Timestamp>>);

impl Terminating {
    pub(super) fn insert(&self, namespace: &str, now: Timestamp) {
        let mut denied = lock(&self.0);
        denied.retain(|_, at| holds(*at, now));
        denied.insert(namespace.to_owned(), now);
    }

    /// Whether a token is in a namespace that is being deleted, and not younger than the denial.
    pub(super) fn contains(&self, namespace: &str, created: Timestamp, now: Timestamp) -> bool {
        lock(&self.0).get(namespace).is_some_and(|at| holds(*at, now) && created <= *at)
    }
}

fn holds(at: Timestamp, now: Timestamp) -> bool {
    at <= now && now.duration_since(at) < SignedDuration::try_from(HOLDS_FOR).unwrap_or(SignedDuration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("an instant")
    }

    #[test]
    fn a_denial_holds_for_a_while_and_for_older_tokens() {
        let terminating = Terminating::default();
        terminating.insert("a", at(100));
        for (namespace, created, now, expected) in [
            ("a", 50, 100, true),
            ("a", 100, 159, true),
            ("a", 101, 159, false),
            ("a", 50, 160, false),
            ("a", 50, 99, false),
            ("b", 50, 100, false),
        ] {
            let found = terminating.contains(namespace, at(created), at(now));
            assert_eq!(found, expected, "{namespace} {created} {now}");
        }
        terminating.insert("b", at(200));
        assert_eq!(lock(&terminating.0).len(), 1, "what is over is forgotten");
    }
}
