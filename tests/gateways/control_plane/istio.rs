//! Envoy as Istio configures its ingress gateway (read in istio/istio at 1.31).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{MANAGER, Manifest, cluster, documents, envoy, http_filter, parsed};

/// Values of istiod's Helm chart.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Values {
    env: BTreeMap<String, String>,
    mesh_config: Mesh,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Mesh {
    path_normalization: Normalization,
    extension_providers: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Normalization {
    normalization: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Provider {
    name: String,
    envoy_ext_authz_http: ExtAuthz,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ExtAuthz {
    service: String,
    port: u16,
    path_prefix: String,
    fail_open: bool,
    status_on_error: String,
    timeout: String,
    include_request_headers_in_check: Vec<String>,
    headers_to_upstream_on_allow: Vec<String>,
    headers_to_downstream_on_deny: Vec<String>,
}

#[derive(Deserialize)]
#[serde(tag = "kind")]
enum Object {
    AuthorizationPolicy(Manifest<Policy>),
    EnvoyFilter(Manifest<EnvoyFilter>),
    Gateway(Manifest<serde_yaml::Value>),
    VirtualService(Manifest<VirtualService>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    selector: Selector,
    action: String,
    provider: Option<Named>,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    to: Vec<To>,
    #[serde(default)]
    when: Vec<Condition>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct To {
    operation: Operation,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Operation {
    #[serde(default)]
    paths: Vec<String>,
    #[serde(default)]
    not_paths: Vec<String>,
    #[serde(default)]
    not_methods: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Condition {
    key: String,
    not_values: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct EnvoyFilter {
    workload_selector: Labels,
    config_patches: Vec<ConfigPatch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Labels {
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ConfigPatch {
    apply_to: String,
    r#match: Value,
    patch: Patch,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    operation: String,
    value: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VirtualService {
    #[serde(rename = "gateways")]
    _gateways: Vec<String>,
    #[serde(rename = "hosts")]
    _hosts: Vec<String>,
    http: Vec<HttpRoute>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct HttpRoute {
    r#match: Vec<HttpMatch>,
    direct_response: Option<DirectResponse>,
    headers: Option<Headers>,
    #[serde(default)]
    route: Vec<Destinations>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpMatch {
    uri: Uri,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Uri {
    Prefix(String),
    Regex(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DirectResponse {
    status: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Headers {
    request: Removed,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Removed {
    remove: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Destinations {
    destination: Destination,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Destination {
    host: String,
    port: Port,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Port {
    number: u16,
}

/// Envoy's configuration for the example.
pub fn render(text: &str, addresses: [SocketAddr; 3]) -> String {
    let mut documents = documents(text).into_iter();
    let values: Values = parsed(documents.next().expect("values of istiod's chart"));
    let (mut custom, mut others, mut routes) = (Vec::new(), Vec::new(), Vec::new());
    let mut manager = manager(&values.mesh_config.path_normalization.normalization);
    for document in documents {
        match parsed(document) {
            Object::AuthorizationPolicy(policy) => {
                assert_eq!(policy.spec.selector.match_labels["istio"], "ingressgateway");
                if policy.spec.action == "CUSTOM" { custom.push(policy) } else { others.push(policy) }
            }
            Object::EnvoyFilter(filter) => apply(&filter.spec, &mut manager),
            Object::Gateway(gateway) => assert!(!gateway.spec.is_null(), "{}", gateway.metadata.name),
            Object::VirtualService(service) => routes.extend(service.spec.http.iter().flat_map(routes_of)),
        }
    }
    // pilot/pkg/security/authz/builder/builder.go, buildHTTP: filters of CUSTOM policies, then of the others.
    let enabled = &values.env["PILOT_ENABLE_MULTIPLE_CUSTOM_AUTHZ_PROVIDERS"];
    assert!(custom.len() == 1 || enabled == "true", "several providers");
    let mut providers: Vec<&Provider> = values.mesh_config.extension_providers.iter().collect();
    providers.sort_by_key(|provider| &provider.name);
    let mut filters = Vec::new();
    for policy in &custom {
        let named = policy.spec.provider.as_ref().map(|provider| &provider.name);
        assert!(providers.iter().any(|provider| Some(&provider.name) == named), "{named:?} is no provider");
    }
    for provider in providers {
        let rules = custom
            .iter()
            .filter(|policy| policy.spec.provider.as_ref().is_some_and(|named| named.name == provider.name));
        let rules = rbac("DENY", rules, &format!("istio-ext-authz-{}-", provider.name));
        filters.push(http_filter(
            "envoy.filters.http.rbac",
            "rbac.v3.RBAC",
            json!({"shadow_rules": rules, "shadow_rules_stat_prefix": "istio_ext_authz_"}),
        ));
        filters.push(http_filter(
            "envoy.filters.http.ext_authz",
            "ext_authz.v3.ExtAuthz",
            ext_authz(provider),
        ));
    }
    for policy in &others {
        let rules = rbac(&policy.spec.action, [policy].into_iter(), "");
        filters.push(http_filter("envoy.filters.http.rbac", "rbac.v3.RBAC", json!({"rules": rules})));
    }
    envoy(manager, &filters, &routes, addresses)
}

/// pilot/pkg/networking/core/listener_builder.go, of an ingress gateway without further settings.
fn manager(normalization: &str) -> Value {
    assert_eq!(normalization, "DECODE_AND_MERGE_SLASHES");
    json!({
        "use_remote_address": true,
        "normalize_path": true,
        "merge_slashes": true,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
    })
}

/// Merges into the HTTP connection manager.
fn apply(filter: &EnvoyFilter, manager: &mut Value) {
    assert_eq!(filter.workload_selector.labels["istio"], "ingressgateway");
    for ConfigPatch { apply_to, r#match, patch } in &filter.config_patches {
        assert_eq!((&**apply_to, &*patch.operation), ("NETWORK_FILTER", "MERGE"));
        let name = "envoy.filters.network.http_connection_manager";
        assert_eq!(
            *r#match,
            json!({"context": "GATEWAY", "listener": {"filterChain": {"filter": {"name": name}}}})
        );
        let config = patch.value["typed_config"].as_object().expect("a typed_config");
        assert_eq!(config["@type"], format!("type.googleapis.com/{MANAGER}"));
        for (field, value) in config.iter().filter(|(field, _)| *field != "@type") {
            assert!(manager.get(field).is_none(), "{field} would have to be merged");
            manager[field] = value.clone();
        }
    }
}

/// pilot/pkg/security/authz/builder/extauthz.go, generateHTTPConfig and generateFilterMatcherForProvider.
fn ext_authz(Provider { name, envoy_ext_authz_http: provider }: &Provider) -> Value {
    let (service, domain) = provider.service.split_once('.').expect("a Service's name");
    let namespace = domain.strip_suffix(".svc.cluster.local").expect("a Service's namespace");
    let uri = json!({
        "uri": format!("http://{}", provider.service),
        "cluster": cluster(namespace, service, provider.port),
        "timeout": provider.timeout,
    });
    json!({
        "failure_mode_allow": provider.fail_open,
        "status_on_error": {"code": provider.status_on_error.parse::<u16>().expect("a status")},
        "allowed_headers": headers(&provider.include_request_headers_in_check),
        "http_service": {
            "path_prefix": provider.path_prefix,
            "server_uri": uri,
            "authorization_response": {
                "allowed_upstream_headers": headers(&provider.headers_to_upstream_on_allow),
                "allowed_client_headers": headers(&provider.headers_to_downstream_on_deny),
            },
        },
        "filter_enabled_metadata": {
            "filter": "envoy.filters.http.rbac",
            "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}],
            "value": {"string_match": {"prefix": format!("istio-ext-authz-{name}")}},
        },
    })
}

/// generateHeaders in the same file.
fn headers(names: &[String]) -> Value {
    let patterns = names.iter().map(|name| {
        let mut pattern = string(name);
        pattern["ignore_case"] = json!(true);
        pattern
    });
    json!({"patterns": patterns.collect::<Vec<_>>()})
}

/// pilot/pkg/security/authz/matcher: an exact string, or with `*` at its end a prefix.
fn string(value: &str) -> Value {
    match value.strip_suffix('*') {
        Some(prefix) => json!({"prefix": prefix}),
        None => json!({"exact": value}),
    }
}

/// pilot/pkg/security/authz/model/model.go, and policyName in builder.go.
fn rbac<'a>(action: &str, policies: impl Iterator<Item = &'a Manifest<Policy>>, prefix: &str) -> Value {
    let mut rules = json!({"action": action, "policies": {}});
    for policy in policies {
        let (namespace, name) = (&policy.metadata.namespace, &policy.metadata.name);
        for (index, rule) in policy.spec.rules.iter().enumerate() {
            let name = format!("{prefix}ns[{namespace}]-policy[{name}]-rule[{index}]");
            rules["policies"][name] = json!({
                "permissions": rule.to.iter().map(|to| permission(&to.operation)).collect::<Vec<_>>(),
                "principals": [principal(&rule.when)],
            });
        }
    }
    rules
}

fn permission(Operation { paths, not_paths, not_methods }: &Operation) -> Value {
    let path = |path: &String| json!({"url_path": {"path": string(path)}});
    let method = |method: &String| json!({"header": {"name": ":method", "string_match": string(method)}});
    let any = |rules: Vec<Value>| json!({"or_rules": {"rules": rules}});
    let mut all = Vec::new();
    if !paths.is_empty() {
        all.push(any(paths.iter().map(path).collect()));
    }
    for excluded in [not_paths.iter().map(path).collect::<Vec<_>>(), not_methods.iter().map(method).collect()]
    {
        if !excluded.is_empty() {
            all.push(json!({"not_rule": any(excluded)}));
        }
    }
    json!({"and_rules": {"rules": all}})
}

fn principal(when: &[Condition]) -> Value {
    let mut all = Vec::new();
    for Condition { key, not_values } in when {
        let header = key.strip_prefix("request.headers[").and_then(|key| key.strip_suffix(']'));
        assert_eq!(*not_values, ["*"], "{key}");
        let present = json!({"header": {"name": header.expect("a header"), "present_match": true}});
        all.push(json!({"not_id": {"or_ids": {"ids": [present]}}}));
    }
    if all.is_empty() {
        all.push(json!({"any": true}));
    }
    json!({"and_ids": {"ids": all}})
}

/// pilot/pkg/networking/core/route/route.go.
fn routes_of(route: &HttpRoute) -> Vec<Value> {
    let mut common = json!({});
    if let Some(DirectResponse { status }) = route.direct_response {
        common["direct_response"] = json!({"status": status});
    }
    if let Some(headers) = &route.headers {
        common["request_headers_to_remove"] = json!(headers.request.remove);
    }
    if let [Destinations { destination }] = &*route.route {
        let (service, domain) = destination.host.split_once('.').expect("a Service's name");
        let namespace = domain.strip_suffix(".svc.cluster.local").expect("a Service's namespace");
        common["route"] = json!({"cluster": cluster(namespace, service, destination.port.number)});
    }
    let routes = route.r#match.iter().map(|HttpMatch { uri }| {
        let mut entry = common.clone();
        entry["match"] = match uri {
            Uri::Prefix(prefix) => json!({"prefix": prefix}),
            Uri::Regex(regex) => json!({"safe_regex": {"regex": regex}}),
        };
        entry
    });
    routes.collect()
}
