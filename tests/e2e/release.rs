//! The installation over time: tested, upgraded, broken, uninstalled and installed again. Tokens survive all of it.

use serde_json::json;

use crate::client::Client;
use crate::stage::Stage;
use testkit::{Space, eventually};

pub async fn the_chart_s_own_test_passes(stage: &Stage) {
    let printed = stage.sh("helm test -n tokenward tokenward --timeout 120s");
    assert!(printed.contains("Phase:          Succeeded"), "{printed}");
}

/// Whatever it was that ended it.
pub async fn a_container_that_was_killed_goes_on_from_its_checkpoint(stage: &Stage) {
    let space = stage.namespace("killed").await;
    space.active("t", json!({"scopes": ["orders:read"]})).await;
    // However few tokens there are.
    stage.sh("helm upgrade tokenward charts/tokenward -n tokenward --reuse-values --wait --timeout 180s \
        --set 'verifier.extraArgs={--checkpoint-min-tokens=0}'");
    stage.wait_for_rollout();
    let newest = "--sort-by=.metadata.creationTimestamp -o 'jsonpath={.items[-1:].metadata.name}'";
    let pods = "kubectl get pods -n tokenward -l app.kubernetes.io/component=verifier";
    let pod = stage.sh(&format!("{pods} {newest}"));
    let pod = pod.trim();
    eventually("a checkpoint in its volume", async || {
        let metrics = stage
            .sh(&format!("kubectl get --raw /api/v1/namespaces/tokenward/pods/{pod}:9090/proxy/metrics"));
        let line = metrics.lines().find(|line| line.starts_with("tokenward_checkpoint_timestamp_seconds "));
        if line.is_some_and(|line| !line.ends_with(" 0")) { Ok(()) } else { Err(format!("{line:?}")) }
    })
    .await;
    stage.sh(&format!(
        "for process in $(pgrep -f 'tokenward verifier'); do
             if tr '\\0' '\\n' < /proc/$process/environ | grep -qx HOSTNAME={pod}; then kill -KILL $process; fi
         done"
    ));
    eventually("the container is started again", async || {
        let fields = "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}";
        let state = stage.sh(&format!("kubectl get pod -n tokenward {pod} -o 'jsonpath={fields}'"));
        if state.trim() == "1 true" { Ok(()) } else { Err(state) }
    })
    .await;
    let log = stage.sh(&format!("kubectl logs -n tokenward {pod}"));
    assert!(log.contains("what has happened since the checkpoint is known"), "{log}");
    assert!(!log.contains("listed ApiTokens"), "{log}");
}

pub async fn an_upgrade_mints_nothing_and_no_check_fails(stage: &Stage) {
    let space = stage.namespace("upgrade").await;
    space.active("t", json!({"scopes": ["orders:read"]})).await;
    let before = identity(&space).await;
    let client = Client::mounting(stage, &space, "t");
    client.answered(5).await;

    // Replaces every pod of both roles.
    stage.sh("helm upgrade tokenward charts/tokenward -n tokenward --reuse-values --wait --timeout 180s \
        --set-string controller.podAnnotations.release=2,verifier.podAnnotations.release=2");
    stage.wait_for_rollout();
    client.answered(20).await;

    let answers = client.answers();
    let failed = answers.iter().filter(|&&status| status != Some(200)).count();
    eprintln!("upgrade: {} checks while every pod was replaced, {failed} failed", answers.len());
    assert_eq!(failed, 0, "{answers:?}");
    assert_eq!(identity(&space).await, before);
    // The new leader rotates.
    space.active("u", json!({"scopes": ["orders:read"]})).await;
}

pub async fn an_image_that_can_t_be_pulled_stops_nothing(stage: &Stage) {
    let space = stage.namespace("image").await;
    space.active("t", json!({"scopes": ["orders:read"]})).await;
    let client = Client::mounting(stage, &space, "t");
    client.answered(5).await;

    let upgrade = "helm upgrade tokenward charts/tokenward -n tokenward --reuse-values --wait --timeout 20s";
    let (ok, said) = stage.try_sh(&format!("{upgrade} --set image.tag=absent"));
    assert!(!ok, "{said}");
    eventually("a pod without its image", async || {
        let pods = stage.sh("kubectl get pods -n tokenward");
        let reported = pods.contains("ErrImagePull") || pods.contains("ImagePullBackOff");
        if reported { Ok(()) } else { Err(pods) }
    })
    .await;
    client.answered(20).await;
    space.active("u", json!({"scopes": ["orders:read"]})).await;

    stage.sh("helm rollback -n tokenward tokenward --wait --timeout 180s");
    stage.wait_for_rollout();
    client.answered(20).await;
    let answers = client.answers();
    assert!(answers.iter().all(|&status| status == Some(200)), "{answers:?}");
}

pub async fn a_reinstall_picks_up_the_tokens(stage: &Stage) {
    let space = stage.namespace("reinstall").await;
    space.active("t", json!({"scopes": ["orders:read"]})).await;
    let before = identity(&space).await;
    let pepper = "kubectl get secret -n tokenward tokenward-pepper -o jsonpath={.metadata.uid}";
    let pepper_before = stage.sh(pepper);
    let client = Client::mounting(stage, &space, "t");
    client.answered(5).await;
    let webhook = r#"{"apiVersion": "tokenward.dev/v1alpha1", "kind": "TokenWebhook", "metadata": {"name": "audit"},
        "spec": {"url": "https://audit.example.com", "events": ["token.deleted"]}}"#;
    stage.sh(&format!("kubectl apply -n {} -f - <<'END'\n{webhook}\nEND", space.name));
    space.until("t", "a finalizer", |token| token.metadata.finalizers.is_some()).await;

    // Its Job removes the finalizer.
    stage.sh("helm uninstall -n tokenward tokenward --wait --timeout 120s");
    assert_eq!(space.get("t").await.metadata.finalizers, None);
    eventually("no pods of tokenward", async || {
        let pods = stage.sh("kubectl get pods -n tokenward -o name");
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    })
    .await;
    assert_eq!(identity(&space).await, before);
    let asked = client.answers().len();
    eventually("no answer", async || {
        let answers = client.answers();
        let last = answers.last().copied().flatten();
        if answers.len() > asked && last.is_none() { Ok(()) } else { Err(format!("{last:?}")) }
    })
    .await;

    // Only the last line of the install commands, as the namespace exists already.
    stage.sh("helm install tokenward charts/tokenward -n tokenward");
    stage.wait_for_rollout();
    eventually("responses again", async || match client.answers().last() {
        Some(Some(200)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(identity(&space).await, before);
    assert_eq!(stage.sh(pepper), pepper_before);
    space.active("u", json!({"scopes": ["orders:read"]})).await;
}

/// What must not change of a token: its id, its versions with their key ids and hashes, and the secret itself.
async fn identity(space: &Space) -> (Option<String>, String, String) {
    let status = space.get("t").await.status.expect("a status");
    let versions = status.versions.iter().map(|version| (version.version, &version.key_id, &version.hash));
    let versions = format!("{:?}", versions.collect::<Vec<_>>());
    (status.token_id, versions, space.secret_of("t").await)
}
