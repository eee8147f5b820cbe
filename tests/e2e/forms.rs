//! Installations with other values than the defaults.

use serde_json::json;

use crate::admission;
use crate::client::Client;
use crate::stage::Stage;
use testkit::eventually;

/// For clusters whose API server reaches nodes, but not pods. One replica, as there is one node.
pub async fn the_controller_serves_from_the_network_of_its_node(stage: &Stage) {
    stage.sh("kubectl label namespace tokenward --overwrite pod-security.kubernetes.io/enforce=privileged");
    let values = "controller.hostNetwork=true,controller.ports.admission=19443,controller.replicas=1";
    stage.sh(&format!("{UPGRADE} --reuse-values --set {values}"));
    stage.wait_for_rollout();
    let addresses = "kubectl get pods -n tokenward -l app.kubernetes.io/component=controller \
        -o 'jsonpath={.items[*].status.podIP} {.items[*].status.hostIP}'";
    eventually("one controller, at its node's address", async || {
        let addresses = stage.sh(addresses);
        match addresses.split_whitespace().collect::<Vec<_>>()[..] {
            [pod, host] if pod == host => Ok(()),
            _ => Err(addresses),
        }
    })
    .await;
    admission::the_api_server_calls_the_webhook_through_the_service(stage).await;
    stage.sh("helm rollback -n tokenward tokenward --wait --timeout 180s");
    stage.sh("kubectl label namespace tokenward --overwrite pod-security.kubernetes.io/enforce=restricted");
    stage.wait_for_rollout();
}

/// The last test: it limits the installation, which is cluster-wide before, to one namespace.
pub async fn only_the_watched_namespace_is_reconciled(stage: &Stage) {
    let shop = stage.namespace("shop").await;
    let elsewhere = stage.site.namespace("elsewhere").await;
    stage.sh(&format!("{UPGRADE} --set 'watchNamespaces={{{}}}'", shop.name));
    stage.wait_for_rollout();
    elsewhere.create("t", json!({"scopes": ["orders:read"]})).await;
    shop.active("t", json!({"scopes": ["orders:read"]})).await;
    let client = Client::mounting(stage, &shop, "t");
    client.answered(5).await;
    let answers = client.answers();
    assert!(answers.iter().all(|&status| status == Some(200)), "{answers:?}");
    assert_eq!(elsewhere.get("t").await.status, None, "that namespace is not watched");
    let of_cluster = stage.sh("kubectl get -o name -l app.kubernetes.io/instance=tokenward \
        clusterroles,clusterrolebindings,validatingwebhookconfigurations,validatingadmissionpolicies");
    assert!(!of_cluster.contains("tokenward"), "{of_cluster}");
}

const UPGRADE: &str = "helm upgrade tokenward charts/tokenward -n tokenward --wait --timeout 180s";
