//! Watches one object by name.

use std::fmt::Debug;

use futures::{Stream, StreamExt, TryStreamExt, future};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tracing::warn;

use super::error::watch_message;
use crate::backoff::WatchBackoff;

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
