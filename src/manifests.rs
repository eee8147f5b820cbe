//! The CRDs as they are in `crds/` and in the chart.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

/// One CRD as a YAML document.
pub fn yaml(crd: &CustomResourceDefinition) -> Result<String, serde_yaml::Error> {
    Ok(format!("# Printed by `tokenward crds`; do not edit.\n---\n{}", serde_yaml::to_string(crd)?))
}
