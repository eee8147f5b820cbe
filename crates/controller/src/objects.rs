//! The objects that the controller watches, as they are in its caches.

use k8s_openapi::api::core::v1::Secret;
use kube::Resource;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use serde_json::{Value, json};
use tokenward_core::crd::labels::TOKEN_LABEL;
use tokenward_core::crd::{ApiToken, TokenWebhook};

/// The field manager under which the API server records what the controller wrote.
pub(crate) const FIELD_MANAGER: &str = "tokenward";

/// An ApiToken, or why the stored object can't be parsed.
pub(crate) type Token = DeserializeGuard<ApiToken>;
/// A TokenWebhook, or why the stored object can't be parsed.
pub(crate) type Hook = DeserializeGuard<TokenWebhook>;
/// A Secret without its data.
pub(crate) type SecretMeta = PartialObjectMeta<Secret>;

/// The label selector of the Secrets that contain tokens, or whose owners let an ApiToken write into them.
pub(crate) const TOKEN_SECRETS_SELECTOR: &str = TOKEN_LABEL;

/// The parameters of a write.
pub(crate) fn params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() }
}

/// The resourceVersion of an object, as a number.
pub(crate) fn resource_version(object: &impl Resource) -> Option<u64> {
    object.meta().resource_version.as_deref()?.parse().ok()
}

/// A patch after which an object has, of these finalizers, only those that are wanted, and all of others.
pub(crate) fn finalizers_patch(
    metadata: &ObjectMeta,
    own: &[&str],
    wanted: Option<&str>,
) -> (PatchParams, Patch<Value>) {
    let others = metadata.finalizers.iter().flatten().map(String::as_str).filter(|name| !own.contains(name));
    let finalizers: Vec<&str> = others.chain(wanted).collect();
    // With the resourceVersion that was read, the patch fails if anybody has changed the list meanwhile.
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": metadata.resource_version}});
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
    (params, Patch::Merge(patch))
}

/// What identifies an ApiToken. The uid distinguishes it from an earlier one of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl TokenKey {
    /// `None`: a part is missing, so the object does not come from an API server.
    pub(crate) fn of(object: &impl Resource) -> Option<Self> {
        let metadata = object.meta();
        let (namespace, name, uid) = (&metadata.namespace, &metadata.name, &metadata.uid);
        Some(Self { namespace: namespace.clone()?, name: name.clone()?, uid: uid.clone()? })
    }
}
