//! The plain manifests in `deploy/`, and whether the API server accepts what the chart renders.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value, json};
use tokenward::manifests;
use tokenward_core::crd;

use crate::helm::{object, objects, render, root};
use crate::stage::Stage;
use crate::values::{ALL_ON, FORMS};

/// Environment variable that makes the test write `deploy/` instead of comparing it.
const RENDER: &str = "TOKENWARD_RENDER";

/// Marks the beginning of a template in a rendered text.
const SOURCE: &str = "# Source: tokenward/templates/";

pub fn the_chart_has_the_crds_that_the_code_prints() {
    for (name, definition) in crd::all() {
        let path = root().join("charts/tokenward/files/crds").join(name);
        let printed = manifests::yaml(&definition).expect("YAML");
        let stored = fs::read_to_string(&path).unwrap_or_default();
        let advice = "run `cargo run -- crds --dir charts/tokenward/files/crds`";
        assert!(stored == printed, "{} differs: {advice}", path.display());
    }
}

pub fn plain_manifests_are_what_the_chart_renders() {
    let folder = root().join("deploy");
    // A hook is run by Helm only: kubectl would apply it at once.
    let rendered = plain(&render(&["--no-hooks"]));
    if std::env::var_os(RENDER).is_some() {
        for (name, text) in &rendered {
            fs::write(folder.join(name), text).expect("a file");
        }
    }
    let advice = format!("run `{RENDER}=1 cargo test --test chart -- plain_manifests`");
    for (name, text) in &rendered {
        let stored = fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert!(stored == *text, "deploy/{name} differs: {advice}");
    }
    let listed = fs::read_to_string(folder.join("kustomization.yaml")).expect("a kustomization");
    for name in rendered.keys().map(String::as_str).chain(["namespace.yaml"]) {
        assert!(listed.contains(&format!("  - {name}\n")), "deploy/kustomization.yaml lacks {name}");
    }
    let files = fs::read_dir(&folder).expect("deploy").count();
    assert_eq!(files, rendered.len() + 2, "deploy/ has a file that nothing renders");
}

/// The ConfigMap for Argo CD that users copy contains the chart's scripts.
pub fn the_argo_cd_example_has_the_chart_s_scripts() {
    let path = root().join("examples/argocd/argocd-cm.yaml");
    let stored = fs::read_to_string(&path).expect("a file");
    let config = &objects(&stored)[0]["data"];
    for kind in ["ApiToken", "TokenWebhook"] {
        let script = root().join(format!("charts/tokenward/files/argocd/{kind}.lua"));
        let script = fs::read_to_string(script).expect("a script");
        let given = config[format!("resource.customizations.health.tokenward.dev_{kind}")].as_str();
        assert_eq!(given, Some(script.as_str()), "{} is not what the chart has", path.display());
    }
}

/// A caller with the ClusterRole can use each endpoint that authenticates its callers. A batch needs the right to single
/// checks.
pub fn the_role_of_callers_has_the_paths_of_openapi_json() {
    let document = fs::read_to_string(root().join("openapi.json")).expect("a file");
    let document: Value = serde_json::from_str(&document).expect("JSON");
    let paths = document["paths"].as_object().expect("paths");
    let posts =
        paths.iter().filter(|(path, operations)| operations["post"].is_object() && !path.contains(':'));
    let expected: BTreeSet<_> = posts.map(|(path, _)| path.as_str()).collect();
    let rendered = objects(&render(&[]));
    let rules = &object(&rendered, "ClusterRole", "tokenward-caller")["rules"];
    assert_eq!(rules.as_array().map(Vec::len), Some(1), "{rules}");
    let urls = rules[0]["nonResourceURLs"].as_array().expect("URLs");
    assert_eq!(urls.iter().filter_map(Value::as_str).collect::<BTreeSet<_>>(), expected);
    assert_eq!(rules[0]["verbs"], json!(["post"]));
}

/// The plain manifests of a rendered text: one file for each folder of templates, without what only Helm needs.
fn plain(rendered: &str) -> BTreeMap<String, String> {
    let mut files = BTreeMap::<String, String>::new();
    for document in rendered.split("\n---\n").map(|document| document.trim_start_matches("---\n")) {
        let Some((source, text)) = document.split_once('\n').filter(|(first, _)| first.starts_with(SOURCE))
        else {
            assert!(document.trim().is_empty(), "without a source: {document}");
            continue;
        };
        let source = source.trim_start_matches(SOURCE);
        let name = source.split_once('/').map_or(source.trim_end_matches(".yaml"), |(folder, _)| folder);
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let lines = lines.filter(|line| line.trim() != "app.kubernetes.io/managed-by: Helm");
        let file = files.entry(format!("{name}.yaml")).or_insert_with(|| HEAD.to_owned());
        file.push_str("---\n");
        for line in lines {
            file.push_str(line);
            file.push('\n');
        }
    }
    files
}

const HEAD: &str = "# Rendered from charts/tokenward; do not edit.\n";

/// By a server-side dry run, which does everything but the write: defaults, validation, admission.
pub async fn the_api_server_accepts_every_form_of_the_chart(stage: &Stage) {
    let site = &stage.site;
    for namespace in ["shop", "billing"] {
        site.kubectl(&["create", "namespace", namespace]);
    }
    let folder = tempfile::tempdir().expect("a folder");
    for (number, form) in FORMS.iter().copied().chain([ALL_ON]).enumerate() {
        let path = folder.path().join(format!("{number}.json"));
        // Without third-party kinds, whose CRDs are not installed here.
        let known = objects(&render(&[form, &["--skip-tests"]].concat())).into_iter().filter(|object| {
            let version = object["apiVersion"].as_str().unwrap_or_default();
            !version.starts_with("monitoring.coreos.com/") && !version.starts_with("cert-manager.io/")
        });
        let list = json!({"apiVersion": "v1", "kind": "List", "items": known.collect::<Vec<_>>()});
        fs::write(&path, list.to_string()).expect("a file");
        let path = path.display().to_string();
        let strict = ["--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts"];
        let applied = site.kubectl(&[&["apply", "-f", &path], &strict[..]].concat());
        assert!(!applied.to_lowercase().contains("warning"), "{form:?}: {applied}");
    }
    let deploy = root().join("deploy").display().to_string();
    let applied =
        site.kubectl(&["apply", "-k", &deploy, "--server-side", "--dry-run=server", "--force-conflicts"]);
    assert!(applied.contains("deployment.apps/tokenward-verifier serverside-applied"), "{applied}");
    assert!(!applied.to_lowercase().contains("warning"), "{applied}");
}

/// Not by kubeconform's default schemas, which are made from the same OpenAPI document, but need a download.
pub async fn the_plain_manifests_are_valid_for_the_api_server_s_own_schemas(stage: &Stage) {
    let folder = tempfile::tempdir().expect("a folder");
    let document = stage.site.kubectl(&["get", "--raw", "/openapi/v2"]);
    let document: Value = serde_json::from_str(&document).expect("JSON");
    write_schemas(&document, folder.path());
    let location = folder.path().join("{{.ResourceKind}}-{{.Group}}-{{.ResourceAPIVersion}}.json");
    let ours = ["crds", "controller", "verifier", "admission", "rbac", "monitoring"]
        .map(|name| format!("{name}.yaml"));
    let output = Command::new(programs::kubeconform().expect("kubeconform"))
        .args(["-strict", "-summary", "-output", "json", "-schema-location"])
        .arg(location)
        .args(ours.map(|name| root().join("deploy").join(name)))
        .output()
        .expect("kubeconform runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let summary: Value = serde_json::from_str(&printed).unwrap_or_else(|_| panic!("{output:?}"));
    let summary = &summary["summary"];
    assert!(output.status.success(), "{printed}");
    assert!(summary["valid"].as_u64() > Some(20) && summary["skipped"] == 0, "{printed}");
}

/// Writes a file for each kind, which rejects fields that the kind does not have.
fn write_schemas(document: &Value, folder: &Path) {
    let mut definitions = document["definitions"].clone();
    for definition in definitions.as_object_mut().expect("definitions").values_mut() {
        close(definition);
    }
    // The schemas of these two types say "string" only.
    definitions["io.k8s.apimachinery.pkg.util.intstr.IntOrString"] = json!({"type": ["string", "integer"]});
    definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = json!({"type": ["string", "number"]});
    for (name, definition) in document["definitions"].as_object().expect("definitions") {
        let kinds = definition["x-kubernetes-group-version-kind"].as_array();
        for kind in kinds.into_iter().flatten() {
            let text = |key: &str| kind[key].as_str().unwrap_or_default().to_lowercase();
            // kubeconform calls the core group, which has no name, "v1".
            let group = Some(text("group")).filter(|group| !group.is_empty()).unwrap_or(text("version"));
            let file = format!("{}-{group}-{}.json", text("kind"), text("version"));
            let schema = json!({
                "$schema": "http://json-schema.org/draft-07/schema#",
                "$ref": format!("#/definitions/{name}"),
                "definitions": reachable(&definitions, name),
            });
            fs::write(folder.join(file), schema.to_string()).expect("a file");
        }
    }
}

/// Forbids fields that a schema does not name.
fn close(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    if schema.contains_key("properties") && !schema.contains_key("additionalProperties") {
        schema.insert("additionalProperties".to_owned(), json!(false));
    }
    for key in ["items", "additionalProperties"] {
        schema.get_mut(key).into_iter().for_each(close);
    }
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    properties.into_iter().flat_map(Map::values_mut).for_each(close);
}

/// A definition, and those that it refers to, directly or not.
fn reachable(definitions: &Value, name: &str) -> Map<String, Value> {
    let mut found = Map::new();
    let mut open = vec![name.to_owned()];
    while let Some(name) = open.pop() {
        if found.contains_key(&name) {
            continue;
        }
        let text = definitions[&name].to_string();
        let references = text.split("\"#/definitions/").skip(1).filter_map(|rest| rest.split('"').next());
        open.extend(references.map(str::to_owned));
        found.insert(name.clone(), definitions[&name].clone());
    }
    found
}
