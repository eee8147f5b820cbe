//! What is stored: the two kinds of `tokenward.dev/v1alpha1`, their field documentation and their CEL rules.
//!
//! No behaviour lives here beyond accessors. The CRD carries no `default:`: a default written into the
//! stored object would be a difference from Git that Argo CD reports, so effective defaults are applied
//! where they are read (`lifecycle::spec`). Every string, list and map is bounded, which also keeps the
//! CEL rules within the API server's cost budget.

mod apitoken;
mod conditions;
mod duration;
mod status;
mod tokenwebhook;

pub use apitoken::{
    AnnotationValue, ApiToken, ApiTokenSpec, Constraints, Format, LabelValue, OnDelete, OnRevoke,
    OnSpecChange, Owner, RevocationReason, Rotation, SecretKeys, SecretSpec, SecretTemplate,
};
pub use conditions::{ConditionType, Conditions, Outcome, find as find_condition};
pub use duration::{DurationError, DurationString};
pub use status::{
    ApiTokenStatus, Phase, RevocationSource, RevocationStatus, RotationReason, RotationStatus, SecretRef,
    TokenVersion, VersionState,
};
pub use tokenwebhook::{
    Delivery, SecretKeyRef, Signing, SigningRotation, TokenWebhook, TokenWebhookSpec, TokenWebhookStatus,
    UrlFrom,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The API group of both kinds; also the prefix of every label and annotation that tokenward writes.
pub const GROUP: &str = "tokenward.dev";

/// Both CRDs, each with the file name under which `crds/` keeps it.
pub fn all() -> [(&'static str, CustomResourceDefinition); 2] {
    [("apitokens.yaml", ApiToken::crd()), ("tokenwebhooks.yaml", TokenWebhook::crd())]
}

/// Prints one CRD as the YAML document that `crds/` holds.
pub fn to_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_yaml::Error> {
    Ok(format!("# Printed by `tokenward crds`; do not edit.\n---\n{}", serde_yaml::to_string(crd)?))
}
