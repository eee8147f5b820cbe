//! Runs Helm on the chart, and reads what it renders.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;

/// Built once, however many tests ask at the same time.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| programs::helm().expect("Helm"));

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where the chart is.
pub fn chart() -> String {
    root().join("charts/tokenward").display().to_string()
}

/// Runs Helm, by default without a cluster; returns whether it succeeded, its stdout and its stderr.
pub fn try_helm(kubeconfig: Option<&Path>, args: &[&str]) -> (bool, String, String) {
    try_helm_of(&PROGRAM, kubeconfig, args)
}

/// The same with another Helm.
pub fn try_helm_of(program: &Path, kubeconfig: Option<&Path>, args: &[&str]) -> (bool, String, String) {
    let home = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(program);
    // Isolated from the user's own configuration.
    for (variable, folder) in
        [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
    {
        command.env(variable, home.path().join(folder));
    }
    command.env("KUBECONFIG", kubeconfig.unwrap_or(Path::new("/dev/null")));
    let output = command.args(args).stdin(Stdio::null()).output().expect("Helm runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

/// Runs Helm, which must succeed; returns what it printed.
pub fn helm(kubeconfig: &Path, args: &[&str]) -> String {
    let (ok, printed, complaint) = try_helm(Some(kubeconfig), args);
    assert!(ok, "helm {args:?}: {complaint}");
    printed
}

/// Renders the chart as the release `tokenward` in the namespace of that name; returns the text.
pub fn render(args: &[&str]) -> String {
    let (ok, printed, complaint) = try_render(args);
    assert!(ok, "helm template {args:?}: {complaint}");
    printed
}

/// Renders the chart; returns whether that succeeded, the text and the errors.
pub fn try_render(args: &[&str]) -> (bool, String, String) {
    let chart = chart();
    // The default would depend on Helm's version.
    let fixed = ["template", "tokenward", &chart, "--namespace", "tokenward", "--kube-version", "1.36.0"];
    try_helm(None, &[&fixed, args].concat())
}

/// The objects in a rendered text.
pub fn objects(rendered: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(rendered);
    let objects = documents.map(|document| serde::Deserialize::deserialize(document).expect("YAML"));
    objects.filter(|object: &Value| !object.is_null()).collect()
}

/// The object of a kind and name.
pub fn object<'o>(objects: &'o [Value], kind: &str, name: &str) -> &'o Value {
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// The environment variables of a Deployment's container that have literal values.
pub fn variables(deployment: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    let variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array();
    let variables = variables.into_iter().flatten();
    variables.filter_map(|variable| Some((text(&variable["name"])?, text(&variable["value"])?))).collect()
}

/// The arguments of the container of a Deployment or a Job, as a process would get them in a pod of this name.
pub fn arguments(deployment: &Value) -> Vec<String> {
    let namespace = deployment["metadata"]["namespace"].as_str().expect("a namespace");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let arguments = container["args"].as_array().expect("arguments").iter();
    let arguments = arguments.map(|argument| argument.as_str().expect("a text"));
    // As the kubelet expands them.
    arguments
        .map(|text| text.replace("$(POD_NAMESPACE)", namespace).replace("$(POD_NAME)", "a-pod"))
        .collect()
}
