//! What is written of the ApiTokens of a namespace and their Secrets, one write after the other: by watches, as the API server
//! keeps no history.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokenward_core::crd::ApiToken;
use tokio::sync::oneshot;

use super::TIMEOUT;

/// One write.
pub enum Write {
    /// The `status` of the ApiToken.
    Status(Box<RawValue>),
    /// A new Secret.
    CreateSecret(Box<RawValue>),
    /// The Secret in place of what it was.
    ReplaceSecret(Box<RawValue>),
}

#[derive(Default)]
struct State {
    /// By name, each with its resourceVersion.
    writes: HashMap<String, Vec<(u64, Write)>>,
    secrets: HashSet<String>,
    ready: HashSet<String>,
    /// When the last of them was.
    last_ready: Option<Instant>,
}

/// The history of a namespace, from when it is followed.
#[derive(Clone, Default)]
pub struct History {
    state: Arc<Mutex<State>>,
}

impl History {
    /// Follows a namespace. What it has by then is no write.
    pub async fn follow(client: &Client, namespace: &str) -> anyhow::Result<Self> {
        let history = Self::default();
        let (tokens, secrets) = (history.clone(), history.clone());
        follow::<ApiToken>(client, Some(namespace), watcher::Config::default(), move |token, is_new| {
            tokens.with(|state| state.token(&token, is_new));
        })
        .await?;
        follow::<Secret>(client, Some(namespace), watcher::Config::default(), move |secret, is_new| {
            secrets.with(|state| state.secret(secret, is_new));
        })
        .await?;
        Ok(history)
    }

    /// Waits until so many tokens are ready. Returns when the last of them was.
    pub async fn until_ready(&self, count: usize) -> anyhow::Result<Instant> {
        until_all(count, "ready", || {
            let (ready, last) = self.with(|state| (state.ready.len(), state.last_ready));
            Ok((ready, last.filter(|_| ready >= count)))
        })
        .await
    }

    /// What was written so far, by the token's name, in order. It is forgotten.
    pub fn take(&self) -> HashMap<String, Vec<Write>> {
        let writes = self.with(|state| std::mem::take(&mut state.writes));
        let in_order = |mut writes: Vec<(u64, Write)>| {
            writes.sort_by_key(|(version, _)| *version);
            writes.into_iter().map(|(_, write)| write).collect()
        };
        writes.into_iter().map(|(name, writes)| (name, in_order(writes))).collect()
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn token(&mut self, token: &DynamicObject, is_new: bool) {
        let name = token.name_any();
        let Some(status) = token.data.get("status") else { return };
        let Ok(text) = serde_json::value::to_raw_value(status) else { return };
        if is_ready(status) {
            if self.ready.insert(name.clone()) {
                self.last_ready = Some(Instant::now());
            }
        } else {
            self.ready.remove(&name);
        }
        if is_new {
            self.writes.entry(name).or_default().push((version(token), Write::Status(text)));
        }
    }

    fn secret(&mut self, secret: DynamicObject, is_new: bool) {
        let (name, version) = (secret.name_any(), version(&secret));
        let exists = !self.secrets.insert(name.clone());
        if !is_new {
            return;
        }
        let DynamicObject { metadata, mut data, .. } = secret;
        data["metadata"] = json!({
            "name": name, "labels": metadata.labels, "annotations": metadata.annotations,
            "ownerReferences": metadata.owner_references,
        });
        let Ok(text) = serde_json::value::to_raw_value(&data) else { return };
        let write = if exists { Write::ReplaceSecret(text) } else { Write::CreateSecret(text) };
        self.writes.entry(name).or_default().push((version, write));
    }
}

/// Waits until all of so many tokens are what `what` says, for as long as that is so of one more within [`TIMEOUT`]. `so_far` says of
/// how many it is and, once it is of all, since when.
pub async fn until_all(
    count: usize,
    what: &str,
    mut so_far: impl FnMut() -> anyhow::Result<(usize, Option<Instant>)>,
) -> anyhow::Result<Instant> {
    let (mut before, mut since, mut printed) = (0, Instant::now(), Instant::now());
    loop {
        let (number, all) = so_far()?;
        if let Some(at) = all {
            return Ok(at);
        }
        if number != before {
            (before, since) = (number, Instant::now());
        }
        ensure!(
            since.elapsed() < TIMEOUT,
            "{number} of {count} tokens are {what}, and no other within {TIMEOUT:?}"
        );
        if printed.elapsed() > Duration::from_secs(10) {
            eprintln!("{number} of {count} tokens are {what}");
            printed = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Follows the objects of a kind until the process ends. Each comes with whether it was written since they were listed, which is
/// when this returns.
pub async fn follow<K>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
    mut take: impl FnMut(DynamicObject, bool) + Send + 'static,
) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()>,
{
    let kind = ApiResource::erase::<K>(&());
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
        None => Api::all_with(client.clone(), &kind),
    };
    let mut events = watcher(api, config).default_backoff().boxed();
    let (listed, is_listed) = oneshot::channel();
    let mut listed = Some(listed);
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::InitApply(object)) => take(object, false),
                Ok(Event::Apply(object)) => take(object, true),
                Ok(Event::InitDone) => drop(listed.take().map(|listed| listed.send(()))),
                Ok(Event::Init | Event::Delete(_)) | Err(_) => {}
            }
        }
    });
    is_listed.await.context("the watch has ended")
}

/// The resourceVersion of an object as a number.
pub fn version(object: &DynamicObject) -> u64 {
    object.metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn is_ready(status: &Value) -> bool {
    let conditions = status["conditions"].as_array();
    conditions.is_some_and(|list| list.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}
