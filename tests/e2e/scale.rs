//! A namespace with many tokens.

use std::fmt::Write;
use std::time::{Duration, Instant};

use kube::api::ListParams;
use serde_json::json;
use tokenward::crd::ConditionType;

use crate::stage::Stage;
use crate::support::has;

const TOKENS: usize = 1000;

pub async fn a_namespace_of_a_thousand_tokens_goes(stage: &Stage) {
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
    // Not by `kubectl wait`, which asks for one object after the other.
    let active = async || {
        let tokens = space.tokens().list(&ListParams::default()).await.expect("tokens");
        tokens.iter().filter(|token| has(token, ConditionType::Active, "True")).count()
    };
    while active().await < TOKENS {
        assert!(start.elapsed() < Duration::from_secs(600), "{} are active", active().await);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    eprintln!("scale: all active {:.1?} after the first", start.elapsed());

    let start = Instant::now();
    stage.sh(&format!("kubectl delete namespace {namespace} --timeout=120s"));
    eprintln!("scale: the namespace with {TOKENS} tokens and Secrets was gone after {:.1?}", start.elapsed());
}
