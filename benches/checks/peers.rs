//! What the verifier is measured beside: the bare HTTP server, and gateways that look up a plaintext key.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::server::{Server, free_address};
use super::tokens;

/// How many keys the gateways have. More would make them slower to start, not to respond.
pub const GATEWAY_KEYS: u64 = 10_000;

/// The bare HTTP server.
pub fn bare(tokens: u64, folder: &Path) -> anyhow::Result<Server> {
    let listen = free_address()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bare", &listen.to_string()]);
    let check = "none: reads the header, answers the same bytes";
    Server::start("bare hyper", check, listen, "/auth", tokens, &command, &folder.join("bare.log"))
}

/// nginx, one worker, a map of plaintext keys.
pub fn nginx(program: PathBuf, folder: &Path) -> anyhow::Result<Server> {
    let (listen, keys) = (free_address()?, keys(|key, n| format!("\"Bearer {key}\" acct_{n};\n")));
    let config = format!(
        r#"daemon off; master_process off; worker_processes 1; error_log stderr warn; pid {pid};
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; tcp_nodelay on;
  client_body_temp_path {tmp}; proxy_temp_path {tmp}; fastcgi_temp_path {tmp}; uwsgi_temp_path {tmp}; scgi_temp_path {tmp};
  map_hash_bucket_size 256; map_hash_max_size 65536;
  map $http_authorization $owner {{ default ""; {keys} }}
  server {{
    listen {listen};
    location / {{ if ($owner = "") {{ return 401; }} add_header X-Owner $owner; return 204; }}
  }}
}}
"#,
        pid = folder.join("nginx.pid").display(),
        tmp = folder.join("nginx-tmp").display(),
    );
    let path = folder.join("nginx.conf");
    std::fs::write(&path, config)?;
    let mut command = Command::new(program);
    command.arg("-p").arg(folder).arg("-c").arg(path);
    let check = "plaintext key in a hash map";
    Server::start("nginx map", check, listen, "/", GATEWAY_KEYS, &command, &folder.join("nginx.log"))
}

/// HAProxy, one thread, a map of plaintext keys.
pub fn haproxy(program: PathBuf, folder: &Path) -> anyhow::Result<Server> {
    let listen = free_address()?;
    let map = folder.join("haproxy.map");
    std::fs::write(&map, keys(|key, n| format!("{key} acct_{n}\n")))?;
    let config = format!(
        r#"global
  nbthread 1
  maxconn 2000
defaults
  mode http
  timeout client 60s
  timeout server 60s
  timeout connect 5s
frontend checks
  bind {listen}
  http-request set-var(txn.owner) req.hdr(authorization),regsub("^Bearer ",""),map_str({map})
  http-request return status 401 unless {{ var(txn.owner) -m found }}
  http-request return status 200 hdr X-Owner %[var(txn.owner)]
"#,
        map = map.display(),
    );
    let path = folder.join("haproxy.cfg");
    std::fs::write(&path, config)?;
    let mut command = Command::new(program);
    command.arg("-db").arg("-f").arg(path);
    let check = "plaintext key in a tree";
    Server::start("HAProxy map", check, listen, "/", GATEWAY_KEYS, &command, &folder.join("haproxy.log"))
}

/// Envoy, one worker, its filter for API keys.
pub fn envoy(program: PathBuf, folder: &Path) -> anyhow::Result<Server> {
    let listen = free_address()?;
    let credentials: Vec<_> = (0..GATEWAY_KEYS)
        .map(|n| serde_json::json!({"key": tokens::good(n), "client": format!("acct_{n}")}))
        .collect();
    let typed = |name: &str, rest: serde_json::Value| {
        let mut config = rest;
        config["@type"] = format!("type.googleapis.com/{name}").into();
        config
    };
    let api_key_auth = typed(
        "envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth",
        serde_json::json!({"credentials": credentials, "key_sources": [{"header": "Authorization"}], "forwarding": {"header": "X-Owner"}}),
    );
    let router = typed("envoy.extensions.filters.http.router.v3.Router", serde_json::json!({}));
    let manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        serde_json::json!({
            "stat_prefix": "checks",
            "http_filters": [
                {"name": "envoy.filters.http.api_key_auth", "typed_config": api_key_auth},
                {"name": "envoy.filters.http.router", "typed_config": router},
            ],
            "route_config": {"virtual_hosts": [{
                "name": "all", "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
            }]},
        }),
    );
    let config = serde_json::json!({"static_resources": {"listeners": [{
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": listen.port()}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }]}});
    let path = folder.join("envoy.json");
    std::fs::write(&path, config.to_string())?;
    let mut command = Command::new(program);
    command.arg("-c").arg(path).args(["--concurrency", "1", "-l", "error", "--disable-hot-restart"]);
    let check = "plaintext key in a hash map";
    Server::start("Envoy api_key_auth", check, listen, "/", GATEWAY_KEYS, &command, &folder.join("envoy.log"))
}

fn keys(line: impl Fn(&str, u64) -> String) -> String {
    (0..GATEWAY_KEYS).fold(String::new(), |mut all, n| {
        let _ = all.write_str(&line(&tokens::good(n), n));
        all
    })
}
