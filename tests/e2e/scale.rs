//! A namespace with many tokens.

use std::fmt::Write;
use std::time::Instant;

use serde_json::json;

use crate::stage::Stage;

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
    stage.sh(&format!(
        "kubectl wait -n {namespace} --for=condition=Active apitoken --all --timeout=600s >/dev/null"
    ));
    eprintln!("scale: all active {:.1?} after the first", start.elapsed());

    let start = Instant::now();
    stage.sh(&format!("kubectl delete namespace {namespace} --timeout=120s"));
    eprintln!("scale: the namespace with {TOKENS} tokens and Secrets was gone after {:.1?}", start.elapsed());
}
