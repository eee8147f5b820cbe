//! The checks that every gateway must pass.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::curl::{Curl, Reply};
use crate::stage::{Shared, Stage, Token};
use crate::upstream::Seen;
use testkit::eventually;

/// The identity headers, as a client may spell them.
const IDENTITY_HEADERS: [&str; 7] = [
    "X-Tokenward-Id",
    "x-tokenward-subject",
    "X-TOKENWARD-SCOPES",
    "X_Tokenward_Id",
    "x_tokenward_subject",
    "X-Tokenward_Scopes",
    "X_TOKENWARD-ID",
];

/// Paths below `/orders/` or `/` that some services take for others, below `/admin/`.
const AMBIGUOUS_PATHS: [&str; 17] = [
    "/orders/../admin/x",
    "/orders/./../admin/x",
    "/orders/%2e%2e/admin/x",
    "/orders/.%2E/admin/x",
    "/orders/..%2fadmin/x",
    "/orders/%2e%2e%2fadmin/x",
    "/orders/..//admin/x",
    "/orders//../../admin/x",
    "/orders/..;/admin/x",
    "/orders/..;a=b/admin/x",
    "/orders/%2e%2e;/admin/x",
    "/orders/..%3b/admin/x",
    "/orders/..%3B/admin/x",
    "/orders/.;/..;/admin/x",
    "//admin/x",
    "/./admin/x",
    "/orders/1/../../admin/x?y=/../",
];

/// Asserts that the upstream has seen a token's identity headers, and no others.
fn assert_identity(seen: &Seen, token: &Token, context: &str) {
    let mut identity = seen.identity();
    identity.sort();
    let expected = [
        ("x-tokenward-id", &*token.id),
        ("x-tokenward-scopes", token.scopes),
        ("x-tokenward-subject", &*token.subject),
    ];
    assert_eq!(identity, expected.map(|(name, value)| (name.to_owned(), value.to_owned())), "{context}");
}

pub async fn a_good_token_passes_with_its_identity(shared: &Shared, stage: &Stage) {
    for (path, token) in [
        ("/orders/1?b=2&scope=x", &shared.orders),
        ("/orders/a%20b", &shared.admin),
        ("/admin/", &shared.admin),
    ] {
        let seen = stage.curl(path).bearer(&token.secret).send().seen();
        assert_eq!((&*seen.method, &*seen.path), ("GET", path));
        assert_identity(&seen, token, path);
        let seen = stage.curl(path).header("X-API-Key", &token.secret).send().seen();
        assert_identity(&seen, token, path);
    }
    let posted =
        stage.curl("/orders/").bearer(&shared.orders.secret).body(&"x".repeat(100_000)).send().seen();
    assert_eq!((&*posted.method, posted.body), ("POST", 100_000));
}

pub async fn the_token_is_not_passed_on(shared: &Shared, stage: &Stage) {
    let secret = &shared.orders.secret;
    for request in [stage.curl("/orders/").bearer(secret), stage.curl("/orders/").header("X-API-Key", secret)]
    {
        let seen = request.send().seen();
        assert!(seen.values("authorization").is_empty() && seen.values("x-api-key").is_empty(), "{seen:?}");
        assert!(!format!("{seen:?}").contains(secret.as_str()), "{seen:?}");
    }
}

pub async fn an_identity_that_a_client_sends_is_removed(shared: &Shared, stage: &Stage) {
    let mut spellings = IDENTITY_HEADERS.to_vec();
    if stage.kind.drops_by_pattern {
        // Not a header of ours, as yet.
        spellings.extend(["X-Tokenward-Role", "x_tokenward_role"]);
    }
    for name in spellings.iter().copied() {
        let request = || stage.curl("/orders/").header(name, "forged");
        for request in [request(), request().header(name, "again").header(&name.to_lowercase(), "and again")]
        {
            // Some gateways reject such a request.
            let reply = request.bearer(&shared.orders.secret).send();
            if reply.status != 400 {
                assert_identity(&reply.seen(), &shared.orders, name);
            }
        }
        let without = request().send();
        assert!(matches!(without.status, 400 | 401), "{name}: no token: {without:?}");
    }
    let all = spellings.iter().fold(stage.curl("/orders/"), |request, name| request.header(name, "forged"));
    let reply = all.bearer(&shared.orders.secret).send();
    if reply.status != 400 {
        assert_identity(&reply.seen(), &shared.orders, "all at once");
    }
}

/// Headers that `Connection` names are for one hop only, and some proxies drop them. If they dropped identity headers
/// that a client names there, the service would take the request for an internal one.
pub async fn an_identity_is_not_a_hop_by_hop_header(shared: &Shared, stage: &Stage) {
    for names in ["X-Tokenward-Id", "close, x-tokenward-id, X-Tokenward-Subject, x-tokenward-scopes"] {
        let reply = stage.curl("/orders/").header("Connection", names).bearer(&shared.orders.secret).send();
        if reply.status != 400 {
            assert_identity(&reply.seen(), &shared.orders, names);
        }
    }
    let hidden =
        stage.curl("/admin/").header("Connection", "Authorization").bearer(&shared.orders.secret).send();
    assert!(matches!(hidden.status, 400 | 401 | 403), "{hidden:?}");
}

pub async fn denials_reach_the_client(shared: &Shared, stage: &Stage) {
    let orders = &shared.orders.secret;
    let request = |path: &str| stage.curl(path);
    let none = r#"Bearer realm="tokenward""#;
    let invalid = r#"Bearer realm="tokenward", error="invalid_token""#;
    let lacking = r#"Bearer realm="tokenward", error="insufficient_scope", scope="admin:write""#;
    let two = request("/orders/").bearer(orders).header("X-API-Key", &shared.placed.secret).send();
    let table = [
        (request("/orders/").send(), 401, none, "no_token"),
        (request("/orders/").header("Authorization", "Basic YTpi").send(), 401, none, "no_token"),
        (request("/orders/").bearer("junk").send(), 401, invalid, "invalid_token"),
        (request("/orders/").bearer(&orders[1..]).send(), 401, invalid, "invalid_token"),
        (request("/admin/").send(), 401, none, "no_token"),
        (request("/admin/").bearer(orders).send(), 403, lacking, "insufficient_scope"),
        (request("/admin/?scope=orders:read").bearer(orders).send(), 403, lacking, "insufficient_scope"),
    ];
    for (reply, status, challenge, error) in table {
        assert_eq!(reply.status, status, "{reply:?}");
        if stage.kind.passes_denials || status == 401 {
            assert_eq!(reply.header("www-authenticate"), Some(challenge), "{reply:?}");
        }
        assert_body(stage, &reply, error);
    }
    assert_eq!(two.status, if stage.kind.passes_denials { 400 } else { 500 }, "{two:?}");
    assert_body(stage, &two, "invalid_request");
}

/// As docker, pip and git send it, and beside what the service behind reads itself.
pub async fn every_way_to_present_a_token(shared: &Shared, stage: &Stage) {
    let orders = &shared.orders.secret;
    let basic = format!("Basic {}", STANDARD.encode(format!("any:{orders}")));
    let request = |headers: &[(&str, &str)]| {
        let request = stage.curl("/orders/");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(name, value));
        request.send()
    };
    for headers in [
        &[("Authorization", basic.as_str())][..],
        &[("X-API-Key", orders)],
        &[("X-API-Key", orders), ("Authorization", "Bearer e30.e30.c2ln")],
    ] {
        let reply = request(headers);
        assert_eq!(reply.status, 200, "{headers:?}: {reply:?}");
        assert_eq!(reply.seen().values("x-tokenward-id").len(), 1, "{reply:?}");
    }
}

/// As the password of a user in the URL, which git sends if it is asked for one.
pub async fn git_presents_a_token(shared: &Shared, stage: &mut Stage) {
    let basic = stage.kind.edited(&[("?scope=$tokenward_scope", "?scope=$tokenward_scope&challenge=Basic")]);
    stage.gateway = basic.start(stage.relay.address, stage.upstream.address);
    eventually("a gateway", async || match stage.curl("/orders/").bearer(&shared.orders.secret).send() {
        Reply { status: 200, .. } => Ok(()),
        reply => Err(format!("{reply:?}")),
    })
    .await;
    let list = |password: &str| {
        let mut git = std::process::Command::new("git");
        git.args(["-c", "credential.helper=", "ls-remote"]);
        git.arg(format!("http://any:{password}@{}/orders/repository.git", stage.gateway.address));
        let output = git.env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C").output().expect("git");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let passed = stage.upstream.requests();
    let denied = list("tw_junk");
    assert!(denied.contains("Authentication failed"), "{denied}");
    assert_eq!(stage.upstream.requests(), passed, "a request has passed unchecked");
    let allowed = list(&shared.orders.secret);
    assert!(stage.upstream.requests() > passed && !allowed.contains("Authentication"), "{allowed}");
}

/// As the password of a container registry's user, which is how docker logs in. crane reads docker's own configuration.
pub async fn a_registry_client_presents_a_token(shared: &Shared, stage: &mut Stage) {
    let registry = stage.kind.edited(&[
        ("location /orders/ {", "location /v2/ {"),
        ("?scope=$tokenward_scope", "?scope=$tokenward_scope&challenge=Basic"),
    ]);
    stage.gateway = registry.start(stage.relay.address, stage.upstream.address);
    eventually("a gateway", async || match stage.curl("/v2/").bearer(&shared.orders.secret).send() {
        Reply { status: 200, .. } => Ok(()),
        reply => Err(format!("{reply:?}")),
    })
    .await;
    let crane = programs::crane().unwrap_or_else(|error| panic!("{error}"));
    let registry = stage.gateway.address.to_string();
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("docker-{}", stage.gateway.address.port()));
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(&crane);
        let output =
            command.args(args).env("DOCKER_CONFIG", &folder).env("NO_PROXY", "*").output().expect("crane");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let list = |password: &str| {
        let (ok, said) = run(&["auth", "login", "--username", "any", "--password", password, &registry]);
        assert!(ok, "{said}");
        // The upstream names no tags.
        run(&["ls", &format!("{registry}/shop/api")])
    };
    let passed = stage.upstream.requests();
    let (ok, said) = list("tw_junk");
    assert!(!ok && said.contains("401"), "{said}");
    assert_eq!(stage.upstream.requests(), passed, "a request has passed unchecked");
    let (ok, said) = list(&shared.orders.secret);
    assert!(ok && stage.upstream.requests() > passed, "{said}");
}

fn assert_body(stage: &Stage, reply: &Reply, error: &str) {
    if stage.kind.passes_body {
        let body: Value = serde_json::from_str(&reply.body).unwrap_or_else(|e| panic!("{e}: {reply:?}"));
        assert_eq!(body["error"], error);
        assert_eq!(reply.header("content-type"), Some("application/json"));
    }
    assert!(!reply.body.contains("headers"), "the upstream's: {reply:?}");
}

pub async fn no_method_goes_unchecked(shared: &Shared, stage: &Stage) {
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let request = || stage.curl("/orders/1").method(method);
        assert_eq!(request().send().status, 401, "{method}");
        let reply = request().bearer(&shared.orders.secret).send();
        assert_eq!(reply.status, 200, "{method}");
        if method != "HEAD" {
            assert_eq!(reply.seen().method, method);
        }
    }
}

/// What makes a preflight of an OPTIONS request (Fetch standard, "CORS-preflight fetch").
const ORIGIN: (&str, &str) = ("Origin", "https://shop.example");
const METHOD: (&str, &str) = ("Access-Control-Request-Method", "DELETE");

/// Makes a preflight of a request.
fn preflight(request: Curl) -> Curl {
    request.method("OPTIONS").header(ORIGIN.0, ORIGIN.1).header(METHOD.0, METHOD.1)
}

/// A browser's preflight has no credentials. Nothing else may look like one.
pub async fn a_preflight_passes_and_nothing_else_does(shared: &Shared, stage: &Stage) {
    let drops_bodies = stage.kind.drops_preflight_bodies;
    assert_preflights_alone_pass(&shared.orders.secret, stage, drops_bodies, |path| stage.curl(path));
}

/// As browsers send it over TLS. `Connection`, `Transfer-Encoding` and the case of names are gone from it.
pub async fn a_preflight_over_http2_passes_and_nothing_else_does(shared: &Shared, stage: &Stage) {
    let seen = stage.curl("/orders/").http2().bearer(&shared.orders.secret).send().seen();
    assert_identity(&seen, &shared.orders, "HTTP/2");
    let drops_bodies = stage.kind.drops_preflight_frames;
    assert_preflights_alone_pass(&shared.orders.secret, stage, drops_bodies, |path| stage.curl(path).http2());
}

fn assert_preflights_alone_pass(
    secret: &str,
    stage: &Stage,
    drops_bodies: bool,
    curl: impl Fn(&str) -> Curl,
) {
    if stage.kind.passes_preflights {
        assert_preflights_pass(secret, drops_bodies, &curl);
    } else {
        assert_eq!(preflight(curl("/orders/")).send().status, 401);
    }
    for (name, headers) in [
        ("OPTIONS", &[][..]),
        ("OPTIONS", &[ORIGIN]),
        ("OPTIONS", &[METHOD]),
        ("OPTIONS", &[("Access-Control-Request-Method", "GET https://shop.example")]),
        ("OPTIONS", &[("Origin", "GET https://shop.example")]),
        ("GET", &[ORIGIN, METHOD]),
        ("HEAD", &[ORIGIN, METHOD]),
        ("POST", &[ORIGIN, METHOD]),
        ("DELETE", &[ORIGIN, METHOD, ("X-HTTP-Method-Override", "OPTIONS")]),
        ("options", &[ORIGIN, METHOD]),
    ] {
        let request = curl("/orders/1").method(name);
        let reply = headers.iter().fold(request, |request, (name, value)| request.header(name, value)).send();
        let unknown_method = name == "options" && matches!(reply.status, 400 | 501);
        assert!(reply.status == 401 || unknown_method, "{name} {headers:?}: {reply:?}");
    }
    for path in closed_paths(stage) {
        let reply = preflight(curl(path)).send();
        assert!(matches!(reply.status, 301 | 307 | 308 | 403 | 404), "{path}: {reply:?}");
    }
    for path in AMBIGUOUS_PATHS.map(|path| path.replace("admin", "other")) {
        let reply = preflight(curl(&path)).send();
        assert_ne!(reply.status, 0, "{path}");
        if reply.status == 200 {
            let meant = meaning(&reply.seen().path);
            assert!(meant.starts_with("/orders/"), "{path} reached {meant}");
        }
    }
}

/// Asserts that the upstream gets a preflight, and no more of what a client sends with it than a browser's.
fn assert_preflights_pass(secret: &str, drops_bodies: bool, curl: &impl Fn(&str) -> Curl) {
    let preflight = |path: &str| preflight(curl(path));
    for path in ["/orders/1?b=2&scope=x", "/admin/"] {
        let seen = preflight(path).header("Access-Control-Request-Headers", "authorization").send().seen();
        assert_eq!((&*seen.method, &*seen.path, seen.body), ("OPTIONS", path, 0));
        for (name, value) in [ORIGIN, METHOD, ("Access-Control-Request-Headers", "authorization")] {
            assert_eq!(seen.values(&name.to_lowercase()), [value], "{seen:?}");
        }
    }

    // Nobody has checked who sends it, so the service gets no identity, and no token that it could take for one.
    let forged = IDENTITY_HEADERS.map(|name| preflight("/orders/").header(name, "forged"));
    let hidden =
        preflight("/orders/").header("X-Tokenward-Id", "forged").header("Connection", "X-Tokenward-Id");
    let tokens = preflight("/orders/").bearer(secret).header("X-API-Key", secret);
    for request in forged.into_iter().chain([hidden, tokens]) {
        let reply = request.send();
        if reply.status != 400 && !reply.is_reset {
            let seen = reply.seen();
            assert_eq!(seen.method, "OPTIONS");
            assert_eq!(seen.identity(), [], "{seen:?}");
            assert!(seen.values("authorization").is_empty(), "{seen:?}");
            assert!(!format!("{seen:?}").contains(secret), "{seen:?}");
        }
    }

    // What no browser sends with a preflight, and a service could take for another request, arrives as little as without it.
    let overrides = ["X-HTTP-Method-Override", "x-http-method", "X-METHOD-OVERRIDE"];
    let overridden = overrides.map(|name| preflight("/orders/").header(name, "DELETE"));
    let bodies = [
        preflight("/orders/").body("_method=DELETE"),
        preflight("/orders/").body("_method=DELETE").header("Transfer-Encoding", "chunked"),
    ];
    let dropped = ["Origin", "close, access-control-request-method"]
        .map(|names| preflight("/orders/").header("Connection", names));
    for request in overridden.into_iter().chain(bodies).chain(dropped) {
        let reply = request.send();
        if !matches!(reply.status, 400 | 401 | 413) && !reply.is_reset {
            let seen = reply.seen();
            assert_eq!(seen.method, "OPTIONS");
            assert!(seen.body == 0 || !drops_bodies, "{seen:?}");
            assert_eq!([seen.values("origin").len(), seen.values(&METHOD.0.to_lowercase()).len()], [1, 1]);
            assert!(!format!("{seen:?}").to_lowercase().contains("override"), "{seen:?}");
            assert!(seen.values("x-http-method").is_empty(), "{seen:?}");
        }
    }
}

/// What is upgraded is a tunnel, in which no request is checked any more. So an upgrade takes a token as any request does, and one
/// to HTTP/2, over which a client could reach other routes of the service, does not arrive at all.
pub async fn an_upgrade_is_checked_and_opens_no_other_route(shared: &Shared, stage: &Stage) {
    let upgrade = |protocols: &[&str]| {
        let request = stage.curl("/orders/1").header("Connection", "Upgrade, HTTP2-Settings");
        let request = request.header("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA");
        let request = request.header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
        let request = request.header("Sec-WebSocket-Version", "13");
        protocols.iter().fold(request, |request, protocol| request.header("Upgrade", protocol))
    };
    for protocols in [
        &["websocket"][..],
        &["h2c"],
        &["H2C"],
        &["h2c", "websocket"],
        &["websocket", "h2c"],
        &["websocket, h2c"],
    ] {
        for request in [upgrade(protocols), upgrade(protocols).bearer("junk")] {
            let reply = request.send();
            // Envoy's for an upgrade that it does not support.
            assert!(matches!(reply.status, 400 | 401 | 403), "{protocols:?}: {reply:?}");
        }
        let reply = upgrade(protocols).bearer(&shared.orders.secret).send();
        if !matches!(reply.status, 400 | 403) && stage.kind.drops_upgrades {
            let seen = reply.seen();
            let arrived = seen.values("upgrade");
            assert!(matches!(*arrived, [] | ["websocket"]), "{protocols:?}: {arrived:?}");
        }
    }
}

/// A path that means one route to the gateway and another to the service would be checked for the wrong scope.
pub async fn a_path_has_one_meaning(shared: &Shared, stage: &Stage) {
    let semicolon = |path: &&str| path.contains(';') || path.to_lowercase().contains("%3b");
    for path in AMBIGUOUS_PATHS.iter().filter(|path| stage.kind.rejects_semicolons || !semicolon(path)) {
        let reply = stage.curl(path).bearer(&shared.orders.secret).send();
        if reply.status == 200 {
            let meant = meaning(&reply.seen().path);
            assert!(meant.starts_with("/orders/"), "{path} reached {meant}");
        }
    }
}

/// A path as the most lenient service would normalize it.
fn meaning(path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    let decoded = path.to_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%3b", ";");
    let mut segments = Vec::new();
    // Tomcat and Spring drop what follows a semicolon, and normalize what is left.
    let parts = decoded.split('/').map(|part| part.split(';').next().unwrap_or_default());
    for segment in parts.filter(|segment| !segment.is_empty() && *segment != ".") {
        match segment {
            ".." => _ = segments.pop(),
            _ => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

pub async fn cidrs_apply_to_the_clients_address(shared: &Shared, stage: &Stage) {
    let request = |address: &str| stage.curl("/orders/").bearer(&shared.placed.secret).from(address);
    assert_eq!(request("127.0.0.2").send().status, 200);
    let elsewhere = request("127.0.0.3").send();
    assert_eq!(elsewhere.status, 403, "{elsewhere:?}");
    assert_body(stage, &elsewhere, "ip_not_allowed");
    // X-Forwarded-For of a client is not trusted.
    let pretended = request("127.0.0.3").header("X-Forwarded-For", "127.0.0.2").send();
    assert_eq!(pretended.status, 403, "{pretended:?}");
    let pretended = request("127.0.0.2").header("X-Forwarded-For", "127.0.0.3").send();
    assert_eq!(pretended.status, 200, "{pretended:?}");
}

/// Paths that no route has.
fn closed_paths(stage: &Stage) -> impl Iterator<Item = &'static str> {
    let paths = ["/", "/other", "/ordersx/1", "/_tokenward", "/_tokenward?scope=orders:read", "/auth"];
    paths.into_iter().chain((!stage.kind.routes_are_segments).then_some("/orders"))
}

pub async fn a_route_without_a_scope_is_closed(shared: &Shared, stage: &Stage) {
    for path in closed_paths(stage) {
        let reply = stage.curl(path).bearer(&shared.admin.secret).send();
        assert!(matches!(reply.status, 301 | 307 | 308 | 403 | 404), "{path}: {reply:?}");
    }
}

pub async fn a_revocation_applies_from_the_next_request(shared: &Shared, stage: &Stage) {
    let name = format!("leaked-{}", stage.gateway.address.port());
    let secret = shared.space.active(&name, json!({"scopes": ["orders:read"]})).await;
    let ask = || stage.curl("/orders/").bearer(&secret).send();
    stage.verifier.answers(&secret, "", 200).await;
    for _ in 0..10 {
        let reply = ask();
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    shared.space.patch(&name, json!({"spec": {"revoked": true}})).await;
    eventually("401 after a revocation", async || match ask() {
        Reply { status: 401, .. } => Ok(()),
        reply => Err(format!("{reply:?}")),
    })
    .await;
    for _ in 0..20 {
        let reply = ask();
        assert_eq!(reply.status, 401, "{reply:?}");
    }
}

pub async fn connections_are_reused_and_bodies_are_not_sent(shared: &Shared, stage: &mut Stage) {
    const REQUESTS: u64 = 30;
    const BODY: usize = 100_000;
    let (connections, bytes) = (stage.relay.connections(), stage.relay.bytes());
    for number in 0..REQUESTS {
        let request = stage.curl("/orders/").bearer(&shared.orders.secret).body(&"x".repeat(BODY));
        let request = if number % 2 == 0 { request.header("Transfer-Encoding", "chunked") } else { request };
        assert_eq!(request.send().seen().body, BODY);
    }
    let connections = stage.relay.connections() - connections;
    // Each of a gateway's threads may have connections of its own.
    assert!(connections <= REQUESTS / 3, "{connections} connections for {REQUESTS} requests");
    let bytes = stage.relay.bytes() - bytes;
    assert!(bytes > 0, "the gateway has sent checks");
    assert!(bytes < BODY as u64, "{bytes} bytes for {REQUESTS} checks");
}

pub async fn the_gateway_fails_closed_without_a_verifier(shared: &Shared, stage: &mut Stage) {
    let status = |stage: &Stage| stage.curl("/orders/").bearer(&shared.orders.secret).send().status;
    assert_eq!(status(stage), 200);
    let passed = stage.upstream.requests();
    // First connections break, and new ones are closed at once.
    stage.verifier.kill();
    let broken: Vec<u16> = (0..3).map(|_| status(stage)).collect();
    // Then connections are refused.
    stage.relay.close().await;
    let refused: Vec<u16> = (0..3).map(|_| status(stage)).collect();
    for status in broken.iter().chain(&refused) {
        assert!(stage.kind.unavailable.contains(status), "{broken:?} {refused:?}");
    }
    assert_eq!(stage.upstream.requests(), passed, "a request has passed unchecked");
}

pub async fn the_gateway_fails_closed_if_the_verifier_hangs(shared: &Shared, stage: &mut Stage) {
    let passed = stage.upstream.requests();
    stage.relay.hang();
    let timeout = if stage.kind.gives_up { 20 } else { 5 };
    let reply = stage.curl("/orders/").bearer(&shared.orders.secret).max_time(timeout).send();
    // 0: none within curl's timeout.
    let refused = stage.kind.unavailable.contains(&reply.status);
    assert!(refused || (reply.status == 0 && !stage.kind.gives_up), "{reply:?}");
    assert_eq!(stage.upstream.requests(), passed, "a request has passed unchecked");
}

/// HAProxy itself would go on with a request if the script fails.
pub async fn the_gateway_fails_closed_if_its_script_fails(shared: &Shared, stage: &mut Stage) {
    let broken = stage.kind.edited(&[("core.httpclient()", "core.no_such_function()")]);
    stage.gateway = broken.start(stage.relay.address, stage.upstream.address);
    let passed = stage.upstream.requests();
    eventually("an error of the script", async || {
        let reply = stage.curl("/orders/").bearer(&shared.orders.secret).send();
        let log = stage.gateway.log();
        if log.contains("runtime error") { Ok(()) } else { Err(format!("{reply:?}; {log}")) }
    })
    .await;
    let reply = stage.curl("/orders/").bearer(&shared.orders.secret).send();
    assert_eq!(reply.status, 503, "{reply:?}");
    assert_eq!(stage.upstream.requests(), passed, "a request has passed unchecked");
}
