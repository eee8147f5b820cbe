//! Install, upgrade and uninstall by Helm.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::helm::{chart, helm};
use crate::stage::{Stage, deployment};
use testkit::{Process, Site, Space, eventually};
use tokenward_core::crd::labels::WEBHOOKS_FINALIZER;
use tokenward_core::crd::{ApiToken, TokenWebhook};

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
        let are_in = bundles.len() == 4
            && bundles[0].is_string()
            && bundles.iter().all(|bundle| *bundle == bundles[0]);
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
    subscribe_to_deletions(&space).await;
    space.patch("t", json!({"metadata": {"finalizers": ["example.com/theirs", WEBHOOKS_FINALIZER]}})).await;
    // More than a page.
    let emptied = site.namespace("emptied").await;
    subscribe_to_deletions(&emptied).await;
    for number in 0..60 {
        emptied.create(&format!("t{number}"), json!({"scopes": ["a:b"]})).await;
    }
    for number in 0..60 {
        has_finalizers(&emptied, &format!("t{number}"), &[WEBHOOKS_FINALIZER]).await;
    }
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

    // The stage's controller still runs, as one whose pod has not ended yet.
    let (printed, log) = uninstall(site, site.cluster.kubeconfig(), "tokenward", "tokenward").await;
    assert!(log.contains(r#""removed":61"#), "{log}");
    assert!(printed.contains("apitokens.tokenward.dev") && printed.contains("kept"), "{printed}");
    let left = site.kubectl(&[
        "get",
        "clusterroles,clusterrolebindings,validatingwebhookconfigurations,validatingadmissionpolicies,\
            serviceaccounts,networkpolicies,jobs",
        "-A",
        "-o",
        "name",
    ]);
    assert!(!left.contains("tokenward"), "{left}");
    assert_eq!(space.get("t").await.status.expect("a status"), before);
    assert_eq!(space.secret_of("t").await, token);
    assert_eq!(pepper(site), pepper_before);
    has_finalizers(&space, "t", &["example.com/theirs"]).await;
    site.delete_namespace(&emptied).await;

    // A new installation continues with them. It has new service accounts, so the processes are started again.
    stage.helm(&["install", "tokenward", &chart(), "-n", "tokenward"]);
    let _controller = Stage::start_role(site, "controller").ready().await;
    let verifier = Stage::start_role(site, "verifier").ready().await;
    verifier.answers(&token, "scope=a:b", 200).await;
    has_finalizers(&space, "t", &["example.com/theirs", WEBHOOKS_FINALIZER]).await;
    space.patch("t", json!({"spec": {"rotation": {"trigger": "after"}}})).await;
    let rotated = space.version("t", 2).await;
    verifier.answers(&rotated, "scope=a:b", 200).await;
    verifier.answers(&token, "scope=a:b", 200).await;
    assert_eq!(space.get("t").await.status.expect("a status").token_id, before.token_id);
    let names: BTreeSet<_> =
        site.kubectl(&["get", "crds", "-o", "name"]).lines().map(str::to_owned).collect();
    assert!(names.iter().any(|name| name.ends_with("apitokens.tokenward.dev")), "{names:?}");
}

/// Uninstalls a release whose objects' names begin with `fullname`. Its Job is created and does not run, as there is no node:
/// our process runs instead, as the Job says and with its rights. Returns what Helm printed, and the process's log.
pub async fn uninstall(site: &Site, user: &Path, fullname: &str, namespace: &str) -> (String, String) {
    let release = fullname.trim_end_matches("-tokenward");
    let (user, args) = (user.to_owned(), ["uninstall", release, "-n", namespace].map(str::to_owned));
    let helm = tokio::task::spawn_blocking(move || helm(&user, &args.each_ref().map(String::as_str)));
    let name = format!("{fullname}-remove-finalizers");
    let jobs = Api::<Job>::namespaced(site.client.clone(), namespace);
    let job = eventually("the Job", async || jobs.get(&name).await.map_err(|error| error.to_string())).await;
    let pod = job.spec.and_then(|spec| spec.template.spec).expect("a pod");
    let account = pod.service_account_name.clone().expect("an account");
    let arguments = pod.containers[0].args.clone().expect("arguments");
    // By a dry run, which includes the Pod Security Standard of the namespace.
    let metadata = ObjectMeta { name: Some(name.clone()), ..Default::default() };
    let pod = Pod { metadata, spec: Some(pod), ..Default::default() };
    let pods = Api::<Pod>::namespaced(site.client.clone(), namespace);
    pods.create(&PostParams { dry_run: true, ..Default::default() }, &pod).await.expect("a pod");

    let account = site.cluster.kubeconfig_for_service_account(namespace, &account).expect("an account");
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let mut process = Process::start(arguments[0], &account, &[], &arguments[1..], &[]);
    assert_eq!(process.ended().await, Some(0), "{}", process.log());
    let now = jiff::Timestamp::now();
    let complete = json!({"status": {
        "startTime": now, "completionTime": now, "succeeded": 1,
        "conditions": [{"type": "SuccessCriteriaMet", "status": "True"}, {"type": "Complete", "status": "True"}],
    }});
    jobs.patch_status(&name, &PatchParams::default(), &Patch::Merge(complete)).await.expect("a status");
    (helm.await.expect("Helm"), process.log())
}

/// Without the right to remove a finalizer, the command says so and fails.
pub async fn finalizers_that_stay_are_an_error(stage: &Stage) {
    let space = stage.site.namespace("stays").await;
    subscribe_to_deletions(&space).await;
    space.create("t", json!({"scopes": ["a:b"]})).await;
    has_finalizers(&space, "t", &[WEBHOOKS_FINALIZER]).await;
    let account = stage.site.rights_of("tokenward-verifier");
    let namespaces = ["--namespaces", &space.name];
    let mut process = Process::start("remove-finalizers", &account, &[], &namespaces, &[]);
    assert_eq!(process.ended().await, Some(1), "{}", process.log());
    let log = process.log();
    assert!(log.contains("the finalizer could not be removed yet") && log.contains("cannot patch"), "{log}");
    assert!(log.contains("some ApiTokens or locks still have a finalizer"), "{log}");
}

/// Makes the controller put its finalizer on the namespace's tokens.
pub async fn subscribe_to_deletions(space: &Space) {
    let webhook = json!({
        "metadata": {"name": "audit", "namespace": space.name},
        "spec": {"url": "https://audit.example.com", "events": ["token.deleted"]},
    });
    let webhook = serde_json::from_value(webhook).expect("a TokenWebhook");
    let webhooks = Api::<TokenWebhook>::namespaced(space.client.clone(), &space.name);
    webhooks.create(&PostParams::default(), &webhook).await.expect("a TokenWebhook");
}

/// Waits until a token has these finalizers.
pub async fn has_finalizers(space: &Space, name: &str, expected: &[&str]) {
    let found = |token: &ApiToken| token.metadata.finalizers.clone().unwrap_or_default();
    space.until(name, "finalizers", |token| found(token) == expected).await;
}
