//! Tells the controller how far this verifier has come, so that a revocation can be proved.
//!
//! Anybody on the pod network may ask: resourceVersions are no secret. The answer carries a MAC under the pepper over the nonce of
//! whoever asks, so nobody else can give it, and none can be given again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Bytes;
use tokio::sync::watch;

use crate::config::StalePolicy;
use crate::snapshot::Snapshot;
use crate::staleness::Limit;
use tokenward_core::proof::{MAC_HEADER, PATH, Position, Watermark};
use tokenward_core::token::statement;
use tokenward_runtime::serve::{response, text};

/// The longest nonce, in bytes.
const MAX_NONCE_BYTES: usize = 64;

/// The resourceVersion up to which everything that a watch brings is applied. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Mark {
    applied: watch::Sender<u64>,
    lists: Arc<Lists>,
    /// Something was missed, so that nothing that comes after it proves anything until all is listed again.
    gap: bool,
}

/// How many lists have begun and ended.
#[derive(Debug, Default)]
struct Lists {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Mark {
    /// Something was missed.
    pub(super) fn has_gap(&mut self) {
        self.gap = true;
        self.applied.send_replace(0);
    }

    /// A list begins, or something that is known as of some time ago is brought up to date.
    pub(super) fn list_begins(&self) {
        // One that failed has begun again.
        let ended = self.lists.ended.load(Ordering::Acquire);
        self.lists.begun.store(ended + 1, Ordering::Release);
    }

    /// Everything up to a resourceVersion is applied, which may be an older one than was known.
    pub(super) fn list_ends(&mut self, resource_version: u64) {
        self.gap = false;
        self.applied.send_replace(resource_version);
        self.lists.ended.store(self.lists.begun.load(Ordering::Acquire), Ordering::Release);
    }

    /// How many lists there were. `None`: one is under way.
    pub(super) fn lists(&self) -> Option<u64> {
        let ended = self.lists.ended.load(Ordering::Acquire);
        (self.lists.begun.load(Ordering::Acquire) == ended).then_some(ended)
    }

    /// Whether a list has begun and not ended.
    pub(super) fn is_listing(&self) -> bool {
        self.lists().is_none()
    }

    /// An event or a bookmark is applied. Those of one watch are in order.
    pub(super) fn applied(&self, resource_version: u64) {
        if !self.gap && !self.is_listing() {
            self.applied.send_replace(resource_version);
        }
    }

    /// 0: nothing is certain.
    pub(super) fn get(&self) -> u64 {
        *self.applied.borrow()
    }

    /// Waits until everything up to a resourceVersion is applied.
    pub(super) async fn reaches(&self, resource_version: u64) {
        // It fails only where no sender is left, and `self` has one.
        let _ = self.applied.subscribe().wait_for(|applied| *applied >= resource_version).await;
    }
}

/// The marks of all watches. One of some namespace says nothing about another, and one kind nothing about another.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// With the namespace of each watch; `None`: all.
    pub(super) tokens: Vec<(Option<String>, Mark)>,
    pub(super) locks: Vec<(Option<String>, Mark)>,
    /// `None`: ClusterTokenLocks are not followed.
    pub(super) cluster_locks: Option<Mark>,
}

/// What a verifier tells of itself.
pub(super) struct Teller {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) limit: Limit,
}

impl Teller {
    /// Answers on the telemetry port.
    pub(super) fn answer(&self, uri: &Uri) -> Option<Response<Full<Bytes>>> {
        if uri.path() != PATH {
            return None;
        }
        let query = uri.query().unwrap_or_default();
        let nonce = query.strip_prefix("nonce=").filter(|nonce| !nonce.is_empty());
        let Some(nonce) = nonce.filter(|nonce| nonce.len() <= MAX_NONCE_BYTES) else {
            return Some(text(StatusCode::BAD_REQUEST, "the query is nonce=, and up to 64 characters\n"));
        };
        let signed = self.snapshot.peppers.load().as_deref().and_then(|peppers| {
            let body = serde_json::to_string(&self.watermark()).ok()?;
            let mac = statement::sign(peppers, nonce, body.as_bytes())?;
            Some((body, mac.parse().ok()?))
        });
        Some(match signed {
            Some((body, mac)) => {
                let mut response = response(StatusCode::OK, "application/json", body);
                response.headers_mut().insert(MAC_HEADER, mac);
                response
            }
            None => text(StatusCode::SERVICE_UNAVAILABLE, "there is no pepper yet\n"),
        })
    }

    fn watermark(&self) -> Watermark {
        let positions = |marks: &[(Option<String>, Mark)]| {
            let position = |(namespace, mark): &(Option<String>, Mark)| Position {
                namespace: namespace.clone(),
                resource_version: mark.get(),
            };
            marks.iter().map(position).collect()
        };
        let marks = &self.snapshot.marks;
        Watermark {
            tokens: positions(&marks.tokens),
            locks: positions(&marks.locks),
            cluster_locks: marks.cluster_locks.as_ref().map(Mark::get),
            max_staleness: i64::try_from(self.limit.max_staleness.as_secs()).unwrap_or(i64::MAX),
            denies_when_stale: self.limit.policy == StalePolicy::Deny,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_counts_once_it_is_complete() {
        let mut mark = Mark::default();
        mark.applied(9);
        mark.list_begins();
        mark.applied(12);
        assert_eq!((mark.get(), mark.lists()), (9, None));
        mark.list_begins();
        mark.list_ends(12);
        assert_eq!(mark.lists(), Some(1));
        assert_eq!(mark.get(), 12);
        // An etcd that was restored.
        mark.list_begins();
        mark.list_ends(3);
        assert_eq!(mark.get(), 3);
        // What comes behind a gap proves nothing.
        mark.has_gap();
        mark.applied(20);
        assert_eq!(mark.get(), 0);
        mark.list_begins();
        mark.list_ends(21);
        mark.applied(22);
        assert_eq!(mark.get(), 22);
    }
}
