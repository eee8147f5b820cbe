//! Reading one's own writes: a check that asks for what must be known at least.
//!
//! Whoever has revoked a token or created a lock knows the resourceVersion of what was written. Each kind is compared with the
//! watch of that kind alone: where nothing changes, a watch stays at an earlier one until the next bookmark, though it lacks
//! nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use thiserror::Error;
use tokio::time::timeout;

use crate::watermark::{Mark, Marks};

/// How long a request waits at most: a watch brings what was written in milliseconds.
const MAX_WAIT: Duration = Duration::from_millis(250);

/// The resourceVersions up to which everything must be applied, each at least 1. `None`: of this kind nothing is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AtLeast {
    pub(crate) api_tokens: Option<u64>,
    pub(crate) token_locks: Option<u64>,
    pub(crate) cluster_token_locks: Option<u64>,
}

/// Why a check can't be made by what was asked for.
#[derive(Debug, Error)]
pub(crate) enum Unmet {
    /// Waiting does not help.
    #[error(
        "this verifier follows no ClusterTokenLocks, because it watches some namespaces only (--watch-namespaces), so they \
         stop nothing here: do not ask for them"
    )]
    NotFollowed,
    #[error(transparent)]
    Behind(#[from] Behind),
}

/// The watches that have not brought everything yet; never empty.
#[derive(Clone, Debug, Error)]
pub(crate) struct Behind(Vec<Awaited>);

#[derive(Clone, Debug)]
struct Awaited {
    kind: &'static str,
    resource_version: u64,
    mark: Mark,
}

/// Compares what is asked for with how far the watches of these namespaces have come; `None`: those of all.
pub(crate) fn require(
    at_least: AtLeast,
    marks: &Marks,
    namespaces: Option<&BTreeSet<String>>,
) -> Result<(), Unmet> {
    let AtLeast { api_tokens, token_locks, cluster_token_locks } = at_least;
    if cluster_token_locks.is_some() && marks.cluster_locks.is_none() {
        return Err(Unmet::NotFollowed);
    }
    let is_concerned = |of: &Option<String>| match (of, namespaces) {
        (Some(namespace), Some(namespaces)) => namespaces.contains(namespace),
        _ => true,
    };
    let concerned = |marks: &[(Option<String>, Mark)]| {
        marks.iter().filter(|(of, _)| is_concerned(of)).map(|(_, mark)| mark.clone()).collect()
    };
    let kinds: [(_, _, Vec<Mark>); 3] = [
        ("ApiTokens", api_tokens, concerned(&marks.tokens)),
        ("TokenLocks", token_locks, concerned(&marks.locks)),
        ("ClusterTokenLocks", cluster_token_locks, marks.cluster_locks.iter().cloned().collect()),
    ];
    let mut behind = Vec::new();
    for (kind, resource_version, marks) in kinds {
        let Some(resource_version) = resource_version else { continue };
        let marks = marks.into_iter().filter(|mark| mark.get() < resource_version);
        behind.extend(marks.map(|mark| Awaited { kind, resource_version, mark }));
    }
    if behind.is_empty() { Ok(()) } else { Err(Behind(behind).into()) }
}

impl Behind {
    /// Waits until all of it is applied, at most for [`MAX_WAIT`].
    pub(crate) async fn wait(&self) {
        let all = async {
            for Awaited { resource_version, mark, .. } in &self.0 {
                mark.reaches(*resource_version).await;
            }
        };
        // Whether it is applied is compared again, together with what the check is made by.
        let _ = timeout(MAX_WAIT, all).await;
    }
}

/// The first of them. It names no namespace: that would tell whose a key id is.
impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Awaited { kind, resource_version, mark }) = self.0.first() else { return Ok(()) };
        write!(
            f,
            "the request asks for {kind} up to resourceVersion {resource_version}, and this verifier "
        )?;
        match mark.get() {
            0 => write!(f, "knows of none, or is listing them again")?,
            applied => write!(f, "knows them up to {applied}")?,
        }
        write!(
            f,
            ": ask again in a second. If it stays so for minutes, this cluster has not come to that resourceVersion, or the \
             verifier receives nothing from the API server"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(resource_version: u64) -> Mark {
        let mark = Mark::default();
        mark.applied(resource_version);
        mark
    }

    /// What is missing, as kinds and the position of each watch.
    fn missing(at_least: AtLeast, marks: &Marks, namespaces: Option<&[&str]>) -> Vec<(&'static str, u64)> {
        let namespaces: Option<BTreeSet<_>> =
            namespaces.map(|names| names.iter().map(ToString::to_string).collect());
        match require(at_least, marks, namespaces.as_ref()) {
            Ok(()) => Vec::new(),
            Err(Unmet::NotFollowed) => vec![("not followed", 0)],
            Err(Unmet::Behind(Behind(behind))) => {
                behind.iter().map(|awaited| (awaited.kind, awaited.mark.get())).collect()
            }
        }
    }

    fn at_least(api_tokens: u64, token_locks: u64, cluster_token_locks: u64) -> AtLeast {
        let some = |version| (version > 0).then_some(version);
        AtLeast {
            api_tokens: some(api_tokens),
            token_locks: some(token_locks),
            cluster_token_locks: some(cluster_token_locks),
        }
    }

    #[test]
    fn each_kind_is_compared_with_its_own_watch() {
        let marks = Marks {
            tokens: vec![(None, mark(10))],
            locks: vec![(None, mark(20))],
            cluster_locks: Some(mark(0)),
        };
        for (asked, expected) in [
            (at_least(0, 0, 0), &[][..]),
            (at_least(9, 0, 0), &[]),
            (at_least(10, 20, 0), &[]),
            (at_least(11, 20, 0), &[("ApiTokens", 10)]),
            (at_least(10, 21, 0), &[("TokenLocks", 20)]),
            // Where there is a gap, nothing is certain.
            (at_least(0, 0, 1), &[("ClusterTokenLocks", 0)]),
            (at_least(11, 21, 1), &[("ApiTokens", 10), ("TokenLocks", 20), ("ClusterTokenLocks", 0)]),
        ] {
            for namespaces in [None, Some(&["a"][..]), Some(&[])] {
                assert_eq!(missing(asked, &marks, namespaces), expected, "{asked:?} {namespaces:?}");
            }
        }
    }

    #[test]
    fn of_several_namespaces_those_count_that_are_concerned() {
        let watches = || vec![(Some("a".to_owned()), mark(10)), (Some("b".to_owned()), mark(30))];
        let marks = Marks { tokens: watches(), locks: watches(), cluster_locks: None };
        for (asked, namespaces, expected) in [
            (at_least(20, 0, 0), Some(&["a"][..]), &[("ApiTokens", 10)][..]),
            (at_least(20, 0, 0), Some(&["b"]), &[]),
            (at_least(20, 0, 0), Some(&["a", "b"]), &[("ApiTokens", 10)]),
            (at_least(20, 0, 0), None, &[("ApiTokens", 10)]),
            (at_least(40, 40, 0), Some(&["b"]), &[("ApiTokens", 30), ("TokenLocks", 30)]),
            (at_least(10, 0, 0), None, &[]),
            (at_least(0, 0, 1), Some(&["b"]), &[("not followed", 0)]),
        ] {
            assert_eq!(missing(asked, &marks, namespaces), expected, "{asked:?} {namespaces:?}");
        }
    }

    #[test]
    fn the_message_says_what_is_missing_and_what_to_do() {
        let message = |position| {
            let marks =
                Marks { tokens: vec![(Some("secret".to_owned()), mark(position))], ..Marks::default() };
            require(at_least(7, 0, 0), &marks, None).expect_err("behind").to_string()
        };
        let expected = "the request asks for ApiTokens up to resourceVersion 7, and this verifier knows them up to 5: ask \
            again in a second.";
        assert!(message(5).starts_with(expected), "{}", message(5));
        assert!(message(0).contains("knows of none, or is listing them again"));
        assert!(!message(5).contains("secret"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_the_last_event_or_in_time() {
        let (tokens, locks) = (mark(1), mark(1));
        let marks = Marks {
            tokens: vec![(None, tokens.clone())],
            locks: vec![(None, locks.clone())],
            cluster_locks: None,
        };
        let began = tokio::time::Instant::now();
        let Err(Unmet::Behind(behind)) = require(at_least(5, 5, 0), &marks, None) else {
            panic!("not behind")
        };
        let events = async {
            for (mark, version, millis) in [(&locks, 9, 10), (&tokens, 4, 10), (&tokens, 5, 10)] {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                mark.applied(version);
            }
        };
        tokio::join!(behind.wait(), events);
        assert_eq!(began.elapsed(), Duration::from_millis(30));
        assert!(require(at_least(5, 5, 0), &marks, None).is_ok());
        let Err(Unmet::Behind(behind)) = require(at_least(6, 0, 0), &marks, None) else {
            panic!("not behind")
        };
        behind.wait().await;
        assert_eq!(began.elapsed(), Duration::from_millis(30) + MAX_WAIT);
    }
}
