//! The manifests that users install and copy, unchanged.

use std::path::Path;

use crate::Shared;

pub async fn every_example_becomes_active(shared: &Shared) {
    let space = shared.site.namespace("examples").await;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let examples = std::fs::read_dir(dir).expect("examples").map(|entry| entry.expect("an entry").path());
    let examples: Vec<_> = examples.filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    assert!(examples.len() >= 4);
    for example in examples {
        shared.site.kubectl(&["apply", "-n", &space.name, "-f", &example.display().to_string()]);
    }
    shared.site.kubectl(&[
        "wait",
        "-n",
        &space.name,
        "--for=condition=Active",
        "apitokens",
        "--all",
        "--timeout=30s",
    ]);
    let wide = shared.site.kubectl(&["get", "atok", "-n", &space.name, "-o", "wide"]);
    for name in ["backend-prod", "ci-staging", "data-pipeline-dev"] {
        assert!(wide.contains(name), "{wide}");
    }
}

/// The examples of locks, over the tokens that they are meant for and one that they are not.
pub async fn every_example_of_a_lock_stops_what_it_says(shared: &Shared) {
    let space = shared.site.namespace("lock-examples").await;
    let spec = |team: &str| serde_json::json!({"scopes": ["a:b"], "owner": {"team": team}});
    let meant = space.active("meant", spec("payments")).await;
    let other = space.active("other", spec("search")).await;
    shared.verifier.answers(&meant, "", 200).await;
    let locks = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/locks");
    let incident = locks.join("incident.yaml").display().to_string();
    shared.site.kubectl(&["apply", "-n", &space.name, "-f", &incident]);
    shared.verifier.answers(&meant, "", 401).await;
    assert_eq!(shared.verifier.check(&other, "").await, 200);
    let wait = ["wait", "-n", &space.name, "--for=condition=Ready", "tokenlock/incident-7", "--timeout=30s"];
    shared.site.kubectl(&wait);
    shared.site.kubectl(&["delete", "-n", &space.name, "-f", &incident]);
    shared.verifier.answers(&meant, "", 200).await;
    // It names namespaces of its own.
    let leak = locks.join("leak.yaml").display().to_string();
    shared.site.kubectl(&["apply", "-f", &leak]);
    let wait = ["wait", "--for=condition=Ready", "clustertokenlock/build-log-2026-11", "--timeout=30s"];
    shared.site.kubectl(&wait);
    assert_eq!(shared.verifier.check(&meant, "").await, 200);
    shared.site.kubectl(&["delete", "-f", &leak, "--timeout=30s"]);
}

pub async fn columns_and_explanations_read_well(shared: &Shared) {
    let space = shared.site.namespace("columns").await;
    space.active("t", serde_json::json!({"scopes": ["a:b"], "rotation": {"interval": "720h"}})).await;
    let head = |args: &[&str]| shared.site.kubectl(args).lines().next().unwrap_or_default().to_owned();
    let columns = head(&["get", "apitokens", "-n", &space.name]);
    assert_eq!(
        columns.split_whitespace().collect::<Vec<_>>(),
        ["NAME", "STATUS", "ACTIVE", "VERSION", "EXPIRES", "AGE"]
    );
    let wide = head(&["get", "tokenward", "-n", &space.name, "-o", "wide"]);
    assert!(wide.contains("NEXT-ROTATION") && wide.contains("SECRET") && wide.contains("REASON"), "{wide}");
    let explained = shared.site.kubectl(&["explain", "tokenlock.spec.match"]);
    for words in ["At least one is", "ci- matches ci-staging", "orders:* matches those with orders:read"] {
        assert!(explained.split_whitespace().collect::<Vec<_>>().join(" ").contains(words), "{explained}");
    }
    let explained = shared.site.kubectl(&["explain", "apitoken.spec.rotation"]);
    for words in ["Default 1h", "at least 10s", "Any change of this text rotates once", "enum: Rotate, Keep"]
    {
        assert!(explained.to_lowercase().contains(&words.to_lowercase()), "{explained}");
    }
    let explained = shared.site.kubectl(&["explain", "apitoken.spec.secret.creationPolicy"]);
    let explained = explained.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in ["Immutable", "ENUM: Owner Merge", "must have the label"] {
        assert!(explained.contains(words), "{explained}");
    }
}

pub async fn the_verifier_can_read_no_token(shared: &Shared) {
    let space = shared.site.namespace("rights").await;
    space.active("t", serde_json::json!({"scopes": ["a:b"]})).await;
    let verifier = testkit::client_of(&shared.site.rights_of("tokenward-verifier")).await;
    let secrets: kube::Api<k8s_openapi::api::core::v1::Secret> =
        kube::Api::namespaced(verifier.clone(), &space.name);
    let denied = secrets.get("t").await.expect_err("a denial").to_string();
    assert!(denied.contains("forbidden"), "{denied}");
    let denied = secrets.list(&Default::default()).await.expect_err("a denial").to_string();
    assert!(denied.contains("forbidden"), "{denied}");
    let tokens: kube::Api<tokenward_core::crd::ApiToken> = kube::Api::namespaced(verifier, &space.name);
    let mut token = tokens.get("t").await.expect("an ApiToken");
    token.spec.suspend = Some(true);
    let denied = tokens.replace("t", &Default::default(), &token).await.expect_err("a denial").to_string();
    assert!(denied.contains("forbidden"), "{denied}");
}
