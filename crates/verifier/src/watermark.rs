//! Tells the controller how far this verifier has come, so that a revocation can be proved.
//!
//! Anybody on the pod network may ask: resourceVersions are no secret. The answer carries a MAC under the pepper over the nonce of
//! whoever asks, so nobody else can give it, and none can be given again.

use std::sync::Arc;

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
    /// The highest of the list that is under way, if one is, which is applied only as a whole.
    listing: Option<u64>,
    /// Something was missed, so that nothing that comes after it proves anything until all is listed again.
    gap: bool,
}

impl Mark {
    /// Something was missed.
    pub(super) fn has_gap(&mut self) {
        self.gap = true;
        self.applied.send_replace(0);
    }

    /// A list begins.
    pub(super) fn list_begins(&mut self) {
        self.listing = Some(0);
    }

    /// An object of a list is applied.
    pub(super) fn listed(&mut self, resource_version: Option<&str>) {
        self.listing = self.listing.max(Some(parse(resource_version)));
    }

    /// A list is applied. It may have come from an older state than what was known.
    pub(super) fn list_ends(&mut self) {
        self.gap = false;
        self.applied.send_replace(self.listing.take().unwrap_or_default());
    }

    /// Whether a list has begun and not ended.
    pub(super) fn is_listing(&self) -> bool {
        self.listing.is_some()
    }

    /// An event is applied. Those of one watch are in order.
    pub(super) fn applied(&self, resource_version: Option<&str>) {
        if !self.gap {
            self.applied.send_replace(parse(resource_version));
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

/// 0, which proves nothing, for what is no number.
fn parse(resource_version: Option<&str>) -> u64 {
    resource_version.and_then(|text| text.parse().ok()).unwrap_or_default()
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
        mark.applied(Some("9"));
        mark.list_begins();
        mark.listed(Some("12"));
        assert_eq!(mark.get(), 9);
        mark.listed(Some("11"));
        mark.list_ends();
        assert_eq!(mark.get(), 12);
        // An etcd that was restored.
        mark.list_begins();
        mark.listed(Some("3"));
        mark.list_ends();
        assert_eq!(mark.get(), 3);
        mark.applied(Some("no number"));
        assert_eq!(mark.get(), 0);
        // What comes behind a gap proves nothing.
        mark.has_gap();
        mark.applied(Some("20"));
        assert_eq!(mark.get(), 0);
        mark.list_begins();
        mark.listed(Some("21"));
        mark.list_ends();
        mark.applied(Some("22"));
        assert_eq!(mark.get(), 22);
    }
}
