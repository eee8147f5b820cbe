//! The pepper's first start, and the stop when it is missing.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, PostParams};
use kube::core::DeserializeGuard;
use kube::{Api, Client};
use rand::TryRng;
use rand::rngs::SysRng;
use thiserror::Error;
use tracing::info;
use zeroize::Zeroizing;

use tokenward_core::crd::ApiToken;
use tokenward_core::crd::labels::WARNING_ANNOTATION;
use tokenward_core::token::{PepperError, Peppers};
use tokenward_runtime::cluster::error::{is_already_exists, is_not_found, message};
use tokenward_runtime::cluster::pepper::{PEPPER_SECRET, read};

/// How many tokens are read at once while looking for one that has a hash.
const PAGE: u32 = 500;

/// Why there is no pepper to work with.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// It is missing, and a new one would kill every token.
    #[error(
        "Secret {namespace}/{PEPPER_SECRET} is missing, but ApiToken {example} carries a hash that was made with it. \
         A new pepper would kill every token, so none is made. Restore the Secret from a backup. To give all tokens \
         up instead, delete the ApiTokens and start again"
    )]
    Missing { namespace: String, example: String },
    /// It is there, and not usable.
    #[error("Secret {namespace}/{PEPPER_SECRET} can't be used: {source}. Restore it from a backup")]
    Damaged { namespace: String, source: PepperError },
    /// The API server's answer.
    #[error("{attempt}: {}", message(.source))]
    Api { attempt: String, source: kube::Error },
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes: {0}")]
    Random(String),
}

/// Makes sure that there is a pepper. Makes one on the very first start, and only then: as long as no ApiToken
/// carries a hash.
pub(crate) async fn ensure(client: &Client, namespace: &str, tokens: &[Api<ApiToken>]) -> Result<(), Error> {
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    let attempt = |attempt: &str| {
        let attempt = format!("{attempt} Secret {namespace}/{PEPPER_SECRET}");
        move |source| Error::Api { attempt, source }
    };
    match api.get(PEPPER_SECRET).await {
        Ok(secret) => {
            read(secret).map_err(|source| Error::Damaged { namespace: namespace.to_owned(), source })?;
            return Ok(());
        }
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(attempt("reading")(error)),
    }
    for api in tokens {
        if let Some(example) = find_hash(api).await? {
            return Err(Error::Missing { namespace: namespace.to_owned(), example });
        }
    }
    let mut pepper = Zeroizing::new([0; 32]);
    SysRng.try_fill_bytes(&mut *pepper).map_err(|error| Error::Random(error.to_string()))?;
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(PEPPER_SECRET.to_owned()),
            labels: Some([("app.kubernetes.io/part-of".to_owned(), "tokenward".to_owned())].into()),
            annotations: Some(
                [(
                    WARNING_ANNOTATION.to_owned(),
                    "Back this Secret up: without it, every token is dead.".to_owned(),
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
    match api.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            info!(namespace, secret = PEPPER_SECRET, "made the pepper, on this very first start; back it up");
            Ok(())
        }
        // Another replica was faster.
        Err(error) if is_already_exists(&error) => Ok(()),
        Err(error) => Err(attempt("making")(error)),
    }
}

/// An ApiToken with a hash in its status, if there is one. One that can't be read may have one.
async fn find_hash(api: &Api<ApiToken>) -> Result<Option<String>, Error> {
    // The guard keeps one unreadable object from hiding the others.
    let api: Api<DeserializeGuard<ApiToken>> = match api.namespace() {
        Some(namespace) => Api::namespaced(api.clone().into_client(), namespace),
        None => Api::all(api.clone().into_client()),
    };
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api
            .list(&params)
            .await
            .map_err(|source| Error::Api { attempt: "listing ApiTokens".to_owned(), source })?;
        let carries = |token: &DeserializeGuard<ApiToken>| match &token.0 {
            Ok(token) => token.status.as_ref().is_some_and(|status| !status.versions.is_empty()),
            Err(_) => true,
        };
        if let Some(token) = page.items.iter().find(|token| carries(token)) {
            let metadata = kube::Resource::meta(token);
            let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
            return Ok(Some(format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default())));
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(None),
        }
    }
}
