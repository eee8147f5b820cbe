//! Envoy as Envoy Gateway configures it (read in envoyproxy/gateway at v1.9), for its own policies and for the Gateway
//! API's filter ExternalAuth.
//!
//! Envoy Gateway itself does not implement that filter. What it means for Envoy is read in kubernetes-sigs/gateway-api,
//! apis/v1/httproute_types.go, `HTTPAuthConfig`: its fields are those of Envoy's ext_authz.

use std::cmp::Reverse;
use std::net::SocketAddr;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Manifest, cluster, documents, envoy, http_filter, parsed, typed};

#[derive(Deserialize)]
#[serde(tag = "kind")]
enum Object {
    Gateway(Manifest<serde_yaml::Value>),
    #[serde(rename = "HTTPRoute")]
    HttpRoute(Manifest<RouteSpec>),
    ReferenceGrant(Manifest<Grant>),
    ClientTrafficPolicy(Manifest<ClientTraffic>),
    SecurityPolicy(Manifest<Security>),
    BackendTrafficPolicy(Manifest<BackendTraffic>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RouteSpec {
    #[serde(rename = "parentRefs")]
    _parent_refs: Vec<Value>,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rule {
    matches: Vec<Match>,
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    backend_refs: Vec<Reference>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Match {
    path: Matcher,
    method: Option<String>,
    #[serde(default)]
    headers: Vec<NamedMatcher>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Matcher {
    r#type: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedMatcher {
    r#type: String,
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, tag = "type", rename_all_fields = "camelCase")]
enum Filter {
    RequestHeaderModifier { request_header_modifier: Modifier },
    RequestRedirect { request_redirect: Redirect },
    ExternalAuth { external_auth: ExternalAuth },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Modifier {
    remove: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Redirect {
    path: FullPath,
    status_code: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, tag = "type", rename_all_fields = "camelCase")]
enum FullPath {
    ReplaceFullPath { replace_full_path: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ExternalAuth {
    protocol: String,
    backend_ref: Reference,
    http: HttpAuth,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct HttpAuth {
    path: String,
    allowed_headers: Vec<String>,
    allowed_response_headers: Vec<String>,
}

/// To a Service, by default in the namespace of who refers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    name: String,
    namespace: Option<String>,
    port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grant {
    from: Vec<GrantFrom>,
    to: Vec<GrantTo>,
}

#[derive(Deserialize, PartialEq, Eq)]
struct GrantFrom {
    kind: String,
    namespace: String,
}

#[derive(Deserialize, PartialEq, Eq)]
struct GrantTo {
    kind: String,
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Target {
    #[serde(rename = "group")]
    _group: String,
    kind: String,
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ClientTraffic {
    #[serde(rename = "targetRefs")]
    _target_refs: Vec<Target>,
    headers: ClientHeaders,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ClientHeaders {
    early_request_headers: EarlyHeaders,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct EarlyHeaders {
    remove_on_match: Vec<Matcher>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Security {
    target_refs: Vec<Target>,
    ext_auth: Option<ExtAuth>,
    authorization: Option<Authorization>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Authorization {
    default_action: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ExtAuth {
    fail_open: bool,
    status_on_error: Option<u16>,
    timeout: Option<String>,
    #[serde(default)]
    headers_to_ext_auth: Vec<String>,
    http: ExtAuthHttp,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ExtAuthHttp {
    path: String,
    backend_refs: Vec<Reference>,
    #[serde(default)]
    headers_to_backend: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct BackendTraffic {
    target_refs: Vec<Target>,
    request_buffer: RequestBuffer,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestBuffer {
    limit: u32,
}

/// The objects of an example.
#[derive(Default)]
struct Objects {
    routes: Vec<Manifest<RouteSpec>>,
    grants: Vec<Manifest<Grant>>,
    clients: Vec<Manifest<ClientTraffic>>,
    security: Vec<Manifest<Security>>,
    backends: Vec<Manifest<BackendTraffic>>,
}

/// Envoy's configuration for an example.
pub fn render(text: &str, addresses: [SocketAddr; 3]) -> String {
    let mut objects = Objects::default();
    for document in documents(text) {
        match parsed(document) {
            Object::Gateway(gateway) => assert!(!gateway.spec.is_null(), "{}", gateway.metadata.name),
            Object::HttpRoute(object) => objects.routes.push(object),
            Object::ReferenceGrant(object) => objects.grants.push(object),
            Object::ClientTrafficPolicy(object) => objects.clients.push(object),
            Object::SecurityPolicy(object) => objects.security.push(object),
            Object::BackendTrafficPolicy(object) => objects.backends.push(object),
        }
    }
    let (mut filters, mut routes) = (Vec::new(), Vec::new());
    for route in &objects.routes {
        for rule in &route.spec.rules {
            routes.extend(objects.routes_of(route, rule, &mut filters));
        }
    }
    // The first of several that match has precedence (internal/gatewayapi/sort.go).
    routes.sort_by_key(|(precedence, _)| Reverse(*precedence));
    let routes: Vec<Value> = routes.into_iter().map(|(_, route)| route).collect();
    envoy(objects.manager(), &filters, &routes, addresses)
}

impl Objects {
    /// internal/xds/translator/listener.go, with the defaults of a listener.
    fn manager(&self) -> Value {
        let mut manager = json!({
            "use_remote_address": true,
            "normalize_path": true,
            "merge_slashes": true,
            "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
            "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
        });
        let early =
            self.clients.iter().flat_map(|policy| &policy.spec.headers.early_request_headers.remove_on_match);
        let mutations: Vec<Value> =
            early.map(|matcher| json!({"remove_on_match": {"key_matcher": string(matcher)}})).collect();
        if !mutations.is_empty() {
            let message = "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation";
            manager["early_header_mutation_extensions"] = json!([{
                "name": "envoy.http.early_header_mutation.header_mutation",
                "typed_config": typed(message, json!({"mutations": mutations})),
            }]);
        }
        manager
    }

    /// The routes of a rule, each with its precedence (internal/xds/translator/route.go).
    fn routes_of(
        &self,
        route: &Manifest<RouteSpec>,
        rule: &Rule,
        filters: &mut Vec<Value>,
    ) -> Vec<((u8, usize, usize), Value)> {
        let namespace = &route.metadata.namespace;
        let mut common = json!({"typed_per_filter_config": {}});
        let mut check = self.policy(route);
        if let [to] = &*rule.backend_refs {
            let cluster = cluster(to.namespace.as_ref().unwrap_or(namespace), &to.name, to.port);
            common["route"] = json!({"cluster": cluster});
        }
        for filter in &rule.filters {
            match filter {
                Filter::RequestHeaderModifier { request_header_modifier: modifier } => {
                    common["request_headers_to_remove"] = json!(modifier.remove);
                }
                Filter::RequestRedirect { request_redirect: Redirect { path, status_code: 302 } } => {
                    let FullPath::ReplaceFullPath { replace_full_path } = path;
                    common["redirect"] =
                        json!({"path_redirect": replace_full_path, "response_code": "FOUND"});
                }
                Filter::RequestRedirect { .. } => panic!("another status than 302"),
                Filter::ExternalAuth { external_auth } => {
                    check =
                        Some((external_auth.http.path.clone(), self.external_auth(namespace, external_auth)));
                }
            }
        }
        if let Some((name, config)) = check {
            // A disabled filter for each check, which a route enables (internal/xds/translator/extauth.go, buildHCMExtAuthFilter).
            let name = format!("envoy.filters.http.ext_authz/{name}");
            let enabled = json!({"check_settings": {}});
            common["typed_per_filter_config"][&name] =
                typed("envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute", enabled);
            let mut filter = http_filter(&name, "ext_authz.v3.ExtAuthz", config);
            filter["disabled"] = json!(true);
            if !filters.contains(&filter) {
                filters.push(filter);
            }
        }
        let buffers = self.backends.iter().filter(|policy| targets(&policy.spec.target_refs, route));
        for policy in buffers {
            // internal/xds/translator/request_buffer.go
            let buffer = json!({"max_request_bytes": policy.spec.request_buffer.limit});
            let mut filter = http_filter("envoy.filters.http.buffer", "buffer.v3.Buffer", buffer.clone());
            filter["disabled"] = json!(true);
            filters.push(filter);
            common["typed_per_filter_config"]["envoy.filters.http.buffer"] =
                typed("envoy.extensions.filters.http.buffer.v3.BufferPerRoute", json!({"buffer": buffer}));
        }
        let routes = rule.matches.iter().map(|matched| {
            let mut entry = common.clone();
            let (precedence, found) = matched.found();
            entry["match"] = found;
            (precedence, entry)
        });
        routes.collect()
    }

    /// A policy of the route itself, or else of the Gateway; with its name. `None`: it does not check, or there is none.
    fn policy(&self, route: &Manifest<RouteSpec>) -> Option<(String, Value)> {
        let of_gateway =
            |policy: &&Manifest<Security>| policy.spec.target_refs.iter().any(|t| t.kind == "Gateway");
        let of_route = |policy: &&Manifest<Security>| targets(&policy.spec.target_refs, route);
        let policy = self.security.iter().find(of_route).or_else(|| self.security.iter().find(of_gateway))?;
        if let Some(authorization) = &policy.spec.authorization {
            assert_eq!(authorization.default_action, "Allow");
        }
        let auth = policy.spec.ext_auth.as_ref()?;
        let [service] = &*auth.http.backend_refs else { panic!("a Service") };
        let cluster = self.granted("SecurityPolicy", &policy.metadata.namespace, service);
        let mut config = ext_authz(
            &auth.http.path,
            cluster,
            auth.timeout.as_deref(),
            &auth.headers_to_ext_auth,
            &auth.http.headers_to_backend,
        );
        config["failure_mode_allow"] = json!(auth.fail_open);
        if let Some(status) = auth.status_on_error {
            config["status_on_error"] = json!({"code": status});
        }
        Some((policy.metadata.name.clone(), config))
    }

    /// Without a response nothing passes, by Envoy's default.
    fn external_auth(&self, namespace: &str, auth: &ExternalAuth) -> Value {
        assert_eq!(auth.protocol, "HTTP");
        let cluster = self.granted("HTTPRoute", namespace, &auth.backend_ref);
        ext_authz(
            &auth.http.path,
            cluster,
            None,
            &auth.http.allowed_headers,
            &auth.http.allowed_response_headers,
        )
    }

    /// The cluster of a Service that objects in another namespace may refer to only by a ReferenceGrant.
    fn granted(&self, kind: &str, namespace: &str, to: &Reference) -> &'static str {
        let in_namespace = to.namespace.as_deref().unwrap_or(namespace);
        let from = GrantFrom { kind: kind.to_owned(), namespace: namespace.to_owned() };
        let service = GrantTo { kind: "Service".to_owned(), name: to.name.clone() };
        let grants = |grant: &Manifest<Grant>| {
            grant.metadata.namespace == in_namespace
                && grant.spec.from.contains(&from)
                && grant.spec.to.contains(&service)
        };
        assert!(in_namespace == namespace || self.grants.iter().any(grants), "no ReferenceGrant for {kind}");
        cluster(in_namespace, &to.name, to.port)
    }
}

/// internal/xds/translator/extauth.go, extAuthConfig and httpService.
fn ext_authz(
    path: &str,
    cluster: &str,
    timeout: Option<&str>,
    to_check: &[String],
    to_backend: &[String],
) -> Value {
    let patterns = |names: &[String]| {
        let exact = names.iter().map(|name| json!({"exact": name, "ignore_case": true}));
        json!({"patterns": exact.collect::<Vec<_>>()})
    };
    let uri =
        json!({"uri": "http://tokenward-verifier", "cluster": cluster, "timeout": timeout.unwrap_or("10s")});
    let mut config = json!({"http_service": {"path_prefix": path, "server_uri": uri}});
    if !to_check.is_empty() {
        config["allowed_headers"] = patterns(to_check);
    }
    if !to_backend.is_empty() {
        config["http_service"]["authorization_response"] =
            json!({"allowed_upstream_headers": patterns(to_backend)});
    }
    config
}

fn targets(targets: &[Target], route: &Manifest<RouteSpec>) -> bool {
    targets.iter().any(|target| target.kind == "HTTPRoute" && target.name == route.metadata.name)
}

/// internal/xds/translator/route.go, buildXdsStringMatcher.
fn string(Matcher { r#type, value }: &Matcher) -> Value {
    match &**r#type {
        "Prefix" => json!({"prefix": value}),
        "RegularExpression" => json!({"safe_regex": {"regex": value}}),
        other => panic!("{other}"),
    }
}

impl Match {
    /// Its precedence, and its form for Envoy (internal/xds/translator/route.go, buildXdsRouteMatch and buildPathMatch).
    fn found(&self) -> ((u8, usize, usize), Value) {
        let (rank, mut found) = match &*self.path.r#type {
            "PathPrefix" => (0, json!({"path_separated_prefix": self.path.value.trim_end_matches('/')})),
            "RegularExpression" => (1, string(&self.path)),
            other => panic!("{other}"),
        };
        let method =
            self.method.iter().map(|method| json!({"name": ":method", "string_match": {"exact": method}}));
        let headers = self.headers.iter().map(|NamedMatcher { r#type, name, value }| {
            let matcher = Matcher { r#type: r#type.clone(), value: value.clone() };
            json!({"name": name, "string_match": string(&matcher)})
        });
        let headers: Vec<Value> = method.chain(headers).collect();
        let precedence = (rank, self.path.value.len(), headers.len());
        found["headers"] = json!(headers);
        (precedence, found)
    }
}
