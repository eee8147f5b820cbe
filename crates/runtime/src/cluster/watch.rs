//! How objects are listed and watched.

use std::fmt::Debug;

use futures::{Stream, StreamExt, TryStreamExt, future};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watch_object};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tracing::warn;

use super::error::watch_message;
use crate::backoff::WatchBackoff;

/// Objects in a page of a list. A page is in memory up to three times while it is parsed, and an object may have more than
/// a megabyte, so kube's default of 500 could fill any limit.
pub const PAGE_SIZE: u32 = 50;

/// A watch of many objects, whose first list comes in small pages, and is of the latest state. kube's streaming lists are of any
/// state (they ask for resourceVersion 0): a process that starts could accept what others have confirmed as revoked.
pub fn in_pages() -> watcher::Config {
    watcher::Config::default().page_size(PAGE_SIZE)
}

/// The object, each time that it changes. `None`: it does not exist. `what` names it in log messages.
pub fn follow<K>(api: Api<K>, name: &str, what: &str) -> impl Stream<Item = Option<K>> + use<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let what = what.to_owned();
    watch_object(api, name)
        .backoff(WatchBackoff::default())
        .inspect_err(move |failure| {
            warn!(error = watch_message(failure), "{what} can't be watched; trying again");
        })
        .filter_map(|found| future::ready(found.ok()))
}
