//! Install, upgrade and uninstall by Helm.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::helm::chart;
use crate::stage::{Stage, deployment};
use testkit::{Site, eventually};

pub async fn the_installed_processes_mint_and_check(stage: &Stage) {
    let space = stage.site.namespace("installed").await;
    let token = space.active("t", json!({"scopes": ["orders:read"]})).await;
    stage.verifier.answers(&token, "scope=orders:read", 200).await;
    stage.verifier.answers(&token, "scope=orders:delete", 403).await;
    space.patch("t", json!({"spec": {"revoked": true}})).await;
    stage.verifier.answers(&token, "scope=orders:read", 401).await;
    // Named by the Deployment's flags, and allowed by the service account's rights.
    let lease =
        stage.site.kubectl(&["get", "lease", "tokenward-controller", "-n", "tokenward", "-o", "json"]);
    assert!(lease.contains("\"holderIdentity\": \"a-pod\""), "{lease}");
}

/// The namespace enforces it, so the API server has checked each pod.
pub async fn pods_are_admitted_where_restricted_is_enforced(stage: &Stage) {
    for (role, replicas) in [("controller", 2), ("verifier", 2)] {
        let selector = format!("app.kubernetes.io/component={role}");
        eventually("pods", async || {
            let pods = stage.site.kubectl(&["get", "pods", "-n", "tokenward", "-l", &selector, "-o", "name"]);
            if pods.lines().count() >= replicas {
                return Ok(());
            }
            Err(stage.site.kubectl(&["get", "events", "-n", "tokenward"]))
        })
        .await;
    }
    let selected =
        ["get", "pods", "-n", "tokenward", "-l", "app.kubernetes.io/instance=tokenward", "-o", "json"];
    let pods: Value = serde_json::from_str(&stage.site.kubectl(&selected)).expect("JSON");
    for pod in pods["items"].as_array().expect("pods") {
        let container = &pod["spec"]["containers"][0]["securityContext"];
        assert_eq!(container["readOnlyRootFilesystem"], true, "{pod}");
        assert_eq!(pod["spec"]["securityContext"]["runAsUser"], 65532, "{pod}");
    }
}

/// Without its CA, a webhook configuration would deny or admit everything.
pub async fn an_upgrade_keeps_the_ca_bundle_and_mints_nothing(stage: &Stage) {
    let site = &stage.site;
    let space = site.namespace("upgraded").await;
    let token = space.active("t", json!({"scopes": ["a:b"]})).await;
    let before = space.get("t").await;
    // The controller has issued a certificate and written the bundle, with its own rights.
    let bundle = eventually("a bundle in each webhook", async || {
        let bundles: Vec<_> =
            webhooks(site).iter().map(|webhook| webhook["clientConfig"]["caBundle"].clone()).collect();
        let are_in = bundles.len() == 2 && bundles[0].is_string() && bundles[0] == bundles[1];
        if are_in { Ok(bundles[0].clone()) } else { Err(format!("{bundles:?}")) }
    })
    .await;
    for side in ["--server-side=true", "--server-side=false"] {
        let timeout = format!("admission.timeoutSeconds={}", if side.ends_with("true") { 7 } else { 8 });
        // Going back from server-side apply conflicts unless it is forced.
        let force = if side.ends_with("true") { "--force-conflicts=true" } else { "--force-conflicts=false" };
        stage.helm(&["upgrade", "tokenward", &chart(), "-n", "tokenward", "--set", &timeout, side, force]);
        for webhook in webhooks(site) {
            assert_eq!(webhook["clientConfig"]["caBundle"], bundle, "{side}: {webhook}");
            assert!(timeout.ends_with(&webhook["timeoutSeconds"].to_string()), "{side}: {webhook}");
        }
    }
    space.stays("t", Duration::from_secs(1)).await;
    assert_eq!(space.get("t").await.status, before.status);
    assert_eq!(space.secret_of("t").await, token);
    // Applying an unchanged Deployment restarts no pods.
    assert_eq!(deployment(site, "verifier")["metadata"]["generation"], 1);
}

fn webhooks(site: &Site) -> Vec<Value> {
    let stored = site.kubectl(&["get", "validatingwebhookconfiguration", "tokenward", "-o", "json"]);
    let stored: Value = serde_json::from_str(&stored).expect("JSON");
    stored["webhooks"].as_array().cloned().expect("webhooks")
}

pub async fn an_uninstall_keeps_what_cannot_be_recreated(stage: &Stage) {
    let site = &stage.site;
    let space = site.namespace("kept").await;
    let token = space.active("t", json!({"scopes": ["a:b"]})).await;
    let before = space.get("t").await.status.expect("a status");
    let pepper = |site: &testkit::Site| {
        site.kubectl(&[
            "get",
            "secret",
            "tokenward-pepper",
            "-n",
            "tokenward",
            "-o",
            "jsonpath={.metadata.uid}{.data}",
        ])
    };
    let pepper_before = pepper(site);

    let printed = stage.helm(&["uninstall", "tokenward", "-n", "tokenward"]);
    assert!(printed.contains("apitokens.tokenward.dev") && printed.contains("kept"), "{printed}");
    let left = site.kubectl(&[
        "get",
        "clusterroles,clusterrolebindings,validatingwebhookconfigurations,validatingadmissionpolicies",
        "-o",
        "name",
    ]);
    assert!(!left.contains("tokenward"), "{left}");
    assert_eq!(space.get("t").await.status.expect("a status"), before);
    assert_eq!(space.secret_of("t").await, token);
    assert_eq!(pepper(site), pepper_before);

    // A new installation continues with them. It has new service accounts, so the processes are started again.
    stage.helm(&["install", "tokenward", &chart(), "-n", "tokenward"]);
    let _controller = Stage::start_role(site, "controller").ready().await;
    let verifier = Stage::start_role(site, "verifier").ready().await;
    verifier.answers(&token, "scope=a:b", 200).await;
    space.patch("t", json!({"spec": {"rotation": {"trigger": "after"}}})).await;
    let rotated = space.version("t", 2).await;
    verifier.answers(&rotated, "scope=a:b", 200).await;
    verifier.answers(&token, "scope=a:b", 200).await;
    assert_eq!(space.get("t").await.status.expect("a status").token_id, before.token_id);
    let names: BTreeSet<_> =
        site.kubectl(&["get", "crds", "-o", "name"]).lines().map(str::to_owned).collect();
    assert!(names.iter().any(|name| name.ends_with("apitokens.tokenward.dev")), "{names:?}");
}
