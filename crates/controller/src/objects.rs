//! The objects that the controller watches, as they are in its caches.

use k8s_openapi::api::core::v1::Secret;
use kube::Resource;
use kube::core::{DeserializeGuard, PartialObjectMeta};
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
