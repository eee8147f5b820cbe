//! From an ApiToken to a pod, and from the pod's request to a response: minted, mounted, rotated, revoked.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::Client;
use crate::stage::{Stage, within};
use testkit::{TIMEOUT, eventually};
use tokenward_core::crd::ConditionType;

/// How long a kubelet may take to write a changed Secret into a file: at most two minutes, and some more.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(150);

/// The ApiToken and the pod of the examples, as in README. Only the image gets a tag, without which the kubelet would
/// pull it from a registry.
pub async fn the_example_pod_reads_its_token(stage: &Stage) {
    let space = stage.site.namespace("example").await;
    let namespace = &space.name;
    stage.sh(&format!("kubectl apply -n {namespace} -f examples/backend-prod.yaml"));
    stage.sh(&format!(
        "kubectl wait -n {namespace} --for=condition=Active apitoken/backend-prod --timeout=60s"
    ));
    stage.sh(&format!("kubectl apply -n {namespace} -f examples/pod.yaml"));
    let token = space.secret_of("backend-prod").await;
    eventually("the token's length in the pod's log", async || {
        let log = stage.try_sh(&format!("kubectl logs -n {namespace} backend")).1;
        if log.trim() == token.len().to_string() { Ok(()) } else { Err(log) }
    })
    .await;
}

pub async fn a_rotation_reaches_pods_and_no_check_fails(stage: &Stage) {
    let space = stage.namespace("rotation").await;
    let old = space.active("t", json!({"scopes": ["orders:read"]})).await;
    let file = Client::mounting(stage, &space, "t");
    let variable = Client::with_variable(stage, &space, "t");
    assert_eq!(file.exec("cat /run/secrets/tokenward/token"), old);
    assert_eq!(variable.variable(), old);
    eventually("answers", async || if file.answers().len() > 5 { Ok(()) } else { Err(String::new()) }).await;

    let start = Instant::now();
    space.patch("t", json!({"spec": {"rotation": {"trigger": "now"}}})).await;
    let new = space.version("t", 2).await;
    within(MOUNT_TIMEOUT, "new token in the file", || match file.exec("cat /run/secrets/tokenward/token") {
        token if token == new => Ok(()),
        token if token == old => Err("the old one".to_owned()),
        _ => Err("neither".to_owned()),
    })
    .await;
    eprintln!("rotation: the new token was in the pod's file after {:.1?}", start.elapsed());

    // A variable changes only by a restart, for which the overlap leaves time.
    assert_eq!(variable.variable(), old);
    variable.restart();
    assert_eq!(variable.variable(), new);

    let before = file.answers().len();
    eventually("responses to the new token", async || {
        if file.answers().len() > before + 20 { Ok(()) } else { Err(before.to_string()) }
    })
    .await;
    let answers = file.answers();
    let failed = answers.iter().filter(|&&status| status != Some(200)).count();
    eprintln!("rotation: {} checks by the pod through the Service, {failed} failed", answers.len());
    assert_eq!(failed, 0, "{answers:?}");
}

pub async fn a_revocation_is_seen_by_a_running_pod(stage: &Stage) {
    let space = stage.namespace("revocation").await;
    space.active("t", json!({"scopes": ["orders:read"]})).await;
    let client = Client::mounting(stage, &space, "t");
    eventually("an answer", async || match client.answers().last() {
        Some(Some(200)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;

    let start = Instant::now();
    space.patch("t", json!({"spec": {"revoked": true}})).await;
    within(TIMEOUT, "401", || match client.answers().last() {
        Some(Some(401)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    eprintln!("revocation: 401 in the pod's log after {:.1?}", start.elapsed());
    // By the EndpointSlices of the Service, and from pod to pod.
    let token = space.reason("t", ConditionType::Enforced, "Confirmed").await;
    let count = token.status.and_then(|status| status.revocation?.verifiers).expect("a count");
    assert!(count.asked >= 1 && count.confirmed == count.asked, "{count:?}");
    let seen = client.answers().len();
    eventually("more responses", async || {
        if client.answers().len() > seen + 20 { Ok(()) } else { Err(seen.to_string()) }
    })
    .await;
    let answers = client.answers();
    let first = answers.iter().position(|&status| status == Some(401)).expect("a denial");
    assert!(answers.iter().take(first).all(|&status| status == Some(200)), "{answers:?}");
    assert!(answers.iter().skip(first).all(|&status| status == Some(401)), "{answers:?}");
}
