//! The objects that the controller watches, in the form in which its caches have them.

use k8s_openapi::api::core::v1::Secret;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use tokenward_core::crd::{ApiToken, TokenWebhook};

/// An ApiToken, or the reason why one that the API server holds cannot be read.
pub(crate) type Token = DeserializeGuard<ApiToken>;
/// A TokenWebhook, likewise.
pub(crate) type Hook = DeserializeGuard<TokenWebhook>;
/// A Secret without its data.
pub(crate) type SecretMeta = PartialObjectMeta<Secret>;
