//! The events of a watch, with the gaps in them.

use std::fmt::Debug;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt, future};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tracing::warn;

use tokenward_runtime::backoff::WatchBackoff;
use tokenward_runtime::cluster::error::watch_message;
use tokenward_runtime::cluster::watch::in_pages;

/// How long after something that could not be read everything is listed again: soon, as nobody knows what it said, but not
/// at once, since it may go on like that.
pub(super) const RELIST_AFTER: Duration = Duration::from_secs(10);

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
