//! The ApiTokens of the demo as the API server's watch shows them, so that waiting neither polls nor sleeps.

use std::collections::BTreeMap;
use std::time::Instant;

use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use tokenward_core::crd::{ApiToken, ConditionType, find_condition};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::TIMEOUT;
use crate::show::unmet;

type Seen = BTreeMap<String, ApiToken>;

/// A watch that runs as long as this lives.
pub struct Live {
    seen: watch::Receiver<Seen>,
    _task: JoinSet<()>,
}

impl Live {
    /// Watches a namespace.
    pub fn of(api: Api<ApiToken>) -> Self {
        let (sender, seen) = watch::channel(Seen::new());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let events = watcher(api, watcher::Config::default()).default_backoff();
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::Apply(token) | Event::InitApply(token)) => {
                        sender.send_modify(|seen| drop(seen.insert(token.name_any(), token)));
                    }
                    Ok(Event::Delete(token)) => {
                        sender.send_modify(|seen| drop(seen.remove(&token.name_any())));
                    }
                    // The watch goes on by itself.
                    Ok(Event::Init | Event::InitDone) | Err(_) => {}
                }
            }
        });
        Self { seen, _task: task }
    }

    /// Waits until a token is as wanted; returns it, and when that was seen.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&ApiToken) -> bool,
    ) -> anyhow::Result<(ApiToken, Instant)> {
        let mut seen = self.seen.clone();
        let wait = seen.wait_for(|seen| seen.get(name).is_some_and(&wanted));
        if let Ok(Ok(seen)) = timeout(TIMEOUT, wait).await {
            let at = Instant::now();
            if let Some(token) = seen.get(name) {
                return Ok((token.clone(), at));
            }
        }
        let conditions = self.seen.borrow().get(name).and_then(|token| token.status.as_ref()).map(|status| {
            let conditions = status.conditions.iter();
            conditions
                .map(|c| format!("{}={} ({})", c.type_, c.status, c.reason))
                .collect::<Vec<_>>()
                .join(", ")
        });
        Err(unmet(
            &format!("{name} within {} s", TIMEOUT.as_secs()),
            what,
            conditions.as_deref().unwrap_or("no status"),
        ))
    }
}

/// Whether a condition is true, as of the current spec.
pub fn has(token: &ApiToken, type_: ConditionType) -> bool {
    let Some(status) = &token.status else { return false };
    status.observed_generation == token.metadata.generation
        && find_condition(&status.conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// The version in the Secret.
pub fn version(token: &ApiToken) -> Option<i64> {
    Some(token.status.as_ref()?.secret_ref.as_ref()?.version)
}

/// Whether the Secret contains this version of the token.
pub fn delivered(token: &ApiToken, wanted: i64) -> bool {
    version(token) == Some(wanted) && has(token, ConditionType::Delivered)
}

/// Whether all secrets of the token were marked as revoked.
pub fn enforced(token: &ApiToken) -> bool {
    token.status.as_ref().and_then(|s| s.revocation.as_ref()).is_some_and(|r| r.enforced_at.is_some())
}
