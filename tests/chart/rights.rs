//! The chart's RBAC, as the API server evaluates it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::Role;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::helm::{object, objects, render};
use crate::install::{has_finalizers, subscribe_to_deletions};
use crate::stage::Stage;
use testkit::{Space, client_of, eventually, message};
use tokenward_core::crd::labels::{LOCK_FINALIZER, TOKEN_LABEL, WEBHOOK_LABEL, WEBHOOKS_FINALIZER};
use tokenward_core::crd::{ApiToken, ConditionType, TokenLock, TokenWebhook};

/// An account, a right, where, and whether it has it.
type Right = (&'static str, &'static [&'static str], bool);

const CONTROLLER: &str = "tokenward-controller";
const VERIFIER: &str = "tokenward-verifier";

const RIGHTS: &[Right] = &[
    (CONTROLLER, &["list", "apitokens.tokenward.dev", "-A"], true),
    (CONTROLLER, &["watch", "tokenwebhooks.tokenward.dev", "-A"], true),
    (CONTROLLER, &["update", "apitokens.tokenward.dev", "--subresource=status", "-A"], true),
    (CONTROLLER, &["update", "tokenwebhooks.tokenward.dev", "--subresource=status", "-A"], true),
    (CONTROLLER, &["list", "tokenlocks.tokenward.dev", "-A"], true),
    (CONTROLLER, &["watch", "clustertokenlocks.tokenward.dev"], true),
    (CONTROLLER, &["update", "tokenlocks.tokenward.dev", "--subresource=status", "-A"], true),
    (CONTROLLER, &["update", "clustertokenlocks.tokenward.dev", "--subresource=status"], true),
    (CONTROLLER, &["create", "secrets", "-A"], true),
    (CONTROLLER, &["create", "events.events.k8s.io", "-A"], true),
    (CONTROLLER, &["update", "leases.coordination.k8s.io/tokenward-controller", "-n", "tokenward"], true),
    (CONTROLLER, &["patch", "validatingwebhookconfigurations/tokenward"], true),
    (CONTROLLER, &["create", "subjectaccessreviews.authorization.k8s.io"], true),
    // For its finalizer.
    (CONTROLLER, &["patch", "apitokens.tokenward.dev", "-A"], true),
    (CONTROLLER, &["patch", "tokenlocks.tokenward.dev", "-A"], true),
    (CONTROLLER, &["patch", "clustertokenlocks.tokenward.dev"], true),
    // Nothing of others.
    (CONTROLLER, &["update", "apitokens.tokenward.dev", "-A"], false),
    (CONTROLLER, &["patch", "tokenwebhooks.tokenward.dev", "-A"], false),
    (CONTROLLER, &["delete", "apitokens.tokenward.dev", "-A"], false),
    // What stops tokens is not its to make or to take away.
    (CONTROLLER, &["create", "tokenlocks.tokenward.dev", "-A"], false),
    (CONTROLLER, &["delete", "clustertokenlocks.tokenward.dev"], false),
    (CONTROLLER, &["update", "leases.coordination.k8s.io/another", "-n", "tokenward"], false),
    (CONTROLLER, &["create", "leases.coordination.k8s.io", "-n", "default"], false),
    (CONTROLLER, &["patch", "validatingwebhookconfigurations/another"], false),
    (CONTROLLER, &["update", "validatingwebhookconfigurations/tokenward"], false),
    (CONTROLLER, &["get", "pods", "-A"], false),
    (CONTROLLER, &["get", "configmaps", "-A"], false),
    (CONTROLLER, &["create", "serviceaccounts", "--subresource=token", "-n", "tokenward"], false),
    (CONTROLLER, &["deletecollection", "secrets", "-A"], false),
    (VERIFIER, &["list", "apitokens.tokenward.dev", "-A"], true),
    (VERIFIER, &["watch", "tokenlocks.tokenward.dev", "-A"], true),
    (VERIFIER, &["watch", "clustertokenlocks.tokenward.dev"], true),
    (VERIFIER, &["get", "secrets/tokenward-pepper", "-n", "tokenward"], true),
    (VERIFIER, &["create", "tokenreviews.authentication.k8s.io"], true),
    (VERIFIER, &["create", "subjectaccessreviews.authorization.k8s.io"], true),
    // The verifier, which is exposed, can read no token and change nothing.
    (VERIFIER, &["get", "secrets", "-A"], false),
    (VERIFIER, &["list", "secrets", "-n", "tokenward"], false),
    (VERIFIER, &["get", "secrets/another", "-n", "tokenward"], false),
    (VERIFIER, &["get", "secrets/tokenward-pepper", "-n", "default"], false),
    (VERIFIER, &["get", "secrets/tokenward-admission", "-n", "tokenward"], false),
    (VERIFIER, &["update", "secrets/tokenward-pepper", "-n", "tokenward"], false),
    (VERIFIER, &["update", "apitokens.tokenward.dev", "--subresource=status", "-A"], false),
    (VERIFIER, &["patch", "tokenlocks.tokenward.dev", "-A"], false),
    (VERIFIER, &["create", "events.events.k8s.io", "-A"], false),
    (VERIFIER, &["get", "tokenwebhooks.tokenward.dev", "-A"], false),
    (VERIFIER, &["update", "leases.coordination.k8s.io/tokenward-controller", "-n", "tokenward"], false),
];

pub async fn each_account_has_the_rights_it_needs_and_no_others(stage: &Stage) {
    for (account, right, expected) in RIGHTS {
        let user = format!("--as=system:serviceaccount:tokenward:{account}");
        let (ok, answer) = stage.site.try_kubectl(&[&["auth", "can-i", &user], *right].concat());
        assert_eq!((ok, answer.contains("yes")), (*expected, *expected), "{account} {right:?}: {answer}");
    }
}

pub async fn the_verifier_can_read_no_token(stage: &Stage) {
    let space = stage.site.namespace("rights").await;
    space.active("t", json!({"scopes": ["a:b"]})).await;
    let verifier = stage.site.rights_of(VERIFIER);
    for read in [
        &["get", "secret", "t", "-n", &space.name][..],
        &["get", "secrets", "-n", &space.name],
        &["get", "secrets", "-A"],
        &["get", "secrets", "-n", "tokenward"],
    ] {
        let output = stage.site.cluster.kubectl_as(&verifier).args(read).output().expect("kubectl");
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && complaint.contains("Forbidden"), "{read:?}: {complaint}");
        assert!(output.stdout.is_empty());
    }
}

/// The API server has found no fault in the types of a policy's expressions.
fn has_no_type_warnings(stage: &Stage, policy: &str) {
    let policy = stage.site.kubectl(&["get", "validatingadmissionpolicy", policy, "-o", "json"]);
    let policy: serde_json::Value = serde_json::from_str(&policy).expect("JSON");
    assert!(policy["status"]["typeChecking"]["expressionWarnings"].is_null(), "{policy}");
}

pub async fn nobody_else_writes_a_status(stage: &Stage) {
    let space = stage.site.namespace("status").await;
    space.active("t", json!({"scopes": ["a:b"]})).await;
    let claim = r#"{"status": {"phase": "Revoked"}}"#;
    let patch =
        ["patch", "apitoken", "t", "-n", &space.name, "--subresource=status", "--type=merge", "-p", claim];
    // Denied in spite of all rights. The policy takes effect after a moment.
    eventually("the policy is in force", async || match stage.site.try_kubectl(&patch) {
        (false, why) if why.contains("only tokenward's controller writes a status") => Ok(()),
        (_, other) => Err(other),
    })
    .await;
    // The controller still may: it has written the status above with the policy in place.
    space.patch("t", json!({"spec": {"revoked": true}})).await;
    space.reason("t", tokenward_core::crd::ConditionType::Ready, "Revoked").await;
    has_no_type_warnings(stage, "tokenward-status");
}

/// What the controller could do by RBAC alone if somebody made it act for them.
pub async fn the_controller_writes_no_secret_of_others(stage: &Stage) {
    let space = stage.site.namespace("others-secrets").await;
    space.active("t", json!({"scopes": ["a:b"]})).await;
    let controller = client_of(&stage.site.rights_of(CONTROLLER)).await;
    let as_controller = Api::<Secret>::namespaced(controller, &space.name);
    let ours = BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), "tokenward".to_owned())]);
    let secret = |name: &str, labels: Option<&BTreeMap<String, String>>, type_: &str| Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), labels: labels.cloned(), ..Default::default() },
        type_: Some(type_.to_owned()),
        ..Default::default()
    };
    let foreign = secret("database", None, "Opaque");
    let foreign = space.secrets().create(&PostParams::default(), &foreign).await.expect("a Secret");
    let denied = |result: kube::Result<Secret>| match result {
        Ok(secret) => Err(format!("admitted: {:?}", secret.metadata.labels)),
        Err(error) => Ok(message(&error)),
    };
    let mut names = (0..).map(|number| format!("probe-{number}"));
    eventually("the policy is in force", async || {
        let unlabelled = secret(&names.next().expect("a name"), None, "Opaque");
        denied(as_controller.create(&PostParams::default(), &unlabelled).await)
    })
    .await;
    let labelled = Secret {
        metadata: ObjectMeta { labels: Some(ours.clone()), ..foreign.metadata.clone() },
        ..foreign.clone()
    };
    for (what, result) in [
        ("an edit", as_controller.replace("database", &PostParams::default(), &foreign).await),
        (
            "an edit that adds our label",
            as_controller.replace("database", &PostParams::default(), &labelled).await,
        ),
        ("a deletion", as_controller.delete("database", &Default::default()).await.map(|_| foreign.clone())),
    ] {
        let why = denied(result).expect(what);
        assert!(
            why.contains("tokenward's controller changes no Secret that has neither the label"),
            "{what}: {why}"
        );
    }
    // Its owner's consent is for edits, with creationPolicy Merge.
    let consent = json!({"metadata": {"labels": {TOKEN_LABEL: "t"}}});
    space
        .secrets()
        .patch("database", &PatchParams::default(), &Patch::Merge(&consent))
        .await
        .expect("a patch");
    let mut agreed = as_controller.get("database").await.expect("a Secret");
    agreed.metadata.annotations = Some([("example.com/edited".to_owned(), "yes".to_owned())].into());
    let agreed = as_controller.replace("database", &PostParams::default(), &agreed).await.expect("an edit");
    denied(as_controller.delete("database", &Default::default()).await.map(|_| foreign.clone()))
        .expect("a deletion");
    let withdrawn = Secret { metadata: ObjectMeta { labels: None, ..agreed.metadata.clone() }, ..agreed };
    let why = denied(as_controller.replace("database", &PostParams::default(), &withdrawn).await);
    let why = why.expect("an edit that takes the consent away");
    assert!(why.contains("writes no Secret without the label"), "{why}");
    // A policy of others may have changed the label of what is made.
    for label in [TOKEN_LABEL, WEBHOOK_LABEL] {
        let relabelled = BTreeMap::from([
            ("app.kubernetes.io/managed-by".to_owned(), "corp".to_owned()),
            (label.to_owned(), "t".to_owned()),
        ]);
        let name = format!("relabelled-{}", label.replace(['.', '/'], "-"));
        let relabelled = secret(&name, Some(&relabelled), "Opaque");
        as_controller.create(&PostParams::default(), &relabelled).await.expect(label);
    }
    for type_ in ["bootstrap.kubernetes.io/token", "kubernetes.io/service-account-token"] {
        let mut login = secret("login", Some(&ours), type_);
        let account = ("kubernetes.io/service-account.name".to_owned(), "default".to_owned());
        login.metadata.annotations = Some([account].into());
        let why = denied(as_controller.create(&PostParams::default(), &login).await);
        let why = why.expect(type_);
        assert!(why.contains("a type by which Kubernetes authenticates"), "{why}");
    }
    // Its own, also if somebody has taken the labels off.
    let unlabel = json!({"metadata": {"labels": null, "annotations": {"tokenward.dev/token-uid": null}}});
    let unlabelled = space.secrets().patch("t", &PatchParams::default(), &Patch::Merge(&unlabel)).await;
    let before = unlabelled.expect("a patch").metadata.resource_version;
    eventually("the controller repairs it", async || {
        let secret = space.secrets().get("t").await.expect("a Secret");
        if secret.metadata.labels.iter().flatten().any(|(key, _)| key == TOKEN_LABEL) {
            return Ok(());
        }
        Err(format!("{:?} after {before:?}", secret.metadata))
    })
    .await;
    has_no_type_warnings(stage, "tokenward-secrets");
}

/// By RBAC alone, the right to patch its finalizer would be one to change scopes.
pub async fn the_controller_changes_nothing_of_a_token_but_its_finalizer(stage: &Stage) {
    let space = stage.site.namespace("finalizers").await;
    space.active("t", json!({"scopes": ["a:b"]})).await;
    let theirs = json!({"metadata": {
        "finalizers": ["example.com/theirs"], "labels": {"a": "b"}, "annotations": {"a": "b"},
    }});
    space.patch("t", theirs).await;
    let controller = client_of(&stage.site.rights_of(CONTROLLER)).await;
    let as_controller = Api::<ApiToken>::namespaced(controller, &space.name);
    let patch = async |change: &serde_json::Value| {
        let patched = as_controller.patch("t", &PatchParams::default(), &Patch::Merge(change)).await;
        patched.map(|token| token.metadata.finalizers).map_err(|error| message(&error))
    };
    let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": "a"}]);
    let more = json!({"spec": {"scopes": ["a:b", "c:d"]}});
    eventually("the policy is in force", async || match patch(&more).await {
        Err(why) if why.contains("changes its own finalizer and the status only") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    for denied in [
        json!({"spec": {"revoked": true}}),
        json!({"metadata": {"labels": {"a": "c"}}}),
        json!({"metadata": {"labels": null}}),
        json!({"metadata": {"annotations": {"c": "d"}}}),
        json!({"metadata": {"ownerReferences": owner}}),
        json!({"metadata": {"finalizers": null}}),
        json!({"metadata": {"finalizers": ["tokenward.dev/webhooks"]}}),
        json!({"metadata": {"finalizers": ["example.com/theirs", "example.com/another"]}}),
    ] {
        let why = patch(&denied).await.expect_err(&denied.to_string());
        assert!(why.contains("changes its own finalizer"), "{denied}: {why}");
    }
    // The controller itself adds its own beside others, and removes it once nothing subscribes to deletions.
    subscribe_to_deletions(&space).await;
    has_finalizers(&space, "t", &["example.com/theirs", WEBHOOKS_FINALIZER]).await;
    // Others edit tokens as before.
    space.patch("t", json!({"metadata": {"finalizers": [WEBHOOKS_FINALIZER], "labels": null}})).await;
    space.patch("t", json!({"spec": {"scopes": ["a:b", "c:d"]}})).await;
    let webhooks = Api::<TokenWebhook>::namespaced(stage.site.client.clone(), &space.name);
    webhooks.delete("audit", &Default::default()).await.expect("a deletion");
    has_finalizers(&space, "t", &[]).await;
    // A deletion is not blocked by what a mutating policy of others adds to the controller's patch.
    space.patch("t", json!({"metadata": {"finalizers": ["example.com/theirs"]}})).await;
    space.delete("t").await;
    patch(&json!({"metadata": {"labels": {"a": "c"}}})).await.expect("a patch");
    let why = patch(&json!({"metadata": {"finalizers": null}})).await.expect_err("a denial");
    assert!(why.contains("changes its own finalizer"), "{why}");
    space.patch("t", json!({"metadata": {"finalizers": null}})).await;
    has_no_type_warnings(stage, "tokenward-finalizers");
}

pub async fn view_edit_and_admin_include_tokens_but_no_status(stage: &Stage) {
    let space = stage.site.namespace("people").await;
    let (site, namespace) = (&stage.site, space.name.as_str());
    space.active("t", json!({"scopes": ["a:b"]})).await;
    for role in ["view", "edit", "admin"] {
        let user = stage.site.cluster.kubeconfig_for_user(&format!("{role}-user"), None).expect("a user");
        let binding = format!("{role}-user");
        let (clusterrole, person) = (format!("--clusterrole={role}"), format!("--user={binding}"));
        site.kubectl(&["create", "rolebinding", &binding, "-n", namespace, &clusterrole, &person]);
        let may = |right: &[&str]| {
            let mut command = site.cluster.kubectl_as(&user);
            command
                .args(["auth", "can-i", "-n", namespace])
                .args(right)
                .output()
                .expect("kubectl")
                .status
                .success()
        };
        eventually("the roles are aggregated", async || {
            if may(&["get", "apitokens.tokenward.dev"]) { Ok(()) } else { Err(role.to_owned()) }
        })
        .await;
        let writes = role != "view";
        assert!(may(&["list", "tokenwebhooks.tokenward.dev"]));
        assert!(may(&["list", "tokenlocks.tokenward.dev"]));
        // Who may edit tokens is not who may stop them.
        assert!(!may(&["create", "tokenlocks.tokenward.dev"]), "{role}");
        assert!(!may(&["delete", "tokenlocks.tokenward.dev"]), "{role}");
        // Not before grants are enforced: scopes know no namespace.
        assert!(!may(&["create", "apitokens.tokenward.dev"]), "{role}");
        assert!(!may(&["delete", "tokenwebhooks.tokenward.dev"]), "{role}");
        assert!(!may(&["update", "apitokens.tokenward.dev", "--subresource=status"]), "{role}");
        assert!(!may(&["grant", "scopes.tokenward.dev"]), "{role}");
        // By Kubernetes' own roles: ours must not add Secrets to view.
        assert_eq!(may(&["get", "secrets"]), writes, "{role}");
    }
    let viewer = client_of(&stage.site.cluster.kubeconfig_for_user("view-user", None).expect("a user")).await;
    let secrets: kube::Api<k8s_openapi::api::core::v1::Secret> = kube::Api::namespaced(viewer, namespace);
    let denied = secrets.get("t").await.expect_err("a denial").to_string();
    assert!(denied.contains("forbidden"), "{denied}");
}

pub async fn whoever_may_stop_tokens_may_do_no_more(stage: &Stage) {
    let space = stage.site.namespace("incident").await;
    let (site, namespace) = (&stage.site, space.name.as_str());
    let user = site.cluster.kubeconfig_for_user("responder", None).expect("a user");
    let bind = ["create", "rolebinding", "responder", "-n", namespace];
    site.kubectl(&[&bind[..], &["--clusterrole=tokenward-lock", "--user=responder"]].concat());
    let may = |right: &[&str]| {
        let mut command = site.cluster.kubectl_as(&user);
        let command = command.args(["auth", "can-i", "-n", namespace]).args(right);
        command.output().expect("kubectl").status.success()
    };
    eventually("the role is bound", async || {
        if may(&["create", "tokenlocks.tokenward.dev"]) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    for right in [
        &["create", "clustertokenlocks.tokenward.dev"][..],
        &["create", "apitokens.tokenward.dev"],
        &["patch", "apitokens.tokenward.dev"],
        &["update", "tokenlocks.tokenward.dev", "--subresource=status"],
        &["get", "secrets"],
    ] {
        assert!(!may(right), "{right:?}");
    }
}

pub async fn what_a_lock_says_is_true_and_it_stays_until_it_is_recorded(stage: &Stage) {
    let space = stage.site.namespace("locks").await;
    let locks = Api::<TokenLock>::namespaced(stage.site.client.clone(), &space.name);
    let create = async |name: &str, spec: serde_json::Value| {
        let lock: TokenLock =
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).expect("a lock");
        locks.create(&PostParams::default(), &lock).await.map_err(|error| message(&error))
    };
    let mut names = (0..).map(|number| format!("probe-{number}"));
    eventually("the policy is in force", async || {
        let name = names.next().expect("a name");
        let spec = json!({"match": {"names": ["t"]}, "action": "Suspend", "requestedBy": "somebody-else"});
        match create(&name, spec).await {
            Err(why) if why.contains("spec.requestedBy is who creates the lock: write ") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let before = |seconds: i64| {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
        json!({"match": {"issuedBefore": at, "names": ["t"]}, "action": "Revoke"})
    };
    let why = create("future", before(3600)).await.expect_err("a lock of the future");
    assert!(why.contains("match.issuedBefore is in the future"), "{why}");
    create("now", before(0)).await.expect("a lock");
    // Noted by the controller, nobody else lets it go.
    let noted = || async {
        let lock = locks.get("now").await.expect("a lock");
        let finalizers = lock.metadata.finalizers.unwrap_or_default();
        if finalizers == [LOCK_FINALIZER] { Ok(()) } else { Err(format!("{finalizers:?}")) }
    };
    eventually("the controller notes it", async || noted().await).await;
    let freed = json!({"metadata": {"finalizers": null}});
    let why = locks.patch("now", &PatchParams::default(), &Patch::Merge(&freed)).await;
    let why = message(&why.expect_err("a patch"));
    assert!(why.contains("controller removes the finalizer tokenward.dev/lock"), "{why}");
    locks.delete("now", &Default::default()).await.expect("a deletion");
    // What the controller has not noted yet can't be deleted. It is fast, so several tries.
    let mut names = (0..).map(|number| format!("hasty-{number}"));
    eventually("a deletion before it is noted", async || {
        let name = names.next().expect("a name");
        create(&name, json!({"match": {"names": ["t"]}, "action": "Revoke"})).await.expect("a lock");
        match locks.delete(&name, &Default::default()).await {
            Err(error) if message(&error).contains("has not taken note of this lock yet") => Ok(()),
            other => Err(format!("{:?}", other.map(|_| ()))),
        }
    })
    .await;
    has_no_type_warnings(stage, "tokenward-locks");
}

/// A tenant who may delete and create could bring it back by copies, were it gone before anybody has noted that it was revoked.
pub async fn a_revoked_token_stays_until_that_is_recorded(stage: &Stage) {
    let (space, terminating) =
        (stage.site.namespace("recorded").await, stage.site.namespace("terminating").await);
    let deleted = async |space: &Space, name: &str| {
        let deleted = space.tokens().delete(name, &Default::default()).await;
        deleted.map(|_| ()).map_err(|error| message(&error))
    };
    // The controller is fast, so several tries.
    let mut names = (0..).map(|number| format!("hasty-{number}"));
    let name = eventually("a deletion before it is recorded", async || {
        let name = names.next().expect("a name");
        space.active(&name, json!({"scopes": ["a:b"]})).await;
        space.patch(&name, json!({"spec": {"revoked": true}})).await;
        match deleted(&space, &name).await {
            Err(why) if why.contains("controller has not recorded that yet") => Ok(name),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    space.condition(&name, ConditionType::Revoked, "True").await;
    assert_eq!(deleted(&space, &name).await, Ok(()), "once it is recorded");
    // What was not revoked goes at once, as does what never had a secret.
    space.active("living", json!({"scopes": ["a:b"]})).await;
    assert_eq!(deleted(&space, "living").await, Ok(()));
    space.create("unborn", json!({"scopes": ["a:b"], "revoked": true})).await;
    assert_eq!(deleted(&space, "unborn").await, Ok(()));
    // The deletion of a namespace is held up by nothing.
    for number in 0..5 {
        let name = format!("t{number}");
        terminating.active(&name, json!({"scopes": ["a:b"]})).await;
    }
    for number in 0..5 {
        terminating.patch(&format!("t{number}"), json!({"spec": {"revoked": true}})).await;
    }
    stage.site.delete_namespace(&terminating).await;
    has_no_type_warnings(stage, "tokenward-revocations");
}

pub fn editors_write_tokens_where_grants_are_enforced() {
    let labels = |values: &[&str]| {
        let rendered = objects(&render(values));
        let labels = object(&rendered, "ClusterRole", "tokenward-edit")["metadata"]["labels"].clone();
        ["edit", "admin"]
            .map(|role| labels[format!("rbac.authorization.k8s.io/aggregate-to-{role}")] == "true")
    };
    assert_eq!(labels(&[]), [false, false]);
    assert_eq!(labels(&["--set=admission.enforceScopeGrants=true"]), [true, true]);
    assert_eq!(labels(&["--set=admission.enforceScopeGrants=true,rbac.aggregate=false"]), [false, false]);
}

pub async fn scopes_of_tokenward_itself_take_a_grant(stage: &Stage) {
    let space = stage.site.namespace("reserved").await;
    let (site, namespace) = (&stage.site, space.name.as_str());
    let user = site.cluster.kubeconfig_for_user("token-editor", None).expect("a user");
    let bind = ["create", "rolebinding", "token-editor", "-n", namespace];
    site.kubectl(&[&bind[..], &["--clusterrole=tokenward-edit", "--user=token-editor"]].concat());
    let kubectl = |how: &[&str], name: &str, spec: Value| {
        let token = json!({
            "apiVersion": "tokenward.dev/v1alpha1", "kind": "ApiToken",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        });
        let file = std::env::temp_dir().join(format!("tokenward-{namespace}-{name}.json"));
        std::fs::write(&file, token.to_string()).expect("a file");
        let mut command = site.cluster.kubectl_as(&user);
        let output = command.args(how).arg("-f").arg(&file).output().expect("kubectl");
        std::fs::remove_file(&file).expect("a file");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let apply =
        |name: &str, scopes: &[&str]| kubectl(&["apply", "--server-side"], name, json!({"scopes": scopes}));
    eventually("the editor may write tokens", async || match apply("own", &["orders:read"]) {
        (true, _) => Ok(()),
        (false, why) => Err(why),
    })
    .await;
    eventually("the policy is in force", async || match apply("caller", &["orders:read", "tokens:verify"]) {
        (false, why) if why.contains("token-editor may not grant tokens:verify") => Ok(()),
        (_, other) => Err(other),
    })
    .await;
    for (name, scopes) in [("caller", &["tokens:*"][..]), ("own", &["orders:read", "tokens:verify"])] {
        let (ok, why) = apply(name, scopes);
        assert!(!ok && why.contains(r#"the verb "grant" on scopes.tokenward.dev"#), "{name}: {why}");
    }
    // What is revoked may name any scope, and null revokes nothing.
    for (revoked, admitted) in [(Value::Null, false), (json!(false), false), (json!(true), true)] {
        let spec = json!({"scopes": ["tokens:verify"], "revoked": revoked});
        let (ok, why) = kubectl(&["create"], &format!("revoked-{revoked}"), spec);
        let refused = why.contains("token-editor may not grant tokens:verify");
        assert_eq!((ok, refused), (admitted, !admitted), "{revoked}: {why}");
    }
    // kubectl create role takes no resource that the API server does not serve.
    let grant = json!({
        "metadata": {"name": "grant", "namespace": namespace},
        "rules": [{
            "apiGroups": ["tokenward.dev"], "resources": ["scopes"], "resourceNames": ["tokens:*"], "verbs": ["grant"],
        }],
    });
    let roles = Api::<Role>::namespaced(site.client.clone(), namespace);
    let grant = serde_json::from_value(grant).expect("a Role");
    roles.create(&PostParams::default(), &grant).await.expect("a Role");
    site.kubectl(&["create", "rolebinding", "grant", "-n", namespace, "--role=grant", "--user=token-editor"]);
    eventually("whoever may grant it creates it", async || match apply("caller", &["tokens:verify"]) {
        (true, _) => Ok(()),
        (false, why) => Err(why),
    })
    .await;
    // What has it keeps it, whoever edits the rest.
    site.kubectl(&["delete", "rolebinding", "grant", "-n", namespace]);
    // A new one each time: what was admitted gains nothing by the next try.
    let mut names = (0..).map(|number| format!("probe-{number}"));
    eventually("the right is gone", async || {
        match apply(&names.next().expect("a name"), &["tokens:verify"]) {
            (false, _) => Ok(()),
            (true, _) => Err("admitted".to_owned()),
        }
    })
    .await;
    let (ok, why) = apply("caller", &["tokens:verify", "orders:read"]);
    assert!(ok, "{why}");
    has_no_type_warnings(stage, "tokenward-scopes");
}

pub async fn the_metadata_of_an_object_is_bounded(stage: &Stage) {
    let space = stage.site.namespace("sizes").await;
    let tokens = Api::<ApiToken>::namespaced(stage.site.client.clone(), &space.name);
    let create = async |name: &str, annotation: usize, labels: usize| {
        let labels: BTreeMap<_, _> =
            (0..labels).map(|at| (format!("label-{at:050}"), "x".repeat(60))).collect();
        let token = json!({
            "metadata": {"name": name, "annotations": {"a": "x".repeat(annotation)}, "labels": labels},
            "spec": {"scopes": ["a:b"]},
        });
        let token: ApiToken = serde_json::from_value(token).expect("an ApiToken");
        tokens.create(&PostParams::default(), &token).await.map_err(|error| error.to_string())
    };
    create("largest", 65_535, 140).await.expect("an ApiToken within the bounds");
    eventually("the policy is in force", async || match create("large", 65_536, 0).await {
        Err(why) if why.contains("the annotations have more than 64 KiB in all") => Ok(()),
        Err(why) => Err(why),
        Ok(_) => {
            space.delete("large").await;
            Err("admitted".to_owned())
        }
    })
    .await;
    let denied = create("labelled", 0, 150).await.expect_err("a denial");
    assert!(denied.contains("the labels have more than 16 KiB in all"), "{denied}");
    let grown = json!({"metadata": {"annotations": {"a": "x".repeat(65_536)}}});
    assert!(space.try_patch("largest", grown).await.is_err());
    space.patch("largest", json!({"spec": {"revoked": true}})).await;
    has_no_type_warnings(stage, "tokenward-sizes");
}
