//! Committed files that are generated from the code are up to date.

use std::path::Path;

use tokenward::manifests;
use tokenward_core::crd;
use tokenward_verifier::endpoints::openapi;

#[test]
fn crds_are_what_the_code_prints() {
    for (name, definition) in crd::all() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds").join(name);
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        let printed = manifests::yaml(&definition).expect("a CRD is YAML");
        assert!(stored == printed, "{} differs: run `cargo run -- crds --dir crds`", path.display());
    }
}

#[test]
fn the_openapi_document_is_what_the_code_prints() {
    let stored = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json"));
    let same = stored.unwrap_or_default() == openapi::json();
    assert!(same, "openapi.json differs: run `cargo run -- openapi > openapi.json`");
}

/// A default in the schema would be written into stored objects, and Argo CD would report it as a difference.
#[test]
fn crds_have_no_defaults() {
    for (name, definition) in crd::all() {
        let yaml = manifests::yaml(&definition).expect("a CRD is YAML");
        assert!(!yaml.contains("default:"), "{name}");
    }
}
