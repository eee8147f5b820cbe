//! Creates the pepper on the very first start, and fails if it was lost since.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, PostParams};
use kube::core::ObjectList;
use kube::{Api, Client, Resource, ResourceExt};
use thiserror::Error;
use tracing::info;

use crate::objects::{SecretMeta, TOKEN_SECRETS_SELECTOR, Token};
use crate::watches::api;
use tokenward_core::crd::labels::{PART_OF, PART_OF_VALUE, SEAL_ANNOTATION, WARNING_ANNOTATION};
use tokenward_core::token::{PepperError, Peppers};
use tokenward_runtime::cluster::error::{is_already_exists, is_not_found, message};
use tokenward_runtime::cluster::pepper::{PEPPER_SECRET, read};
use tokenward_runtime::entropy::{NoEntropy, random_bytes};

/// Objects in a page of the search for a hash or a seal.
const PAGE_SIZE: u32 = 50;

/// Why there is no pepper to work with.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// There is no pepper, and a new one would invalidate every token.
    #[error(
        "Secret {namespace}/{PEPPER_SECRET} is missing, but {found} that was made with it. A new pepper would invalidate \
         every token, so none is made. Restore the Secret from a backup. To discard all tokens instead, delete the \
         ApiTokens and their Secrets and start again"
    )]
    Missing { namespace: String, found: String },
    #[error("Secret {namespace}/{PEPPER_SECRET} can't be used: {source}. Restore it from a backup")]
    Damaged { namespace: String, source: PepperError },
    #[error("{attempt}: {}", message(.source))]
    Api { attempt: String, source: kube::Error },
    #[error(transparent)]
    Random(#[from] NoEntropy),
}

/// Makes sure that there is a pepper. Creates one only as long as no ApiToken has a hash in its status, and no Secret a seal.
pub(crate) async fn ensure(
    client: &Client,
    namespace: &str,
    watched: &[Option<String>],
) -> Result<(), Error> {
    let peppers = Api::<Secret>::namespaced(client.clone(), namespace);
    let attempt = |attempt: &str| {
        let attempt = format!("{attempt} Secret {namespace}/{PEPPER_SECRET}");
        move |source| Error::Api { attempt, source }
    };
    match peppers.get(PEPPER_SECRET).await {
        Ok(secret) => {
            read(secret).map_err(|source| Error::Damaged { namespace: namespace.to_owned(), source })?;
            return Ok(());
        }
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(attempt("reading")(error)),
    }
    for watched in watched {
        let watched = watched.as_deref();
        // In a restore, Secrets may come before statuses, and the pepper last.
        let found = match find_hash(client, watched).await? {
            Some(token) => Some(format!("ApiToken {token} carries a hash")),
            None => find_seal(client, watched).await?.map(|secret| format!("Secret {secret} carries a seal")),
        };
        if let Some(found) = found {
            return Err(Error::Missing { namespace: namespace.to_owned(), found });
        }
    }
    let pepper = random_bytes()?;
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(PEPPER_SECRET.to_owned()),
            labels: Some([(PART_OF.to_owned(), PART_OF_VALUE.to_owned())].into()),
            annotations: Some(
                [(
                    WARNING_ANNOTATION.to_owned(),
                    "Back this Secret up: without it, every token is invalid.".to_owned(),
                )]
                .into(),
            ),
            ..Default::default()
        },
        data: Some(
            Peppers::new_data(&pepper).into_iter().map(|(key, value)| (key, ByteString(value))).collect(),
        ),
        ..Default::default()
    };
    match peppers.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            info!(namespace, secret = PEPPER_SECRET, "created the pepper; back it up");
            Ok(())
        }
        // Another replica was faster.
        Err(error) if is_already_exists(&error) => Ok(()),
        Err(error) => Err(attempt("making")(error)),
    }
}

/// An ApiToken with a hash in its status, if there is one. One that can't be read may have one.
async fn find_hash(client: &Client, namespace: Option<&str>) -> Result<Option<String>, Error> {
    // One unreadable object must not make the whole list fail.
    let tokens: Api<Token> = api(client, namespace);
    let has_hash = |token: &Token| match &token.0 {
        Ok(token) => token.status.as_ref().is_some_and(|status| !status.versions.is_empty()),
        Err(_) => true,
    };
    find("listing ApiTokens", ListParams::default(), async |page| tokens.list(page).await, has_hash).await
}

/// A Secret with a seal, if there is one among those that are labelled as ours.
async fn find_seal(client: &Client, namespace: Option<&str>) -> Result<Option<String>, Error> {
    let secrets: Api<Secret> = api(client, namespace);
    let labelled = ListParams::default().labels(TOKEN_SECRETS_SELECTOR);
    let is_sealed = |secret: &SecretMeta| secret.annotations().contains_key(SEAL_ANNOTATION);
    find("listing Secrets", labelled, async |page| secrets.list_metadata(page).await, is_sealed).await
}

/// The first object for which `is_match` holds, as `namespace/name`. `list` gets a page.
async fn find<K: Resource + Clone>(
    attempt: &str,
    params: ListParams,
    list: impl AsyncFn(&ListParams) -> kube::Result<ObjectList<K>>,
    is_match: impl Fn(&K) -> bool,
) -> Result<Option<String>, Error> {
    let mut params = params.limit(PAGE_SIZE);
    loop {
        let page =
            list(&params).await.map_err(|source| Error::Api { attempt: attempt.to_owned(), source })?;
        if let Some(found) = page.items.iter().find(|object| is_match(object)) {
            return Ok(Some(format!("{}/{}", found.namespace().unwrap_or_default(), found.name_any())));
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(None),
        }
    }
}
