//! The oldest Kubernetes that tokenward supports: one token's life, with the CRDs and their rules, minting, checks,
//! rotation and revocation. All other tests run on the newest.

use crate::{Shared, install, revocation, rotation, secret, spec};

pub async fn the_oldest_kubernetes_is_supported(shared: &Shared) {
    let version = shared.site.kubectl(&["version", "--output=json"]);
    let version: serde_json::Value = serde_json::from_str(&version).expect("JSON");
    assert_eq!(version["serverVersion"]["minor"], "33");
    spec::bad_specs_are_rejected_with_a_reason(shared).await;
    spec::one_way_fields_go_one_way(shared).await;
    install::every_example_becomes_active(shared).await;
    rotation::an_edit_rotates_with_an_overlap(shared).await;
    secret::a_deleted_secret_is_minted_again(shared).await;
    revocation::a_revocation_is_immediate_and_permanent(shared).await;
}
