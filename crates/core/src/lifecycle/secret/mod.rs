//! The Secret of an ApiToken, pure: whether it is ours, and what its metadata and data should be.

mod data;
mod metadata;
mod ownership;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use data::{DesiredData, compose, wipe};
pub(super) use metadata::desired_metadata;
pub use metadata::{SecretMetadata, repairs};
pub use ownership::{consents, has_labels_of, inspect, is_controlled_by};

use crate::crd::ApiToken;

/// The identity of an ApiToken.
struct Object<'a> {
    namespace: &'a str,
    name: &'a str,
    uid: &'a str,
}

impl<'a> Object<'a> {
    fn of(token: &'a ApiToken) -> Self {
        let metadata = &token.metadata;
        Self {
            namespace: metadata.namespace.as_deref().unwrap_or_default(),
            name: metadata.name.as_deref().unwrap_or_default(),
            uid: metadata.uid.as_deref().unwrap_or_default(),
        }
    }
}

fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}
