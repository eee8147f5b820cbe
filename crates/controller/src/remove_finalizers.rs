//! Removes the finalizer from all ApiTokens once no controller runs any more, as after an uninstall. With it neither they
//! nor their namespaces could be deleted.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use futures::{StreamExt, stream};
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tracing::{info, warn};

use crate::objects::FIELD_MANAGER;
use crate::watches::api;
use tokenward_core::crd::ApiToken;
use tokenward_core::crd::labels::WEBHOOKS_FINALIZER;
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
    /// Namespaces with the ApiTokens, separated by commas [default: all]
    #[arg(long, value_delimiter = ',')]
    pub namespaces: Vec<String>,
}

/// Removes the finalizer until a pass through all ApiTokens finds none. So what failed is tried again, as is a token that
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
            match go_through(&client, *namespace, &mut removed).await {
                Ok(found) => is_done &= !found,
                Err(error) => {
                    warn!(namespace, error = message(&error), "ApiTokens can't be listed");
                    is_done = false;
                }
            }
        }
        if is_done {
            info!(removed, "no ApiToken has the finalizer {WEBHOOKS_FINALIZER}");
            return Ok(());
        }
    }
    bail!(
        "{removed} removed, but some ApiTokens still have the finalizer {WEBHOOKS_FINALIZER}; run this again"
    )
}

/// Returns whether any ApiToken had the finalizer.
async fn go_through(client: &Client, namespace: Option<&str>, removed: &mut usize) -> kube::Result<bool> {
    let tokens: Api<ApiToken> = api(client, namespace);
    let mut params = ListParams::default().limit(PAGE_SIZE);
    let mut found = false;
    loop {
        // One that can't be parsed has metadata too.
        let page = tokens.list_metadata(&params).await?;
        let with_finalizer = page.items.iter().filter(|token| has_finalizer(token));
        let writes = stream::iter(with_finalizer).map(|token| remove(client, token));
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

fn has_finalizer(token: &PartialObjectMeta<ApiToken>) -> bool {
    token.finalizers().iter().any(|finalizer| finalizer == WEBHOOKS_FINALIZER)
}

/// Removes tokenward's finalizer, and no other. Returns whether it is gone.
// Without failpoints: each write stands alone, so after a crash anywhere another run does the rest.
async fn remove(client: &Client, token: &PartialObjectMeta<ApiToken>) -> bool {
    let (namespace, name) = (token.namespace().unwrap_or_default(), token.name_any());
    let others: Vec<_> = token.finalizers().iter().filter(|name| *name != WEBHOOKS_FINALIZER).collect();
    // With the resourceVersion that was read, the patch fails if anybody has changed the list meanwhile.
    let patch = json!({"metadata": {"finalizers": others, "resourceVersion": token.resource_version()}});
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
    let tokens: Api<ApiToken> = api(client, Some(&namespace));
    match tokens.patch_metadata(&name, &params, &Patch::Merge(patch)).await {
        Ok(_) => true,
        Err(error) if is_not_found(&error) => true,
        Err(error) => {
            warn!(namespace, name, error = message(&error), "the finalizer could not be removed yet");
            false
        }
    }
}
