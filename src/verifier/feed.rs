//! The feed: a watch of ApiTokens, taken into the index event by event. No whole object is kept.
//!
//! An object that can't be read loses its entry: an old answer about a token is worse than none.

use std::collections::HashSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, future, stream};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use tracing::{info, warn};

use super::index::Object;
use super::metrics::Metrics;
use super::view::View;
use crate::check::Entry;
use crate::cluster::backoff::WatchBackoff;
use crate::cluster::error::watch_message;
use crate::crd::ApiToken;
use crate::telemetry::probes::Part;

type Token = DeserializeGuard<ApiToken>;

/// One watch.
pub(super) struct Source {
    /// What is watched; `None` is every namespace.
    pub namespace: Option<String>,
    pub client: Client,
}

/// Feeds the view for as long as it is polled. Declares ready after the first full list of every source.
pub(super) fn feed(
    sources: Vec<Source>,
    view: Arc<View>,
    ready: Part,
    metrics: Metrics,
) -> impl Future<Output = ()> {
    let unlisted = sources.len();
    let events = stream::select_all(sources.into_iter().map(|Source { namespace, client }| {
        let api: Api<Token> = match &namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        };
        watcher(api, watcher::Config::default())
            .inspect_err(|error| {
                warn!(error = watch_message(error), "ApiTokens can't be watched; checks go on from memory")
            })
            .backoff(WatchBackoff::default())
            .filter_map(|result| future::ready(result.ok()))
            .map(move |event| (namespace.clone(), event))
            .boxed()
    }));
    let mut lists = Lists { unlisted, seen: HashSet::new() };
    events.for_each(move |(namespace, event)| {
        lists.take(namespace.as_deref(), event, &view, &ready);
        metrics.tokens.set(i64::try_from(view.index.len()).unwrap_or(i64::MAX));
        future::ready(())
    })
}

/// The fresh lists that are under way.
struct Lists {
    unlisted: usize,
    seen: HashSet<Object>,
}

impl Lists {
    fn take(&mut self, namespace: Option<&str>, event: Event<Token>, view: &View, ready: &Part) {
        let within = |object: &Object| namespace.is_none_or(|namespace| object.is_in(namespace));
        match event {
            Event::Init => self.seen.retain(|object| !within(object)),
            Event::InitApply(token) => {
                self.seen.insert(object(&token));
                apply(token, view);
            }
            Event::InitDone => {
                view.index.retain(|object| !within(object) || self.seen.contains(object));
                self.seen.retain(|object| !within(object));
                self.seen.shrink_to_fit();
                self.unlisted = self.unlisted.saturating_sub(1);
                if self.unlisted == 0 {
                    view.set_listed();
                    ready.set(true);
                }
                info!(tokens = view.index.len(), "listed ApiTokens");
            }
            Event::Apply(token) => apply(token, view),
            Event::Delete(token) => view.index.delete(&object(&token)),
        }
    }
}

fn apply(token: Token, view: &View) {
    let object = object(&token);
    match &token.0 {
        Ok(token) => view.index.apply(object, Entry::of(token)),
        Err(invalid) => {
            warn!(token = ?object, error = invalid.error, "an ApiToken can't be read, so its token is denied");
            view.index.delete(&object);
        }
    }
}

fn object(token: &Token) -> Object {
    let metadata = token.meta();
    Object::new(
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    )
}
