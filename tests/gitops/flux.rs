//! What a team does by commits, reconciled as Flux's kustomize-controller does.

use std::time::Duration;

use serde_json::json;
use tokenward_core::crd::ConditionType;

use crate::Stage;
use crate::repository::Repository;

pub async fn waiting_ends_in_every_state(stage: &Stage) {
    let space = stage.site.namespace("flux-states").await;
    let repository = Repository::of_examples(&stage.site, &space.name).await;
    repository.add("suspended", &json!({"scopes": ["a:b"], "suspend": true}));
    repository.add("revoked", &json!({"scopes": ["a:b"], "revoked": true}));
    repository.add("expired", &json!({"scopes": ["a:b"], "expiresAt": "2020-01-01T00:00:00Z"}));
    repository.commit("every state that a manifest can ask for");
    let outcomes = repository.reconcile();
    assert_eq!(outcomes.len(), 5);
    assert!(outcomes.iter().all(|outcome| outcome.action == "created"), "{outcomes:?}");
    for (name, reason) in [("suspended", "Suspended"), ("revoked", "Revoked"), ("expired", "Expired")] {
        space.reason(name, ConditionType::Ready, reason).await;
    }
    space.condition("orders", ConditionType::Active, "True").await;

    // A stalled token ends the waiting too, with the reason.
    stage.site.kubectl(&["create", "secret", "generic", "taken", "-n", &space.name, "--from-literal=a=b"]);
    repository.add("stalled", &json!({"scopes": ["a:b"], "secret": {"name": "taken"}}));
    repository.commit("a Secret that is somebody else's");
    let complaint = repository.try_reconcile(&["-timeout=120s"]).expect_err("a failure");
    assert!(complaint.contains("stalled") && complaint.contains("Failed"), "{complaint}");
}

pub async fn what_leaves_git_is_pruned(stage: &Stage) {
    let space = stage.site.namespace("flux-prune").await;
    let repository = Repository::of_examples(&stage.site, &space.name).await;
    repository.reconcile();
    space.condition("reporting", ConditionType::Active, "True").await;
    std::fs::remove_file(repository.path("reporting.yaml")).expect("a file");
    repository.edit("kustomization.yaml", "  - reporting.yaml\n", "");
    repository.commit("reporting is no more");
    let outcomes = repository.reconcile();
    let deleted: Vec<_> = outcomes.iter().filter(|outcome| outcome.action == "deleted").collect();
    assert!(deleted.len() == 1 && deleted[0].object.ends_with("/reporting"), "{outcomes:?}");
    testkit::eventually("the Secret is gone with its token", async || {
        match space.secrets().get_opt("reporting-token").await.expect("an answer") {
            None => Ok(()),
            Some(secret) => Err(format!("{:?}", secret.metadata)),
        }
    })
    .await;
    // Flux's labels must not be copied to the Secret, or Flux would prune it.
    let secret = space.secrets().get("orders").await.expect("a Secret");
    let labels = secret.metadata.labels.unwrap_or_default();
    assert!(labels.keys().all(|label| !label.contains("fluxcd")), "{labels:?}");
}

pub async fn a_new_trigger_rotates_once_and_only_once(stage: &Stage) {
    let space = stage.site.namespace("flux-trigger").await;
    let repository = Repository::of_examples(&stage.site, &space.name).await;
    repository.reconcile();
    let first = space.version("orders", 1).await;
    repository.edit("orders.yaml", "\"2026-11-21\"", "INC-4711");
    repository.commit("a leak");
    repository.reconcile();
    let second = space.version("orders", 2).await;
    assert_ne!(first, second);
    for _ in 0..3 {
        let outcomes = repository.reconcile();
        assert!(outcomes.iter().all(|outcome| outcome.action == "unchanged"), "{outcomes:?}");
    }
    space.stays("orders", Duration::from_secs(2)).await;
    assert_eq!(space.version("orders", 2).await, second);
}

pub async fn a_rotation_in_an_open_overlap_delays_nobody(stage: &Stage) {
    let space = stage.site.namespace("flux-overlaps").await;
    let repository = Repository::of_examples(&stage.site, &space.name).await;
    repository.reconcile();
    space.version("orders", 1).await;
    repository.edit("orders.yaml", "\"2026-11-21\"", "INC-4712");
    repository.commit("an overlap of hours");
    repository.reconcile();
    space.version("orders", 2).await;
    repository.edit("orders.yaml", "orders:write]", "orders:write, orders:export]");
    repository.commit("one scope more, before the overlap has ended");
    repository.reconcile();
    space.version("orders", 3).await;
    assert!(repository.drift().is_empty());
}

pub async fn a_revocation_by_commit_ends_ready(stage: &Stage) {
    let space = stage.site.namespace("flux-revoke").await;
    let repository = Repository::of_examples(&stage.site, &space.name).await;
    repository.reconcile();
    space.version("orders", 1).await;
    repository.edit("orders.yaml", "spec:\n", "spec:\n  revoked: true\n  revocationReason: KeyCompromise\n");
    repository.commit("the key has leaked");
    repository.reconcile();
    space.reason("orders", ConditionType::Ready, "Revoked").await;
    assert!(repository.drift().is_empty());
    // After a revert in Git it stays revoked in the cluster, and the error says why.
    repository.edit("orders.yaml", "  revoked: true\n  revocationReason: KeyCompromise\n", "");
    repository.commit("take it back");
    let complaint = repository.try_reconcile(&[]).expect_err("a denial");
    assert!(complaint.contains("revoked"), "{complaint}");
    space.reason("orders", ConditionType::Ready, "Revoked").await;
}

pub async fn a_bad_commit_shows_the_api_server_s_message(stage: &Stage) {
    let space = stage.site.namespace("flux-bad").await;
    let repository = Repository::of_examples(&stage.site, &space.name).await;
    repository.reconcile();
    repository.edit("orders.yaml", "overlap: 2h", "overlap: 721h");
    repository.commit("an overlap that is longer than the interval");
    let complaint = repository.try_reconcile(&[]).expect_err("a denial");
    assert!(complaint.contains("overlap") && complaint.contains("interval"), "{complaint}");
    space.condition("orders", ConditionType::Active, "True").await;
}

pub async fn the_controller_causes_no_drift(stage: &Stage) {
    let space = stage.site.namespace("flux-drift").await;
    let repository = Repository::of_examples(&stage.site, &space.name).await;
    repository.add("revoked", &json!({"scopes": ["a:b"], "revoked": true}));
    repository.add("kept", &json!({"scopes": ["a:b"], "rotation": {"onSpecChange": "Keep"}}));
    repository.commit("one that is revoked, and one that is not rotated");
    repository.reconcile();
    for name in ["orders", "reporting", "kept"] {
        space.condition(name, ConditionType::Active, "True").await;
    }
    assert!(repository.drift().is_empty(), "{:?}", repository.drift());
    // A scope that was added by hand is detected, and removed.
    space.patch("kept", json!({"spec": {"scopes": ["a:b", "orders:delete"]}})).await;
    let drifted = repository.drift();
    assert!(drifted.len() == 1 && drifted[0].object.ends_with("/kept"), "a drift is seen: {drifted:?}");
    repository.reconcile();
    assert!(repository.drift().is_empty());
    assert_eq!(space.get("kept").await.spec.scopes, ["a:b"]);
}
