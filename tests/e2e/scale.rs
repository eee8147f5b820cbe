//! A namespace with many tokens.

use std::fmt::Write;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ListParams, ObjectMeta, PostParams};
use serde_json::json;
use tokenward_core::crd::ConditionType;

use crate::stage::Stage;
use testkit::has;

const TOKENS: usize = 1000;

pub async fn a_namespace_of_a_thousand_tokens_is_deleted(stage: &Stage) {
    let space = stage.site.namespace("thousand").await;
    let namespace = &space.name;
    let manifest = (0..TOKENS).fold(String::new(), |mut text, number| {
        let object = json!({
            "apiVersion": "tokenward.dev/v1alpha1",
            "kind": "ApiToken",
            "metadata": { "name": format!("t{number}") },
            "spec": { "scopes": ["orders:read"] },
        });
        let _ = writeln!(text, "---\n{object}");
        text
    });
    let file = stage.site.cluster.dir().join("thousand.yaml");
    std::fs::write(&file, manifest).expect("a file");
    let start = Instant::now();
    stage.sh(&format!("kubectl create -n {namespace} -f {} >/dev/null", file.display()));
    eprintln!("scale: {TOKENS} tokens applied by kubectl in {:.1?}", start.elapsed());
    // Not by `kubectl wait`, which waits for one object after the other.
    let active = async || {
        let tokens = space.tokens().list(&ListParams::default()).await.expect("tokens");
        tokens.iter().filter(|token| has(token, ConditionType::Active, "True")).count()
    };
    while active().await < TOKENS {
        assert!(start.elapsed() < Duration::from_secs(600), "{} are active", active().await);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    eprintln!("scale: all active {:.1?} after the first", start.elapsed());

    let ours = time_to_delete(stage, namespace);
    let others = time_to_delete_others(stage).await;
    eprintln!(
        "scale: the namespace of {TOKENS} tokens was gone after {ours:.1?}, one of as many ConfigMaps after {others:.1?}"
    );
}

/// Deletes a namespace; returns how long that took.
fn time_to_delete(stage: &Stage, namespace: &str) -> Duration {
    let start = Instant::now();
    stage.sh(&format!("kubectl delete namespace {namespace} --timeout=120s"));
    start.elapsed()
}

/// The baseline: the same with as many objects that nobody reconciles, in place of tokens, Secrets and Events.
async fn time_to_delete_others(stage: &Stage) -> Duration {
    let space = stage.site.namespace("thousand-others").await;
    let objects: Api<ConfigMap> = Api::namespaced(space.tokens().into_client(), &space.name);
    let objects = &objects;
    stream::iter(0..3 * TOKENS)
        .for_each_concurrent(16, |number| async move {
            let metadata = ObjectMeta { name: Some(format!("o{number}")), ..Default::default() };
            let object = ConfigMap { metadata, ..Default::default() };
            objects.create(&PostParams::default(), &object).await.expect("a ConfigMap");
        })
        .await;
    time_to_delete(stage, &space.name)
}
