//! What is stored: the kinds of `tokenward.dev/v1alpha1`, their field documentation and their CEL rules.
//!
//! These types have no behaviour beyond accessors. The CRD carries no `default:`: a default written into the
//! stored object would be a difference from Git that Argo CD reports, so effective defaults are applied
//! where they are read (`lifecycle::spec`). Every string, list and map is bounded, so that the
//! CEL rules stay within the API server's cost budget.
//! Lists of what a token may do are atomic: in a set, an item that somebody adds by hand would be owned by them, and
//! Flux, which uses server-side apply, would neither see nor remove it.

#![allow(clippy::duplicated_attributes, reason = "each of kube's printcolumn attributes has the same keys")]

mod apitoken;
mod conditions;
mod duration;
mod event_type;
pub mod labels;
mod status;
mod tokenlock;
mod tokenwebhook;

pub use apitoken::{
    AnnotationValue, ApiToken, ApiTokenSpec, Constraints, CreationPolicy, DataValue, Format, LabelValue,
    OnDelete, OnRevoke, OnSpecChange, Owner, RevocationReason, Rotation, SecretKeys, SecretSpec,
    SecretTemplate, TemplateMetadata,
};
pub use conditions::{ConditionType, Conditions, Outcome, Reason, find as find_condition};
pub use duration::{DurationError, DurationString};
pub use event_type::EventType;
pub use status::{
    ApiTokenStatus, LockKind, LockRef, Outbox, OutboxEvent, Phase, RevocationSource, RevocationStatus,
    RotationReason, RotationStatus, SecretRef, TokenVersion, VerifierCount, VersionState,
};
pub use tokenlock::{
    AnyLock, ClusterTokenLock, ClusterTokenLockSpec, LockAction, LockMatch, LockSelector,
    LockSelectorOperator, LockSelectorRequirement, LockSpec, TokenLock, TokenLockSpec, TokenLockStatus,
};
pub use tokenwebhook::{
    DeadLetter, Delivery, SecretKeyRef, Signing, SigningAlgorithm, SigningRotation, StoredEvent, TokenHandle,
    TokenWebhook, TokenWebhookSpec, TokenWebhookStatus, UrlFrom,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube_core::CustomResourceExt;

/// Every CRD, each with the name of its file in `crds/`.
pub fn all() -> [(&'static str, CustomResourceDefinition); 4] {
    [
        ("apitokens.yaml", ApiToken::crd()),
        ("clustertokenlocks.yaml", ClusterTokenLock::crd()),
        ("tokenlocks.yaml", TokenLock::crd()),
        ("tokenwebhooks.yaml", TokenWebhook::crd()),
    ]
    .map(|(name, mut crd)| {
        for version in &mut crd.spec.versions {
            if let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) {
                unwrap_lines(schema);
            }
        }
        (name, crd)
    })
}

/// Joins the lines of each paragraph of the descriptions: where a source file breaks them means nothing to
/// `kubectl explain`, which breaks them itself.
fn unwrap_lines(schema: &mut JSONSchemaProps) {
    if let Some(description) = &mut schema.description {
        let paragraphs = description.split("\n\n").map(|paragraph| paragraph.replace('\n', " "));
        *description = paragraphs.collect::<Vec<_>>().join("\n\n");
    }
    schema.properties.iter_mut().flat_map(|properties| properties.values_mut()).for_each(unwrap_lines);
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => unwrap_lines(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(unwrap_lines),
        None => {}
    }
}
