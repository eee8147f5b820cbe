//! The oldest Kubernetes that tokenward supports, on which the path of every token is gone once: the CRDs with all
//! their rules, minting, checks, rotation and revocation. All other tests run on the newest.

use crate::{Shared, install, revocation, rotation, secret, spec};

pub async fn the_oldest_kubernetes_does_as_well(shared: &Shared) {
    let version = shared.site.kubectl(&["version", "--output=json"]);
    let version: serde_json::Value = serde_json::from_str(&version).expect("JSON");
    assert_eq!(version["serverVersion"]["minor"], "33");
    spec::bad_specs_are_refused_with_a_sentence(shared).await;
    spec::one_way_fields_go_one_way(shared).await;
    install::every_example_becomes_active(shared).await;
    rotation::an_edit_rotates_with_an_overlap(shared).await;
    secret::a_lost_secret_is_minted_anew(shared).await;
    revocation::a_revocation_is_at_once_and_for_good(shared).await;
}
