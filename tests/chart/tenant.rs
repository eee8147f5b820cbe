//! The chart for some namespaces only, installed by a user who has no rights in others.

use devcluster::Options;
use serde_json::{Value, json};

use crate::helm::{chart, helm, root};
use crate::install::{self, has_finalizers, subscribe_to_deletions};
use crate::stage::{self, cluster};
use tokenward_core::crd::labels::WEBHOOKS_FINALIZER;

pub async fn a_tenant_installs_with_rights_in_its_namespaces_alone() {
    let site = cluster(Options::default()).await;
    site.kubectl(&["apply", "--server-side", "-f", &root().join("crds").display().to_string()]);
    site.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]);
    let [operator, shop, billing, foreign] =
        ["operator", "shop", "billing", "foreign"].map(|name| site.namespace(name));
    let (operator, shop) = (operator.await, shop.await);
    let (billing, foreign) = (billing.await, foreign.await);
    // All rights there, since nobody can create a Role with rights that they lack; and none elsewhere.
    let tenant = site.cluster.kubeconfig_for_user("tenant", None).expect("a user");
    for space in [&operator, &shop, &billing] {
        let all = ["create", "rolebinding", "tenant", "--clusterrole=cluster-admin", "--user=tenant", "-n"];
        site.kubectl(&[&all, &[space.name.as_str()][..]].concat());
    }
    let watched = format!("watchNamespaces={{{},{}}}", shop.name, billing.name);
    let values = ["--set", &watched, "--set", "crds.enabled=false"];
    let install = ["install", "tenant", &chart(), "-n", &operator.name];
    helm(&tenant, &[&install[..], &values].concat());

    // Our processes as that release describes them.
    let stored = site.kubectl(&["get", "deployments", "-n", &operator.name, "-o", "json"]);
    let stored: Value = serde_json::from_str(&stored).expect("JSON");
    let start = |role: &str| {
        let name = format!("tenant-tokenward-{role}");
        let deployments = stored["items"].as_array().expect("Deployments");
        let deployment = deployments.iter().find(|item| item["metadata"]["name"] == name.as_str());
        let account = site.cluster.kubeconfig_for_service_account(&operator.name, &name).expect("an account");
        stage::start(deployment.expect("its Deployment"), role, &account)
    };
    let _controller = start("controller").ready().await;
    let verifier = start("verifier").ready().await;
    foreign.create("t", json!({"scopes": ["a:b"]})).await;
    foreign.patch("t", json!({"metadata": {"finalizers": [WEBHOOKS_FINALIZER]}})).await;
    subscribe_to_deletions(&shop).await;
    for space in [&shop, &billing] {
        let token = space.active("t", json!({"scopes": ["a:b"]})).await;
        verifier.answers(&token, "scope=a:b", 200).await;
        space.patch("t", json!({"spec": {"revoked": true}})).await;
        verifier.answers(&token, "scope=a:b", 401).await;
    }
    assert_eq!(foreign.get("t").await.status, None, "that namespace is not watched");
    let of_cluster = site.kubectl(&[
        "get",
        "clusterroles,clusterrolebindings,validatingwebhookconfigurations",
        "-o",
        "name",
    ]);
    assert!(!of_cluster.contains("tokenward"), "{of_cluster}");
    for account in ["controller", "verifier"] {
        let user = format!("--as=system:serviceaccount:{}:tenant-tokenward-{account}", operator.name);
        for right in [
            &["list", "apitokens.tokenward.dev", "-A"][..],
            &["list", "apitokens.tokenward.dev", "-n", &foreign.name],
            &["get", "secrets", "-n", &foreign.name],
            &["get", "secrets/another", "-n", &operator.name],
        ] {
            let (may, answer) = site.try_kubectl(&[&["auth", "can-i", &user], right].concat());
            assert!(!may, "{account} {right:?}: {answer}");
        }
    }

    has_finalizers(&shop, "t", &[WEBHOOKS_FINALIZER]).await;
    install::uninstall(&site, &tenant, "tenant-tokenward", &operator.name).await;
    has_finalizers(&shop, "t", &[]).await;
    has_finalizers(&foreign, "t", &[WEBHOOKS_FINALIZER]).await;
}
