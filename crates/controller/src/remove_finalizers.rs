//! Removes the finalizers from all ApiTokens and locks once no controller runs any more, as after an uninstall. With them
//! neither they nor their namespaces could be deleted.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use futures::{StreamExt, stream};
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tracing::{info, warn};

use crate::objects::finalizers_patch;
use crate::watches::api;
use tokenward_core::crd::labels::{LOCK_FINALIZER, WEBHOOKS_FINALIZER};
use tokenward_core::crd::{ApiToken, ClusterTokenLock, TokenLock};
use tokenward_runtime::backoff::Backoff;
use tokenward_runtime::cluster::client::Cluster;
use tokenward_runtime::cluster::error::{is_not_found, message};

/// Objects in a page of the list.
const PAGE_SIZE: u32 = 50;
/// Requests at a time.
const CONCURRENT: usize = 8;
/// How often all are gone through until none has the finalizer.
const PASSES: u32 = 6;
/// The waits between them, 15 s in all.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));

/// The flags of `tokenward remove-finalizers`.
#[derive(Clone, Debug, Args)]
pub struct RemoveFinalizersArgs {
    /// Namespaces with the ApiTokens and TokenLocks, separated by commas [default: all, and ClusterTokenLocks]
    #[arg(long, value_delimiter = ',')]
    pub namespaces: Vec<String>,
}

/// The finalizers of tokenward.
const OWN: [&str; 2] = [WEBHOOKS_FINALIZER, LOCK_FINALIZER];

/// Removes the finalizers until a pass through all objects finds none. So what failed is tried again, as is a token that
/// somebody changed meanwhile.
pub async fn run(args: RemoveFinalizersArgs) -> anyhow::Result<()> {
    let client = Cluster::find("remove-finalizers").await?.client()?;
    let namespaces = match args.namespaces.as_slice() {
        [] => vec![None],
        named => named.iter().map(|name| Some(name.as_str())).collect(),
    };
    let mut removed = 0;
    for pass in 0..PASSES {
        if pass > 0 {
            tokio::time::sleep(BACKOFF.wait(pass)).await;
        }
        let mut is_done = true;
        for namespace in &namespaces {
            let found = [
                go_through::<ApiToken>(&client, *namespace, api, &mut removed).await,
                go_through::<TokenLock>(&client, *namespace, api, &mut removed).await,
            ];
            is_done &= found.into_iter().all(is_free);
        }
        if namespaces.contains(&None) {
            let all = |client: &Client, _: Option<&str>| Api::<ClusterTokenLock>::all(client.clone());
            is_done &= is_free(go_through(&client, None, all, &mut removed).await);
        }
        if is_done {
            info!(removed, "no object has a finalizer of tokenward");
            return Ok(());
        }
    }
    bail!(
        "{removed} removed, but some ApiTokens or locks still have a finalizer of tokenward; run this again"
    )
}

/// Whether a pass found nothing.
fn is_free(found: kube::Result<bool>) -> bool {
    match found {
        Ok(found) => !found,
        Err(error) => {
            warn!(error = message(&error), "not all objects can be listed");
            false
        }
    }
}

/// Returns whether any object of a kind had a finalizer of tokenward.
async fn go_through<K>(
    client: &Client,
    namespace: Option<&str>,
    api: impl Fn(&Client, Option<&str>) -> Api<K>,
    removed: &mut usize,
) -> kube::Result<bool>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let mut params = ListParams::default().limit(PAGE_SIZE);
    let mut found = false;
    loop {
        // One that can't be parsed has metadata too.
        let page = match api(client, namespace).list_metadata(&params).await {
            Ok(page) => page,
            // The CRD is gone, and with it every object.
            Err(error) if is_not_found(&error) => return Ok(found),
            Err(error) => return Err(error),
        };
        let with_finalizer = page.items.iter().filter(|object| has_finalizer(object));
        let writes = with_finalizer.map(|object| (object, api(client, object.namespace().as_deref())));
        let writes = stream::iter(writes).map(|(object, api)| remove(api, object));
        let results: Vec<bool> = writes.buffer_unordered(CONCURRENT).collect().await;
        if !results.is_empty() {
            found = true;
            *removed += results.iter().filter(|is_removed| **is_removed).count();
            info!(removed = *removed, "removing finalizers");
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(found),
        }
    }
}

fn has_finalizer<K>(object: &PartialObjectMeta<K>) -> bool {
    object.metadata.finalizers.iter().flatten().any(|finalizer| OWN.contains(&&**finalizer))
}

/// Removes tokenward's finalizers, and no other. Returns whether they are gone.
// Without failpoints: each write stands alone, so after a crash anywhere another run does the rest.
async fn remove<K>(api: Api<K>, object: &PartialObjectMeta<K>) -> bool
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let (namespace, name) =
        (object.metadata.namespace.as_deref(), object.metadata.name.as_deref().unwrap_or_default());
    let (params, patch) = finalizers_patch(&object.metadata, &OWN, None);
    match api.patch_metadata(name, &params, &patch).await {
        Ok(_) => true,
        Err(error) if is_not_found(&error) => true,
        Err(error) => {
            warn!(namespace, name, error = message(&error), "the finalizer could not be removed yet");
            false
        }
    }
}
