//! The Secret of an ApiToken, pure: whether it is ours, and what its metadata and data should be.

mod data;
mod metadata;
mod ownership;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use data::{DesiredData, compose, wipe};
pub use metadata::SecretMetadata;
pub(super) use metadata::desired_metadata;
pub use ownership::{has_labels_of, inspect, is_controlled_by};

use crate::crd::ApiToken;
use crate::crd::labels::VELERO_RESTORE_LABEL;

/// The identity of an ApiToken.
struct Object<'a> {
    namespace: &'a str,
    name: &'a str,
    uid: &'a str,
    /// Whether Velero restored it, so that its uid is new.
    restored: bool,
}

impl<'a> Object<'a> {
    fn of(token: &'a ApiToken) -> Self {
        let metadata = &token.metadata;
        Self {
            namespace: metadata.namespace.as_deref().unwrap_or_default(),
            name: metadata.name.as_deref().unwrap_or_default(),
            uid: metadata.uid.as_deref().unwrap_or_default(),
            restored: metadata
                .labels
                .as_ref()
                .is_some_and(|labels| labels.contains_key(VELERO_RESTORE_LABEL)),
        }
    }
}

fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}
