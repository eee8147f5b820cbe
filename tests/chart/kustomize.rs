//! kustomize, as kubectl has it, on what users give to it.

use std::fs;
use std::path::Path;
use std::process::Command;

use devcluster::Options;
use serde_json::{Value, json};

use crate::helm::{objects, root};
use crate::install::{has_finalizers, subscribe_to_deletions};
use crate::stage::{self, Stage, cluster};
use testkit::Site;
use tokenward_core::crd::labels::WEBHOOKS_FINALIZER;

/// `deploy/` as a base, in a namespace of its own, with the processes and their rights.
pub async fn it_moves_everything_into_another_namespace() {
    let site = cluster(Options::default()).await;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    copy(&root().join("deploy"), &folder.path().join("base"));
    let overlay = folder.path().join("overlay");
    fs::create_dir(&overlay).expect("a folder");
    fs::write(overlay.join("kustomization.yaml"), "namespace: infra\nresources: [../base]\n")
        .expect("a file");
    let rendered = build(&site, &overlay);
    for object in objects(&rendered) {
        let namespaces = [&object["metadata"]["namespace"], &object["subjects"][0]["namespace"]];
        for namespace in namespaces.into_iter().filter(|namespace| !namespace.is_null()) {
            assert!(*namespace == "infra" || *namespace == "kube-system", "{object}");
        }
    }
    assert!(!rendered.contains(":tokenward:"), "a policy names the former namespace");
    site.kubectl(&["create", "namespace", "infra"]);
    let apply = ["apply", "--server-side", "-k", &overlay.display().to_string()];
    // The first time, its kinds may not be served yet.
    let _ = site.try_kubectl(&apply);
    site.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]);
    site.kubectl(&apply);
    let start = |role: &str| {
        let name = format!("tokenward-{role}");
        let stored = site.kubectl(&["get", "deployment", &name, "-n", "infra", "-o", "json"]);
        let deployment: Value = serde_json::from_str(&stored).expect("JSON");
        let account = site.cluster.kubeconfig_for_service_account("infra", &name).expect("an account");
        stage::start(&deployment, role, &account)
    };
    let mut controller = start("controller").ready().await;
    let verifier = start("verifier").ready().await;
    let space = site.namespace("moved").await;
    let token = space.active("t", json!({"scopes": ["a:b"]})).await;
    verifier.answers(&token, "scope=a:b", 200).await;
    // Neither all rights nor the name of the controller are enough to write a status.
    site.kubectl(&["create", "serviceaccount", "tokenward-controller", "-n", &space.name]);
    let edits = [
        "create",
        "clusterrole",
        "statuses",
        "--verb=get,patch",
        "--resource=apitokens.tokenward.dev/status",
    ];
    site.kubectl(&edits);
    let subject = format!("--serviceaccount={}:tokenward-controller", space.name);
    site.kubectl(&["create", "clusterrolebinding", "statuses", "--clusterrole=statuses", &subject]);
    let impostor = format!("--as=system:serviceaccount:{}:tokenward-controller", space.name);
    let claim = ["patch", "apitoken", "t", "-n", &space.name, "--subresource=status", "--type=merge", "-p"];
    let claim = [&claim[..], &[r#"{"status": {"phase": "Revoked"}}"#]].concat();
    for user in [&[][..], &[impostor.as_str()]] {
        testkit::eventually("the policy is in force", async || {
            match site.try_kubectl(&[&claim[..], user].concat()) {
                (false, why) if why.contains("only tokenward's controller writes a status") => Ok(()),
                (_, other) => Err(other),
            }
        })
        .await;
    }
    space.patch("t", json!({"spec": {"revoked": true}})).await;
    verifier.answers(&token, "", 401).await;
    // Deleted after the controller has gone, tokens keep the CRDs until the command in the documentation is run.
    subscribe_to_deletions(&space).await;
    has_finalizers(&space, "t", &[WEBHOOKS_FINALIZER]).await;
    space.patch("t", json!({"metadata": {"finalizers": ["example.com/theirs", WEBHOOKS_FINALIZER]}})).await;
    controller.kill();
    site.kubectl(&["delete", "--wait=false", "-k", &overlay.display().to_string()]);
    let documentation = fs::read_to_string(root().join("docs/install.md")).expect("docs/install.md");
    let mut blocks = documentation.split("```sh\n").filter_map(|rest| rest.split("```").next());
    let commands = blocks.find(|block| block.starts_with("for kind in apitokens")).expect("commands");
    let kubectl = site.cluster.kubectl();
    let folder = Path::new(kubectl.get_program()).parent().expect("the folder of kubectl");
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").expect("PATH"));
    let mut shell = Command::new("sh");
    shell.args(["-euc", commands]).env("PATH", path).env("KUBECONFIG", site.cluster.kubeconfig());
    let output = shell.output().expect("sh");
    assert!(output.status.success(), "{output:?}");
    has_finalizers(&space, "t", &["example.com/theirs"]).await;
    space.patch("t", json!({"metadata": {"finalizers": null}})).await;
    let crd = [
        "crd/apitokens.tokenward.dev",
        "crd/clustertokenlocks.tokenward.dev",
        "crd/tokenlocks.tokenward.dev",
        "crd/tokenwebhooks.tokenward.dev",
    ];
    site.kubectl(&[&["wait", "--for=delete", "--timeout=60s"], &crd[..]].concat());
}

/// With `examples/kustomize/tokenward.yaml`.
pub async fn a_prefix_reaches_the_pods_that_mount_a_token(stage: &Stage) {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["backend-prod.yaml", "pod.yaml", "kustomize/tokenward.yaml"] {
        let from = root().join("examples").join(file);
        let name = from.file_name().expect("a name");
        fs::copy(&from, folder.path().join(name)).expect("a copy");
    }
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"template": {"spec": {"containers": [{
            "name": "web", "envFrom": [{"secretRef": {"name": "backend-prod"}}, {"secretRef": {"name": "another"}}],
        }]}}},
    });
    fs::write(folder.path().join("deployment.json"), deployment.to_string()).expect("a file");
    let kustomization = json!({
        "namePrefix": "blue-", "configurations": ["tokenward.yaml"],
        "resources": ["backend-prod.yaml", "pod.yaml", "deployment.json"],
    });
    fs::write(folder.path().join("kustomization.yaml"), kustomization.to_string()).expect("a file");
    let rendered = objects(&build(&stage.site, folder.path()));
    let of_kind = |kind: &str| rendered.iter().find(|object| object["kind"] == kind).expect("an object");
    assert_eq!(of_kind("ApiToken")["metadata"]["name"], "blue-backend-prod");
    assert_eq!(of_kind("Pod")["spec"]["volumes"][0]["secret"]["secretName"], "blue-backend-prod");
    let from = &of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]["envFrom"];
    assert_eq!(
        *from,
        json!([{"secretRef": {"name": "blue-backend-prod"}}, {"secretRef": {"name": "another"}}])
    );
}

fn build(site: &Site, folder: &Path) -> String {
    site.kubectl(&["kustomize", &folder.display().to_string()])
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a folder");
    for file in fs::read_dir(from).expect("a folder") {
        let file = file.expect("a file");
        fs::copy(file.path(), to.join(file.file_name())).expect("a copy");
    }
}
