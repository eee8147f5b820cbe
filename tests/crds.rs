//! `crds/` is what `tokenward crds` prints. No cluster.

use std::path::Path;

use tokenward::crd;

#[test]
fn crds_are_what_the_code_prints() {
    for (name, definition) in crd::all() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds").join(name);
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        let printed = crd::to_yaml(&definition).expect("a CRD is YAML");
        assert!(stored == printed, "{} differs: run `cargo run -- crds --dir crds`", path.display());
    }
}

/// A default in the schema would be written into stored objects, and Argo CD would report it as a difference.
#[test]
fn crds_have_no_defaults() {
    for (name, definition) in crd::all() {
        let yaml = crd::to_yaml(&definition).expect("a CRD is YAML");
        assert!(!yaml.contains("default:"), "{name}");
    }
}
