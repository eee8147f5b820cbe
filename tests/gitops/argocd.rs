//! Argo CD's view of tokens: their health by our scripts, and no difference from Git.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tokenward_core::crd::ConditionType;

use crate::Stage;
use crate::tool;

/// The health of an object by Argo CD's engine and our script, with its message.
fn health(kind: &str, object: &Value) -> (String, String) {
    let script = root().join(format!("charts/tokenward/files/argocd/{kind}.lua"));
    let verdict = ask("health", &script, object);
    let text = |key: &str| verdict[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("message"))
}

fn ask(task: &str, file: &Path, live: &Value) -> Value {
    let mut argocd = Command::new(&*tool::ARGOCD);
    argocd.arg(task).arg(file);
    let (ok, printed, complaint) = tool::run(argocd, &live.to_string());
    assert!(ok, "{task} {}: {complaint}", file.display());
    serde_json::from_str(&printed).expect("JSON")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub async fn health_is_reported_in_every_state(stage: &Stage) {
    let space = stage.site.namespace("argocd-health").await;
    stage.site.kubectl(&["create", "secret", "generic", "taken", "-n", &space.name, "--from-literal=a=b"]);
    for (name, spec, reason, expected) in [
        ("active", json!({"scopes": ["a:b"]}), "Active", "Healthy"),
        ("suspended", json!({"scopes": ["a:b"], "suspend": true}), "Suspended", "Healthy"),
        ("revoked", json!({"scopes": ["a:b"], "revoked": true}), "Revoked", "Healthy"),
        ("expired", json!({"scopes": ["a:b"], "expiresAt": "2020-01-01T00:00:00Z"}), "Expired", "Healthy"),
        ("conflict", json!({"scopes": ["a:b"], "secret": {"name": "taken"}}), "SecretConflict", "Degraded"),
    ] {
        space.create(name, spec).await;
        let token = space.reason(name, ConditionType::Ready, reason).await;
        let (_, said) = testkit::condition(&token, ConditionType::Ready).expect("a condition");
        let live = serde_json::to_value(&token).expect("JSON");
        let (status, message) = health("ApiToken", &live);
        assert_eq!(status, expected, "{name}: {message}");
        assert_eq!(message, said, "{name}");

        // Before the controller has seen the last change, or anything, it is Progressing.
        let mut changed = live.clone();
        changed["metadata"]["generation"] = json!(99);
        assert_eq!(health("ApiToken", &changed).0, "Progressing", "{name}");
        let mut new = live;
        new.as_object_mut().expect("an object").remove("status");
        assert_eq!(health("ApiToken", &new).0, "Progressing", "{name}");
    }
}

/// What is neither ready nor stalled is Progressing.
pub async fn a_webhook_s_health_is_reported(_: &Stage) {
    let condition = |type_: &str, status: &str| json!({"type": type_, "status": status, "reason": "Because", "message": format!("{type_} is {status}")});
    for (conditions, expected) in [
        (vec![condition("Ready", "True"), condition("Healthy", "True")], "Healthy"),
        (vec![condition("Ready", "True"), condition("Healthy", "Unknown")], "Healthy"),
        (vec![condition("Ready", "True"), condition("Healthy", "False")], "Degraded"),
        (vec![condition("Ready", "True"), condition("Disabled", "True")], "Degraded"),
        (vec![condition("Ready", "False"), condition("Stalled", "True")], "Degraded"),
        (vec![condition("Ready", "False")], "Progressing"),
        (vec![], "Progressing"),
    ] {
        let webhook = json!({
            "apiVersion": "tokenward.dev/v1alpha1", "kind": "TokenWebhook",
            "metadata": {"name": "w", "namespace": "n", "generation": 3},
            "status": {"observedGeneration": 3, "conditions": conditions},
        });
        assert_eq!(health("TokenWebhook", &webhook).0, expected, "{webhook}");
    }
}

/// Both by client-side apply, Argo CD's default, and by server-side apply.
pub async fn no_example_differs_from_git(stage: &Stage) {
    let examples = examples();
    assert!(examples.len() >= 5, "{examples:?}");
    for flags in [&[][..], &["--server-side"]] {
        let space = stage.site.namespace("argocd-diff").await;
        for example in &examples {
            let config = with_tracking(example);
            let path = config.path().display().to_string();
            stage.site.kubectl(&[&["apply", "-n", &space.name, "-f", &path], flags].concat());
            let name = name_of(example);
            let token = space.condition(&name, ConditionType::Active, "True").await;
            let stored = stage.site.kubectl(&["get", "apitoken", &name, "-n", &space.name, "-o", "json"]);
            let stored: Value = serde_json::from_str(&stored).expect("JSON");
            assert!(token.status.is_some());
            let verdict = ask("diff", config.path(), &stored);
            assert_eq!(verdict["modified"], false, "{name} {flags:?}: {verdict:#}");
            // The comparison does find differences.
            space.patch(&name, json!({"spec": {"displayName": "by hand"}})).await;
            let stored = stage.site.kubectl(&["get", "apitoken", &name, "-n", &space.name, "-o", "json"]);
            let stored: Value = serde_json::from_str(&stored).expect("JSON");
            assert_eq!(ask("diff", config.path(), &stored)["modified"], edits(example), "{name} {flags:?}");
        }
    }
}

/// Whether the example sets displayName, so that changing it by hand is a difference.
fn edits(example: &Path) -> bool {
    std::fs::read_to_string(example).expect("an example").contains("displayName")
}

/// The examples that are an ApiToken, and nothing beside it.
fn examples() -> Vec<PathBuf> {
    let folders = ["examples", "examples/gitops"].map(|folder| std::fs::read_dir(root().join(folder)));
    let files = folders
        .into_iter()
        .flat_map(|folder| folder.expect("a folder"))
        .map(|file| file.expect("a file").path());
    let is_token = |path: &PathBuf| {
        let is_yaml = path.extension().is_some_and(|extension| extension == "yaml");
        let text = if is_yaml { std::fs::read_to_string(path).expect("a file") } else { String::new() };
        text.contains("kind: ApiToken") && !text.contains("\n---\n")
    };
    files.filter(is_token).collect()
}

fn name_of(example: &Path) -> String {
    let text = std::fs::read_to_string(example).expect("an example");
    let name = text.lines().find_map(|line| line.strip_prefix("  name: "));
    name.expect("a name").to_owned()
}

/// An example with the tracking annotation that Argo CD adds.
fn with_tracking(example: &Path) -> tempfile::NamedTempFile {
    let text = std::fs::read_to_string(example).expect("an example");
    let name = name_of(example);
    let tracked =
        format!("  name: {name}\n  annotations:\n    argocd.argoproj.io/tracking-id: tokens:{name}");
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().expect("a file");
    std::fs::write(file.path(), text.replacen(&format!("  name: {name}"), &tracked, 1)).expect("a file");
    file
}
