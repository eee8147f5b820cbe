//! Gateways with a control plane: real data planes, configured as their control planes configure them.
//!
//! The control planes themselves need a cluster. What they make of their objects is repeated here, as read in their
//! sources, so that an example is tested by what it says. Fields that are not repeated here are errors.

pub mod gateway_api;
pub mod ingress_nginx;
pub mod istio;

use std::net::SocketAddr;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// An object of Kubernetes without its kind.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Manifest<S> {
    #[serde(rename = "apiVersion")]
    pub _api_version: String,
    pub metadata: Metadata,
    pub spec: S,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    pub name: String,
    pub namespace: String,
    #[serde(default)]
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// The documents of an example.
fn documents(text: &str) -> Vec<serde_yaml::Value> {
    let documents = serde_yaml::Deserializer::from_str(text).map(|document| {
        let mut value = serde_yaml::Value::deserialize(document).expect("YAML");
        value.apply_merge().expect("mappings to merge");
        value
    });
    documents.collect()
}

fn parsed<T: DeserializeOwned>(document: serde_yaml::Value) -> T {
    let written = format!("{document:?}");
    serde_yaml::from_value(document).unwrap_or_else(|error| panic!("{error}: {written}"))
}

/// The cluster of [`envoy`] for a Service.
fn cluster(namespace: &str, name: &str, port: u16) -> &'static str {
    match (namespace, name, port) {
        ("tokenward", "tokenward-verifier", 8080) => "tokenward",
        ("shop", "api", 8080) => "api",
        other => panic!("no such Service: {other:?}"),
    }
}

const MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// A filter's configuration, or a route's for it.
fn typed(message: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/{message}"));
    config
}

fn http_filter(name: &str, message: &str, config: Value) -> Value {
    json!({"name": name, "typed_config": typed(&format!("envoy.extensions.filters.http.{message}"), config)})
}

/// Envoy's configuration: a listener whose HTTP connection manager has these fields, filters and routes.
fn envoy(
    mut manager: Value,
    filters: &[Value],
    routes: &[Value],
    [verifier, upstream, gateway]: [SocketAddr; 3],
) -> String {
    let address = |of: SocketAddr| json!({"socket_address": {"address": of.ip(), "port_value": of.port()}});
    let cluster = |name: &str, of: SocketAddr| {
        let endpoints = json!([{"lb_endpoints": [{"endpoint": {"address": address(of)}}]}]);
        json!({"name": name, "load_assignment": {"cluster_name": name, "endpoints": endpoints}})
    };
    let router = http_filter("envoy.filters.http.router", "router.v3.Router", json!({}));
    manager["stat_prefix"] = json!("gateway");
    manager["http_filters"] = filters.iter().chain([&router]).cloned().collect();
    manager["route_config"] = json!({"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]});
    let chain = json!({"filters": [
        {"name": "envoy.filters.network.http_connection_manager", "typed_config": typed(MANAGER, manager)}
    ]});
    json!({"static_resources": {
        "listeners": [{"name": "gateway", "address": address(gateway), "filter_chains": [chain]}],
        "clusters": [cluster("tokenward", verifier), cluster("api", upstream)],
    }})
    .to_string()
}
