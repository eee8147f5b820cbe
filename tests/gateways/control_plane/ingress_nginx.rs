//! nginx as ingress-nginx configures it (read in kubernetes/ingress-nginx at 1.15, rootfs/etc/nginx/template/nginx.tmpl,
//! with the defaults of internal/ingress/controller/config/config.go).
//!
//! Its nginx balances over pods by Lua, which is left out here: no part of a check.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;

use super::{Manifest, Metadata, cluster, documents, parsed};

#[derive(Deserialize)]
#[serde(tag = "kind")]
enum Object {
    Ingress(Manifest<Ingress>),
    ConfigMap(ConfigMap),
}

/// Headers that the controller's `proxy-set-headers` names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigMap {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "metadata")]
    _metadata: Metadata,
    data: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Ingress {
    ingress_class_name: String,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    http: Http,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Http {
    paths: Vec<Path>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Path {
    path: String,
    path_type: String,
    backend: Value,
}

/// nginx's configuration for the example.
pub fn render(text: &str, [verifier, upstream, gateway]: [SocketAddr; 3]) -> String {
    let (mut ingresses, mut set) = (Vec::new(), BTreeMap::new());
    for document in documents(text) {
        match parsed(document) {
            Object::Ingress(ingress) => ingresses.push(ingress),
            Object::ConfigMap(map) => set.extend(map.data),
        }
    }
    let mut locations = String::new();
    for Manifest { metadata, spec, .. } in &ingresses {
        assert_eq!(spec.ingress_class_name, "nginx");
        let annotation = |name: &str| &*metadata.annotations[&format!("nginx.ingress.kubernetes.io/{name}")];
        assert_eq!(metadata.annotations.len(), 2);
        let service = "http://tokenward-verifier.tokenward.svc.cluster.local:8080/";
        let query = annotation("auth-url").strip_prefix(service).expect("the verifier's Service");
        for path in spec.rules.iter().flat_map(|rule| &rule.http.paths) {
            let backend = &path.backend["service"];
            let port = backend["port"]["number"].as_u64().and_then(|port| u16::try_from(port).ok());
            let name = backend["name"].as_str().unwrap_or_default();
            assert_eq!(cluster(&metadata.namespace, name, port.unwrap_or_default()), "api");
            assert_eq!(path.path_type, "Prefix");
            // internal/ingress/controller/location.go, updateServerLocations, for a path that ends with a slash.
            assert!(path.path.ends_with('/'), "{}", path.path);
            for (kind, location) in
                [("Prefix", format!("{:?}", path.path)), ("Exact", format!("= {:?}", path.path))]
            {
                let auth = format!("/_external-auth-{}-{kind}", URL_SAFE_NO_PAD.encode(&path.path));
                let headers = annotation("auth-response-headers").split(',');
                let mut passed = String::new();
                for (number, header) in headers.enumerate() {
                    let variable = header.to_lowercase().replace('-', "_");
                    writeln!(passed, "auth_request_set $authHeader{number} $upstream_http_{variable};")
                        .unwrap();
                    writeln!(passed, "proxy_set_header '{header}' $authHeader{number};").unwrap();
                }
                for (name, value) in &set {
                    writeln!(passed, "proxy_set_header {name} {value:?};").unwrap();
                }
                writeln!(locations, "{}", check(&auth, &format!("http://{verifier}/{query}"))).unwrap();
                writeln!(locations, "{}", protected(&location, &auth, &passed)).unwrap();
            }
        }
    }
    format!(
        r#"
events {{}}
http {{
    underscores_in_headers off;
    ignore_invalid_headers on;
    absolute_redirect off;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    map $http_x_request_id $req_id {{ default $http_x_request_id; "" $request_id; }}
    upstream upstream_balancer {{ server {upstream}; keepalive 320; }}
    server {{
        listen {gateway};
        {locations}
        location "/" {{ return 404; }}
    }}
}}
"#
    )
}

/// The location that asks the verifier.
fn check(name: &str, target: &str) -> String {
    format!(
        r#"
location = {name} {{
    internal;
    access_log off;
    proxy_intercept_errors off;
    proxy_pass_request_body off;
    proxy_set_header Content-Length "";
    proxy_set_header X-Forwarded-Proto "";
    proxy_set_header X-Request-ID $req_id;
    proxy_set_header X-Original-URL $scheme://$http_host$request_uri;
    proxy_set_header X-Original-Method $request_method;
    proxy_set_header X-Sent-From "nginx-ingress-controller";
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Auth-Request-Redirect $request_uri;
    proxy_set_header Host "tokenward-verifier.tokenward.svc.cluster.local";
    proxy_pass_request_headers on;
    client_max_body_size 1m;
    proxy_http_version 1.1;
    set $target "{target}";
    proxy_pass $target;
}}"#
    )
}

/// The location of a path.
fn protected(location: &str, check: &str, headers: &str) -> String {
    format!(
        r#"
location {location} {{
    set $best_http_host $http_host;
    auth_request {check};
    auth_request_set $auth_cookie $upstream_http_set_cookie;
    add_header Set-Cookie $auth_cookie;
    {headers}
    client_max_body_size 1m;
    proxy_set_header Host $best_http_host;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
    proxy_set_header X-Request-ID $req_id;
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Host $best_http_host;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Scheme $scheme;
    proxy_set_header X-Original-Forwarded-For $http_x_forwarded_for;
    proxy_set_header Proxy "";
    proxy_connect_timeout 5s;
    proxy_send_timeout 60s;
    proxy_read_timeout 60s;
    proxy_buffering off;
    proxy_request_buffering on;
    proxy_http_version 1.1;
    proxy_next_upstream error timeout;
    proxy_pass http://upstream_balancer;
    proxy_redirect off;
}}"#
    )
}
