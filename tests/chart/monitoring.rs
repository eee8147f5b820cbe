//! The queries of alerts and the dashboard.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::helm::{object, objects, render, root};
use crate::stage::Stage;

/// Every query of the chart, with the name of its alert or panel.
fn queries() -> Vec<(String, String)> {
    let rules = objects(&render(&["--set=monitoring.prometheusRule.enabled=true"]));
    let groups = object(&rules, "PrometheusRule", "tokenward")["spec"]["groups"].clone();
    let alerts =
        groups.as_array().expect("groups").iter().flat_map(|group| group["rules"].as_array().expect("rules"));
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let mut queries: Vec<_> = alerts.map(|alert| (text(&alert["alert"]), text(&alert["expr"]))).collect();
    for panel in dashboard()["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().expect("queries") {
            // Substituted by Grafana.
            let query =
                text(&target["expr"]).replace("$__rate_interval", "5m").replace("$namespace", "tokenward");
            queries.push((text(&panel["title"]), query));
        }
    }
    queries
}

fn dashboard() -> Value {
    let path = root().join("charts/tokenward/files/monitoring/dashboard.json");
    serde_json::from_str(&fs::read_to_string(path).expect("a dashboard")).expect("JSON")
}

/// The metrics that a query names. Each must be selected by the one namespace; that the query is PromQL is promtool's
/// to say.
fn names(query: &str) -> BTreeSet<String> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut names = BTreeSet::new();
    for (at, _) in query.match_indices("tokenward_") {
        let (before, from) = query.split_at(at);
        assert!(!before.ends_with(is_of_name), "another's metric: {query}");
        let (name, rest) = from.split_at(from.find(|c| !is_of_name(c)).unwrap_or(from.len()));
        let selector = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let (matchers, _) =
            selector.unwrap_or_else(|| panic!("{name} is not selected by namespace: {query}"));
        assert!(matchers.split(',').any(|matcher| matcher.trim() == r#"namespace="tokenward""#), "{query}");
        names.insert(name.to_owned());
    }
    names
}

/// Runs promtool, which must be satisfied.
fn promtool(folder: &Path, args: &[&str]) {
    let mut promtool = Command::new(programs::promtool().expect("promtool"));
    let output = promtool.args(args).current_dir(folder).output().expect("promtool runs");
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{printed}");
}

pub fn alert_and_dashboard_queries_are_valid() {
    let queries = queries();
    assert!(queries.len() > 20, "{queries:?}");
    for (place, query) in &queries {
        assert!(!names(query).is_empty(), "{place}: {query}");
    }
    let rules: Vec<_> =
        (0..).zip(&queries).map(|(n, (_, expr))| json!({"record": format!("q{n}"), "expr": expr})).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let groups = json!({"groups": [{"name": "queries", "rules": rules}]});
    fs::write(folder.path().join("queries.yaml"), groups.to_string()).expect("a file");
    promtool(folder.path(), &["check", "rules", "queries.yaml"]);
    // The chart replaces the namespace in alerts, and copies the dashboard unchanged.
    let (_, rendered, _) = crate::helm::try_helm(
        None,
        &[
            "template",
            "keys",
            &crate::helm::chart(),
            "--namespace=keys",
            "--set=monitoring.prometheusRule.enabled=true,monitoring.dashboard.enabled=true",
        ],
    );
    let objects = objects(&rendered);
    let rules = object(&objects, "PrometheusRule", "keys-tokenward").to_string();
    assert!(
        rules.contains(r#"namespace=\"keys\""#) && !rules.contains(r#"namespace=\"tokenward\""#),
        "{rules}"
    );
    let stored = object(&objects, "ConfigMap", "keys-tokenward-dashboard")["data"]["tokenward.json"].clone();
    let stored: Value = serde_json::from_str(stored.as_str().expect("a text")).expect("JSON");
    assert_eq!(stored, dashboard());
}

/// promtool evaluates them on the samples of `alerts.yaml`.
pub fn alerts_fire_when_they_should() {
    let folder = tempfile::tempdir().expect("a folder");
    let rules = root().join("charts/tokenward/files/monitoring/rules.yaml");
    let samples = root().join("tests/chart/alerts.yaml");
    for file in [&rules, &samples] {
        fs::copy(file, folder.path().join(file.file_name().expect("a name"))).expect("a copy");
    }
    for args in [["check", "rules", "rules.yaml"], ["test", "rules", "alerts.yaml"]] {
        promtool(folder.path(), &args);
    }
    let samples = fs::read_to_string(samples).expect("a text");
    for line in fs::read_to_string(rules).expect("a text").lines() {
        if let Some((_, alert)) = line.split_once("- alert: ") {
            let expected = format!("alertname: {alert}\n        exp_alerts");
            assert!(samples.contains(&expected), "{alert} is never raised in alerts.yaml");
        }
    }
}

/// Some metrics appear with their first sample, so the test first causes one of each.
pub async fn every_queried_metric_exists(stage: &Stage) {
    let space = stage.site.namespace("metrics").await;
    let token = space.active("t", json!({"scopes": ["a:b"]})).await;
    stage.verifier.answers(&token, "scope=a:b", 200).await;
    // A quota without Secrets makes a reconciliation fail.
    stage.site.kubectl(&["create", "quota", "none", "-n", &space.name, "--hard=count/secrets=0"]);
    space.create("forbidden", json!({"scopes": ["a:b"]})).await;
    space.condition("forbidden", tokenward_core::crd::ConditionType::Stalled, "True").await;
    let served = [stage.controller.metrics().await, stage.verifier.metrics().await].concat();
    let served: BTreeSet<_> = served
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    for (place, query) in queries() {
        for name in names(&query) {
            assert!(served.contains(name.as_str()), "{place} asks for {name}; there are {served:?}");
        }
    }
}
