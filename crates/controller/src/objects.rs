//! The objects that the controller watches, as they are in its caches.

use k8s_openapi::api::core::v1::Secret;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use tokenward_core::crd::{ApiToken, TokenWebhook};

/// An ApiToken, or why the stored object can't be parsed.
pub(crate) type Token = DeserializeGuard<ApiToken>;
/// A TokenWebhook, likewise.
pub(crate) type Hook = DeserializeGuard<TokenWebhook>;
/// A Secret without its data.
pub(crate) type SecretMeta = PartialObjectMeta<Secret>;
