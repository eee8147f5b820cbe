//! The events of a watch, with the gaps in them.

use std::fmt::Debug;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt, future};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;

use tokenward_runtime::backoff::WatchBackoff;
use tokenward_runtime::cluster::client::WatchHeartbeat;
use tokenward_runtime::cluster::error::watch_message;
use tokenward_runtime::cluster::watch::in_pages;

/// How long after something that could not be read everything is listed again: soon, as nobody knows what it said, but not
/// at once, since it may go on like that.
pub(super) const RELIST_AFTER: Duration = Duration::from_secs(10);
/// A watch is not taken for silent in less, whatever `--max-staleness` is.
const MIN_SILENCE: Duration = Duration::from_secs(1);

/// Says when what some watches follow is to be listed again: after something that could not be read, and where one of them has
/// brought nothing for too long. A watch that goes on after an outage is silent until something changes or a bookmark is due,
/// which may take a minute.
pub(super) struct Relist {
    max_silence: Duration,
    /// Since when the watches run.
    begun: Instant,
    after_gap: Option<Instant>,
}

impl Relist {
    /// For watches that begin now.
    pub(super) fn new(max_staleness: Duration) -> Self {
        Self { max_silence: max_staleness.max(MIN_SILENCE), begun: Instant::now(), after_gap: None }
    }

    /// Notes that something could not be read.
    pub(super) fn has_gap(&mut self) {
        self.after_gap.get_or_insert_with(|| Instant::now() + RELIST_AFTER);
    }

    /// Returns once all is to be listed again. `is_listing`: a list is under way, which would never end if it were begun again
    /// for taking so long.
    pub(super) async fn due(
        &self,
        heartbeats: impl Iterator<Item = &WatchHeartbeat> + Clone,
        is_listing: bool,
    ) {
        let gap = async {
            match self.after_gap {
                Some(at) => sleep_until(at).await,
                None => future::pending().await,
            }
        };
        let silence = async {
            if is_listing {
                future::pending::<()>().await;
            }
            loop {
                let oldest = WatchHeartbeat::oldest(heartbeats.clone());
                let left = self.max_silence.saturating_sub(oldest.min(self.begun.elapsed()));
                if left.is_zero() {
                    return;
                }
                sleep(left).await;
            }
        };
        tokio::select! { () = gap => {}, () = silence => {} }
    }
}

/// The events of a watch. `None`: one that can't be attributed to an object. `failure` says, in the log, what can't be watched
/// and what goes on meanwhile.
pub(super) fn follow<K>(api: Api<K>, failure: &'static str) -> impl Stream<Item = Option<Event<K>>> + Send
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    watcher(api, in_pages())
        .inspect_err(move |error| warn!(error = watch_message(error), "{failure}"))
        .backoff(WatchBackoff::default())
        .filter_map(|result| {
            future::ready(match result {
                Ok(event) => Some(Some(event)),
                Err(error) => leaves_a_gap(&error).then_some(None),
            })
        })
}

/// Whether a line of the watch could not be read. The watch goes on behind it, so what it said would never be heard.
fn leaves_a_gap(error: &watcher::Error) -> bool {
    // kube takes any JSON that is no event for the API server's error.
    matches!(error, watcher::Error::WatchFailed(kube::Error::SerdeError(_) | kube::Error::Api(_)))
}
