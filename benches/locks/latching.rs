//! How fast the controller records a lock on each token that it revokes, beside a plain client that makes the same requests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Deserialize;
use serde_json::json;
use tokenward_core::crd::labels::{LEDGER_LABEL, LOCK_FINALIZER};
use tokenward_core::crd::{ApiToken, ClusterTokenLock, TokenLockStatus};

use super::Bench;
use super::history::{History, Write, follow, until_all, version};
use super::plain::{Identity, Plain, TOKENS_AT_A_TIME};
use super::report::{Report, thousands};
use super::sides::{Before, table};
use super::world::World;

/// The namespace that the controller's lock matches.
const OURS: &str = "latched";
/// That of the plain client, in which the controller has made the same tokens.
const PLAIN: &str = "plain";
/// Before the names of the plain client's objects where the controller has some of the same kind.
const PREFIX: &str = "plain-";
/// ApiTokens in a page of the list.
const PAGE_SIZE: u32 = 500;

/// Objects of a kind, each time that one was written.
type Seen = Arc<Mutex<Vec<(Instant, DynamicObject)>>>;

pub async fn measure(bench: &Bench, tokens: usize, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("starting a control plane");
    let mut world = World::start_quietly(&bench.tokenward).await?;
    let spec = json!({"scopes": ["a:b"]});
    let mut histories = Vec::new();
    for namespace in [OURS, PLAIN] {
        eprintln!("creating {tokens} tokens");
        world.create_namespace(namespace).await?;
        let history = History::follow(world.client(), namespace).await?;
        world.create_tokens(namespace, tokens, &spec, |_| Ok(())).await?;
        history.until_ready(tokens).await?;
        histories.push(history);
    }
    let locks = seen::<ClusterTokenLock>(&world, watcher::Config::default()).await?;
    let ledger_label = watcher::Config::default().labels(&format!("{LEDGER_LABEL}=true"));
    let ledger = seen::<ConfigMap>(&world, ledger_label).await?;

    let before = Before::begin(&world).await?;
    // Of the creation, now that nothing more of it comes.
    for history in &histories {
        drop(history.take());
    }
    create_lock(&world, OURS).await?;
    let latched = until_latched(&locks, tokens).await?;
    let ours = before.end("tokenward", tokens, latched, &world).await?;
    let written = histories.first().map(History::take).unwrap_or_default();
    ensure!(written.len() == tokens, "{} of {tokens} tokens were written", written.len());
    let (locks, ledger) = (take(&locks), take(&ledger));

    world.stop()?;
    let existing = existing(&world).await?;
    create_lock(&world, PLAIN).await?;
    let client = world.client_with_its_rights().await?;
    let plain_client = Plain::connect(client.clone(), PLAIN, &spec).await?;
    let before = Before::begin(&world).await?;
    let (last, ..) = futures::try_join!(
        repeat(&plain_client, existing, &written),
        repeat_lock(&client, &locks),
        repeat_ledger(&client, &ledger)
    )?;
    let plain = before.end("plain client", tokens, last, &world).await?;

    report.section(
        "Latching",
        &format!(
            "A ClusterTokenLock with `action: Revoke` over {0} of {1} ApiTokens that are ready: from its creation until its \
             status says that all of these are latched. The baseline comes right after, on the same API server without a \
             controller: the statuses and Secrets that the controller has written, of the other {0} ApiTokens, by as many \
             requests at a time, and beside these the lock's statuses and the ledger. Requests and CPU time are those until \
             nothing is written any more.",
            thousands(tokens as u64),
            thousands(2 * tokens as u64)
        ),
    );
    table(&ours, &plain, report);
    report.note(&format!(
        "Meanwhile {} statuses of the lock and {} states of the ledger were written.",
        locks.len(),
        ledger.len()
    ));
    Ok(())
}

async fn seen<K: Resource<DynamicType = ()>>(world: &World, config: watcher::Config) -> anyhow::Result<Seen> {
    let seen = Seen::default();
    let push = seen.clone();
    follow::<K>(world.client(), None, config, move |object, is_new| {
        if is_new {
            push.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), object));
        }
    })
    .await?;
    Ok(seen)
}

/// What was seen so far, in order.
fn take(seen: &Seen) -> Vec<DynamicObject> {
    let mut objects = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    objects.sort_by_key(|(_, object)| version(object));
    objects.into_iter().map(|(_, object)| object).collect()
}

/// Creates a lock that revokes the tokens of a namespace.
async fn create_lock(world: &World, namespace: &str) -> anyhow::Result<()> {
    let object = json!({
        "apiVersion": "tokenward.dev/v1alpha1", "kind": "ClusterTokenLock", "metadata": {"name": namespace},
        "spec": {"match": {"namespaces": [namespace]}, "action": "Revoke"},
    });
    world.create_object("/apis/tokenward.dev/v1alpha1/clustertokenlocks", &object).await
}

/// Waits until a lock's status says that so many tokens are latched. Returns when that was seen.
async fn until_latched(locks: &Seen, tokens: usize) -> anyhow::Result<Instant> {
    until_all(tokens, "latched", || {
        let newest = locks.lock().unwrap_or_else(PoisonError::into_inner).last().cloned();
        let Some((seen, lock)) = newest else { return Ok((0, None)) };
        let status = status(&lock)?;
        let [matched, latched] =
            [status.matched, status.latched].map(|number| usize::try_from(number.unwrap_or_default()));
        let (matched, latched) = (matched?, latched?);
        Ok((latched, Some(seen).filter(|_| (matched, latched) == (tokens, tokens))))
    })
    .await
}

fn status(lock: &DynamicObject) -> anyhow::Result<TokenLockStatus> {
    Ok(Option::deserialize(&lock.data["status"])?.unwrap_or_default())
}

/// The plain client's tokens, as they are.
async fn existing(world: &World) -> anyhow::Result<Vec<Identity>> {
    let api: Api<ApiToken> = Api::namespaced(world.client().clone(), PLAIN);
    let (mut tokens, mut params) = (Vec::new(), ListParams::default().limit(PAGE_SIZE));
    loop {
        let page = api.list_metadata(&params).await?;
        for token in page.items {
            tokens.push(serde_json::from_value(serde_json::to_value(token.metadata)?)?);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(tokens),
        }
    }
}

/// Writes tokens as others were written. Returns when the last of them was.
async fn repeat(
    client: &Plain,
    tokens: Vec<Identity>,
    written: &HashMap<String, Vec<Write>>,
) -> anyhow::Result<Instant> {
    stream::iter(tokens)
        .map(async |token| {
            let writes = written.get(&token.name).context("a token that was never written")?;
            client.repeat(token, writes).await.map(drop)
        })
        .buffer_unordered(TOKENS_AT_A_TIME)
        .try_collect::<()>()
        .await?;
    Ok(Instant::now())
}

/// Writes finalizer and statuses of the lock, one after the other.
async fn repeat_lock(client: &Client, locks: &[DynamicObject]) -> anyhow::Result<()> {
    let api: Api<ClusterTokenLock> = Api::all(client.clone());
    let patch = Patch::Merge(json!({"metadata": {"finalizers": [LOCK_FINALIZER]}}));
    api.patch_metadata(PLAIN, &PatchParams::default(), &patch).await?;
    let mut lock = api.get(PLAIN).await?;
    for written in locks.iter().filter(|lock| lock.data["status"].is_object()) {
        lock.status = Some(status(written)?);
        lock = api.replace_status(PLAIN, &PostParams::default(), &lock).await?;
    }
    Ok(())
}

/// Writes the states of the ledger, one after the other, each after the ConfigMap was read, as the controller does.
async fn repeat_ledger(client: &Client, ledger: &[DynamicObject]) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "tokenward");
    for written in ledger {
        let name = format!("{PREFIX}{}", written.name_any());
        let mut page: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": name, "labels": written.metadata.labels}}))?;
        page.binary_data = Option::deserialize(&written.data["binaryData"])?;
        match api.get_opt(&name).await? {
            Some(before) => {
                page.metadata.resource_version = before.metadata.resource_version;
                api.replace(&name, &PostParams::default(), &page).await?
            }
            None => api.create(&PostParams::default(), &page).await?,
        };
    }
    Ok(())
}
