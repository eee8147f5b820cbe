//! The authenticated endpoints: who may call them, what they return, and each protocol's error form.

use std::time::Duration;

use http::Request;
use http_body_util::Full;
use hyper::body::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::fixture::{Fixture, PEER, Received, plaintext, spec};
use super::routes::Route;
use tokenward_core::crd::{ApiTokenSpec, Constraints};

const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = "application/json";
/// The number of the caller's token.
const CALLER: u8 = 9;
/// Every authenticated endpoint, with its media type and a valid body.
const ENDPOINTS: [(&str, &str, &str); 4] = [
    ("/v1/verify", JSON, r#"{"token":"x"}"#),
    ("/v1/verify:batch", JSON, r#"{"checks":[{"token":"x"}]}"#),
    ("/oauth2/introspect", FORM, "token=x"),
    (
        "/tokenreview",
        JSON,
        r#"{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":"x"}}"#,
    ),
];

fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.with(CALLER, caller());
    fixture
}

/// The spec of a caller's token.
fn caller() -> ApiTokenSpec {
    ApiTokenSpec {
        scopes: vec!["tokens:verify".to_owned()],
        audiences: Some(vec!["tokenward".to_owned()]),
        ..Default::default()
    }
}

fn bearer(number: u8) -> String {
    format!("Bearer {}", plaintext(number).expose())
}

fn post(fixture: &Fixture, path: &str, media_type: &str, body: impl Into<Vec<u8>>) -> Received {
    post_as(fixture, Some(&bearer(CALLER)), path, media_type, body)
}

fn post_as(
    fixture: &Fixture,
    authorization: Option<&str>,
    path: &str,
    media_type: &str,
    body: impl Into<Vec<u8>>,
) -> Received {
    fixture.send(request(authorization, path, media_type, body), PEER)
}

fn request(
    authorization: Option<&str>,
    path: &str,
    media_type: &str,
    body: impl Into<Vec<u8>>,
) -> Request<Full<Bytes>> {
    let mut request = Request::post(path).header("content-type", media_type);
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    request.body(Full::new(body.into().into())).expect("a request")
}

fn verify(fixture: &Fixture, request: &Value) -> Value {
    let response = post(fixture, "/v1/verify", JSON, request.to_string());
    assert_eq!(response.status, 200, "{:?}", response.body);
    response.json()
}

fn introspect(fixture: &Fixture, form: &str) -> Value {
    let response = post(fixture, "/oauth2/introspect", FORM, form);
    assert_eq!(response.status, 200, "{:?}", response.body);
    response.json()
}

fn review(fixture: &Fixture, number: u8, audiences: &[&str]) -> Value {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": plaintext(number).expose(), "audiences": audiences},
    });
    let response = post(fixture, "/tokenreview", JSON, review.to_string());
    assert_eq!(response.status, 200, "{:?}", response.body);
    response.json()["status"].clone()
}

#[test]
fn callers_are_authenticated_and_authorized() {
    let fixture = fixture();
    fixture.with(8, ApiTokenSpec { revoked: Some(true), ..caller() });
    fixture.with(6, ApiTokenSpec { audiences: None, ..caller() });
    fixture.with(5, ApiTokenSpec { audiences: Some(vec!["billing".to_owned()]), ..caller() });
    let basic = |secret: &str| {
        use base64::Engine;
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("any:{secret}")))
    };
    let jwt = |claims: &str| {
        use base64::Engine;
        format!("Bearer e30.{}.c2ln", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims))
    };
    let table = [
        ("a token with the scope", Some(bearer(CALLER)), 200),
        ("the same as a password", Some(basic(plaintext(CALLER).expose())), 200),
        ("nothing", None, 401),
        ("a token without the scope", Some(bearer(1)), 403),
        ("a token that may be presented anywhere", Some(bearer(6)), 403),
        ("a token for another service", Some(bearer(5)), 401),
        ("a revoked token", Some(bearer(8)), 401),
        ("an unknown token", Some(bearer(7)), 401),
        ("junk", Some("Bearer junk".to_owned()), 401),
        ("Bearer alone", Some("Bearer".to_owned()), 401),
        ("another scheme", Some("Digest x=y".to_owned()), 401),
        ("a password of no base64", Some("Basic %%%".to_owned()), 401),
        ("a password without a user", Some("Basic eA==".to_owned()), 401),
        ("a JWT for somebody else", Some(jwt(r#"{"aud":["api"]}"#)), 401),
        ("a JWT for nobody", Some(jwt("{}")), 401),
        ("a JWT of nonsense", Some(jwt("[1")), 401),
        // There is no API server here that could review them.
        ("a JWT for us", Some(jwt(r#"{"aud":"tokenward"}"#)), 503),
        ("another JWT for us", Some(jwt(r#"{"aud":["x","tokenward"]}"#)), 503),
    ];
    for (path, media_type, body) in ENDPOINTS {
        for (what, authorization, status) in &table {
            let response = post_as(&fixture, authorization.as_deref(), path, media_type, body);
            assert_eq!(response.status, *status, "{path}: {what}: {:?}", response.body);
            assert_eq!(response.header("www-authenticate").is_some(), *status == 401, "{path}: {what}");
            assert_eq!(response.header("retry-after").is_some(), *status == 503, "{path}: {what}");
            assert_eq!(response.header("cache-control"), Some("no-store"), "{path}: {what}");
        }
    }
    let counted = fixture.metrics();
    assert!(counted.contains(r#"checks_total{endpoint="tokenreview",code="CALLER_DENIED"} 14"#), "{counted}");
}

#[test]
fn an_introspection_client_may_send_its_secret_in_the_form() {
    let fixture = fixture();
    let ask = |form: &str, authorization: Option<&str>| {
        post_as(&fixture, authorization, "/oauth2/introspect", FORM, form.to_owned()).status
    };
    let (caller, other) = (plaintext(CALLER), plaintext(1));
    let form = |secret: &str| format!("token=x&client_id=any&client_secret={secret}");
    assert_eq!(ask(&form(caller.expose()), None), 200);
    assert_eq!(ask(&form(other.expose()), None), 403);
    assert_eq!(ask(&form("junk"), None), 401);
    assert_eq!(ask("token=x&client_id=any", None), 401);
    // The header counts, where there is one.
    assert_eq!(ask(&form(caller.expose()), Some(&bearer(1))), 403);
    assert_eq!(ask(&form("junk"), Some(&bearer(CALLER))), 200);
    let twice = format!("{0}&client_secret={1}", form(caller.expose()), caller.expose());
    assert_eq!(ask(&twice, None), 400);
    // In a body that is no form, there is none.
    assert_eq!(post_as(&fixture, None, "/oauth2/introspect", JSON, "{}").status, 401);
    // No other protocol has a place for it.
    let form = form(caller.expose());
    assert_eq!(post_as(&fixture, None, "/v1/verify", FORM, form).status, 401);
}

#[test]
fn every_protocol_has_its_own_form_of_errors() {
    let fixture = fixture();
    for (path, media_type, body) in ENDPOINTS {
        let message = |response: &Received| {
            let json = response.json();
            let text = match path {
                "/tokenreview" => {
                    assert_eq!((&json["kind"], &json["code"]), (&json!("Status"), &json!(response.status)));
                    &json["message"]
                }
                "/oauth2/introspect" => &json["error_description"],
                _ => &json["message"],
            };
            text.as_str().expect("a message").to_owned()
        };
        let junk: &[&[u8]] = &[b"", b"{", b"[]", b"\xff\xfe", b"{\"token\":1}", b"null", b"{\"a\":\"b\"}"];
        for junk in junk {
            let response = post(&fixture, path, media_type, *junk);
            assert_eq!(response.status, 400, "{path} {junk:?}: {:?}", response.body);
            assert!(!message(&response).is_empty());
        }
        let response = post(&fixture, path, "text/plain", body);
        assert_eq!(response.status, 415, "{path}");
        assert!(message(&response).contains(media_type), "{path}");
        let response = post(&fixture, path, media_type, vec![b' '; 2 << 20]);
        assert_eq!(response.status, 413, "{path}");
        assert!(message(&response).contains("larger than"), "{path}");
        for method in ["GET", "PUT", "DELETE", "OPTIONS"] {
            let request =
                Request::builder().method(method).uri(path).body(Full::default()).expect("a request");
            let response = fixture.send(request, PEER);
            assert_eq!((response.status, response.header("allow")), (405, Some("POST")), "{method} {path}");
        }
        // Parameters and the case of the media type are ignored.
        let spelt = format!("{}; charset=utf-8", media_type.to_uppercase());
        assert_eq!(post(&fixture, path, &spelt, body).status, 200, "{path}");
    }
}

#[test]
fn an_unready_verifier_makes_no_decision() {
    let fixture = Fixture::unready(&[]);
    fixture.with(CALLER, caller());
    for (path, media_type, body) in ENDPOINTS {
        assert_eq!(post(&fixture, path, media_type, body).status, 503, "{path}");
    }
}

#[test]
fn verify_returns_the_reason_of_a_denial() {
    let fixture = fixture();
    let with = |number, change: &dyn Fn(&mut ApiTokenSpec)| {
        let mut spec = spec();
        change(&mut spec);
        fixture.with(number, spec);
    };
    with(2, &|spec| spec.revoked = Some(true));
    with(3, &|spec| spec.suspend = Some(true));
    with(4, &|spec| spec.expires_at = Some("2026-01-02T00:00:00Z".parse().expect("an instant")));
    with(5, &|spec| spec.audiences = Some(vec!["billing".to_owned()]));
    with(6, &|spec| spec.constraints = Some(Constraints { cidrs: Some(vec!["192.0.2.0/24".to_owned()]) }));
    let token = |number| plaintext(number).expose().to_owned();
    let table = [
        (json!({"token": token(1), "scopes": ["audit:write"]}), "INSUFFICIENT_SCOPE"),
        (json!({"token": token(2)}), "REVOKED"),
        (json!({"token": token(3)}), "SUSPENDED"),
        (json!({"token": token(4)}), "EXPIRED"),
        (json!({"token": token(5), "audience": "search"}), "AUDIENCE_MISMATCH"),
        (json!({"token": token(6)}), "IP_NOT_ALLOWED"),
        (json!({"token": token(6), "clientIp": "198.51.100.1"}), "IP_NOT_ALLOWED"),
        (json!({"token": token(7)}), "NOT_FOUND"),
        (json!({"token": "junk"}), "NOT_FOUND"),
        (json!({"token": ""}), "NOT_FOUND"),
    ];
    for (request, code) in &table {
        assert_eq!(verify(&fixture, request), json!({"valid": false, "code": code}), "{code}");
    }
    for request in [
        json!({"token": token(5), "audience": "billing"}),
        json!({"token": token(6), "clientIp": "::ffff:192.0.2.7"}),
        json!({"token": token(1), "scopes": ["orders:read", "audit:read"]}),
    ] {
        assert_eq!(verify(&fixture, &request)["valid"], true);
    }
    let known = verify(&fixture, &json!({"token": token(1)}));
    let expected = json!({
        "id": "tok_1", "namespace": "team", "name": "token-1", "keyId": "111111111111",
        "scopes": ["orders:*", "audit:read"], "audiences": [], "issuedAt": "2026-01-01T00:00:00Z",
    });
    assert_eq!(known["token"], {
        let mut expected = expected;
        expected["keyId"] = known["token"]["keyId"].clone();
        expected
    });
    let mut checks: Vec<Value> = table.iter().map(|(request, _)| request.clone()).collect();
    checks.push(json!({"token": token(1)}));
    let response = post(&fixture, "/v1/verify:batch", JSON, json!({ "checks": checks }).to_string()).json();
    let codes: Vec<_> =
        response["results"].as_array().expect("results").iter().map(|r| r["code"].clone()).collect();
    let expected: Vec<_> = table.iter().map(|(_, code)| json!(code)).chain([Value::Null]).collect();
    assert_eq!(codes, expected);
}

#[test]
fn errors_name_the_mistake_and_quote_no_value() {
    let fixture = fixture();
    let secret = plaintext(1);
    let table = [
        ("/v1/verify", json!({"token": "x", "scope": "a:b"}), "unknown field `scope`"),
        ("/v1/verify", json!({"scopes": ["a:b"]}), "missing field `token`"),
        ("/v1/verify", json!({"token": "x", "scopes": ["nonsense"]}), "\"nonsense\" is not resource:action"),
        ("/v1/verify", json!({"token": "x", "clientIp": secret.expose()}), "not of the form"),
        ("/v1/verify", json!({"token": [secret.expose()]}), "not of the form"),
        ("/v1/verify", json!({"token": "x", "scopes": vec!["a:b"; 65]}), "more than 64"),
        ("/v1/verify:batch", json!({"checks": []}), "1 to 100"),
        ("/v1/verify:batch", json!({"checks": vec![json!({"token": "x"}); 101]}), "1 to 100"),
        (
            "/v1/verify:batch",
            json!({"checks": [{"token": "x"}, {"token": "x", "scopes": ["a b"]}]}),
            "checks[1].scopes",
        ),
        (
            "/v1/verify",
            json!({"token": "x", "atLeast": {"apiTokens": secret.expose()}}),
            "atLeast.apiTokens is not",
        ),
        ("/v1/verify", json!({"token": "x", "atLeast": {"tokenLocks": "0"}}), "atLeast.tokenLocks is not"),
        (
            "/v1/verify",
            json!({"token": "x", "atLeast": {"clusterTokenLocks": ""}}),
            "atLeast.clusterTokenLocks is not",
        ),
        ("/v1/verify", json!({"token": "x", "atLeast": {"apiTokens": 7}}), "not of the form"),
        ("/v1/verify", json!({"token": "x", "atLeast": {"apitokens": "7"}}), "unknown field `apitokens`"),
        (
            "/v1/verify:batch",
            json!({"checks": [{"token": "x", "atLeast": {"apiTokens": "7"}}]}),
            "unknown field `atLeast`",
        ),
        (
            "/v1/verify:batch",
            json!({"checks": [{"token": "x"}], "atLeast": {"apiTokens": "x"}}),
            "atLeast.apiTokens is not",
        ),
        (
            "/tokenreview",
            json!({"apiVersion": "authentication.k8s.io/v1beta1", "kind": "TokenReview", "spec": {"token": secret.expose()}}),
            "--authentication-token-webhook-version=v1",
        ),
        (
            "/tokenreview",
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview"}),
            "missing field `spec`",
        ),
    ];
    for (path, body, expected) in table {
        let response = post(&fixture, path, JSON, body.to_string());
        let text = String::from_utf8_lossy(&response.body).replace("\\\"", "\"");
        assert_eq!(response.status, 400, "{path}: {text}");
        assert!(text.contains(expected), "{path}: {expected} is not in {text}");
        assert!(!text.contains(secret.expose()), "{path}: {text}");
    }
    let unread = b"{\"apiVersion\":\"authentication.k8s.io/v1\",\"kind\":\"TokenReview\",\"\xff\":1,\"spec\":{\"token\":\"x\"}}";
    assert_eq!(post(&fixture, "/tokenreview", JSON, &unread[..]).status, 400, "a field that is ignored");
    for (form, expected) in [
        ("", "token is missing"),
        ("token_type_hint=access_token", "token is missing"),
        ("token=x&token=y", "token is given more than once"),
        ("token=x&scope=nonsense", "is not resource:action"),
        ("token=x&scope=", "scope is empty"),
        ("token=x&scope=+", "scope is empty"),
        ("token=x&client_ip=here", "client_ip is not an IP address"),
        ("token=x&at_least_apitokens=x", "at_least_apitokens is not"),
        ("token=x&at_least_tokenlocks=", "at_least_tokenlocks is not"),
        ("token=x&at_least_clustertokenlocks=01", "at_least_clustertokenlocks is not"),
        ("token=x&at_least_apitokens=1&at_least_apitokens=1", "at_least_apitokens is given more than once"),
        ("token=x&at_least_tokens=1", "there are at_least_apitokens,"),
    ] {
        let response = post(&fixture, "/oauth2/introspect", FORM, form);
        let json = response.json();
        assert_eq!((response.status, &json["error"]), (400, &json!("invalid_request")), "{form}");
        assert!(json["error_description"].as_str().is_some_and(|text| text.contains(expected)), "{json}");
    }
}

/// Requests that ask for ApiToken 7, TokenLock 8 or ClusterTokenLock 9.
fn asking(token: &str, kind: usize) -> [(&'static str, &'static str, String); 3] {
    let field = ["apiTokens", "tokenLocks", "clusterTokenLocks"][kind];
    let parameter = ["at_least_apitokens", "at_least_tokenlocks", "at_least_clustertokenlocks"][kind];
    let version = (7 + kind).to_string();
    let batch = json!({"checks": [{"token": "x"}, {"token": token}], "atLeast": {field: version}});
    [
        ("/v1/verify", JSON, json!({"token": token, "atLeast": {field: version}}).to_string()),
        ("/v1/verify:batch", JSON, batch.to_string()),
        ("/oauth2/introspect", FORM, format!("token={token}&{parameter}={version}")),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_check_waits_for_what_it_asks_for() {
    let fixture = fixture();
    let token = plaintext(1).expose().to_owned();
    let marks = &fixture.snapshot.marks;
    let marks =
        [&marks.tokens[0].1, &marks.locks[0].1, marks.cluster_locks.as_ref().expect("a watch of them")];
    let caller = bearer(CALLER);
    let send = |path, media_type, body: String| {
        fixture.send_and_wait(request(Some(&caller), path, media_type, body), PEER)
    };
    for ((kind, mark), wanted) in marks.iter().enumerate().zip(7..) {
        for (path, media_type, body) in asking(&token, kind) {
            mark.applied(wanted - 1);
            let began = tokio::time::Instant::now();
            let denied = send(path, media_type, body.clone()).await;
            assert_eq!(denied.status, 503, "{path}");
            assert_eq!(denied.header("retry-after"), Some("1"), "{path}");
            assert_eq!(denied.json()["error"], "resource_version_too_large", "{path}");
            let text = String::from_utf8_lossy(&denied.body);
            assert!(text.contains(&format!("up to resourceVersion {wanted}")), "{text}");
            assert_eq!(began.elapsed(), Duration::from_millis(250), "{path}");
            // It arrives while the request waits. The token is revoked by then.
            let event = async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                fixture.with(1, ApiTokenSpec { revoked: Some(true), ..spec() });
                mark.applied(wanted);
            };
            let (answer, ()) = tokio::join!(send(path, media_type, body.clone()), event);
            assert_eq!(began.elapsed(), Duration::from_millis(350), "{path}");
            assert_eq!(answer.status, 200, "{path}: {:?}", answer.body);
            let expected = match path {
                "/v1/verify" => json!({"valid": false, "code": "REVOKED"}),
                "/v1/verify:batch" => json!({"results": [
                    {"valid": false, "code": "NOT_FOUND"}, {"valid": false, "code": "REVOKED"},
                ]}),
                _ => json!({"active": false}),
            };
            assert_eq!(answer.json(), expected, "{path}");
            // What is known already is answered at once.
            assert_eq!(send(path, media_type, body).await.status, 200, "{path}");
            assert_eq!(began.elapsed(), Duration::from_millis(350), "{path}");
            fixture.with(1, spec());
        }
    }
    // A stranger is turned away before anything is waited for.
    let began = tokio::time::Instant::now();
    marks[0].applied(1);
    for (path, media_type, body) in asking(&token, 0) {
        let denied = fixture.send_and_wait(request(Some("Bearer x"), path, media_type, body), PEER).await;
        assert_eq!(denied.status, 401, "{path}");
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    let counted = fixture.metrics();
    for count in [r#"endpoint="verify",code="UNAVAILABLE"} 3"#, r#"endpoint="verify",code="REVOKED"} 6"#] {
        assert!(counted.contains(count), "{count} is not in {counted}");
    }
}

#[test]
fn introspection_returns_all_metadata_or_none() {
    let fixture = fixture();
    let ends = ApiTokenSpec {
        expires_at: Some("2999-01-01T00:00:00.9Z".parse().expect("an instant")),
        audiences: Some(vec!["billing".to_owned(), "search".to_owned()]),
        ..spec()
    };
    fixture.with(2, ends);
    let token = plaintext(2).expose().to_owned();
    let mut reply = introspect(&fixture, &format!("token={token}&token_type_hint=x&unknown=y"));
    assert_eq!(reply["jti"].as_str().map(str::len), Some(12));
    reply["jti"].take();
    assert_eq!(
        reply,
        json!({
            "active": true, "scope": "orders:* audit:read", "client_id": "tok_2", "token_type": "Bearer",
            "exp": 32_472_144_000_i64, "iat": 1_767_225_600, "sub": "team/token-2",
            "aud": ["billing", "search"], "jti": null,
        })
    );
    let form = |rest: &str| format!("token={token}{rest}");
    for (form, active) in [
        (form("&scope=orders%3Aread+audit%3Aread"), true),
        (form("&scope=orders:read%20audit:write"), false),
        (form("&audience=search"), true),
        (form("&audience=other"), false),
        ("token=".to_owned(), false),
        ("token=junk".to_owned(), false),
        (format!("token={}", plaintext(7).expose()), false),
    ] {
        let reply = introspect(&fixture, &form);
        assert_eq!(reply["active"], active, "{form}");
        assert!(active || reply == json!({"active": false}), "{reply}");
    }
}

#[test]
fn a_token_review_returns_the_user() {
    let fixture = fixture();
    let user = ApiTokenSpec { scopes: vec!["tokens:login".to_owned(), "audit:read".to_owned()], ..spec() };
    fixture.with(3, user.clone());
    fixture.with(2, ApiTokenSpec { audiences: Some(vec!["billing".to_owned()]), ..user });
    let mut reply = review(&fixture, 3, &["https://kubernetes.default.svc", "other"]);
    assert!(reply["user"]["extra"]["tokenward.dev/key-id"].take().is_array());
    assert_eq!(
        reply,
        json!({
            "authenticated": true,
            "audiences": ["https://kubernetes.default.svc", "other"],
            "user": {
                "username": "tokenward:team:token-3", "uid": "tok_3",
                "groups": ["tokenward:apitokens", "tokenward:apitokens:team"],
                "extra": {"tokenward.dev/scopes": ["tokens:login", "audit:read"], "tokenward.dev/key-id": null},
            },
        })
    );
    let unauthenticated = json!({"authenticated": false});
    assert_eq!(review(&fixture, 3, &[])["authenticated"], true);
    assert_eq!(review(&fixture, 1, &[]), unauthenticated, "it lacks the scope");
    assert_eq!(review(&fixture, 2, &["billing", "other"])["audiences"], json!(["billing"]));
    assert_eq!(review(&fixture, 2, &["other"]), unauthenticated);
    assert_eq!(review(&fixture, 2, &[]), unauthenticated);
    assert_eq!(review(&fixture, 7, &[]), unauthenticated);
}

#[test]
fn the_document_describes_every_endpoint() {
    let document = fixture().get("/openapi.json", &[]).json();
    let paths: Vec<_> = document["paths"].as_object().expect("paths").keys().map(String::as_str).collect();
    let mut routes: Vec<_> =
        Route::ALL.into_iter().filter(|route| *route != Route::OpenApi).map(Route::path).collect();
    routes.sort_unstable();
    assert_eq!(paths.len(), routes.len());
    for (path, route) in paths.iter().zip(routes) {
        let template = path.strip_prefix(route);
        assert!(template.is_some_and(|rest| rest.is_empty() || rest.starts_with("/{")), "{path}");
    }
    for (path, ..) in ENDPOINTS {
        assert!(document["paths"][path]["post"].is_object(), "{path}");
    }
    assert!(document["paths"]["/auth"]["get"].is_object());
}

#[test]
fn the_document_contains_every_schema_that_it_refers_to() {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| match (&**name, value) {
                ("$ref", Value::String(reference)) => found.push(reference.clone()),
                _ => references(value, found),
            }),
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let document = fixture().get("/openapi.json", &[]).json();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
    }
}

proptest! {
    /// No body makes an endpoint panic, and a body without the one valid token never leads to a positive decision.
    #[test]
    fn no_body_breaks_an_endpoint(
        which in 0usize..4, body in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..100, byte: u8,
    ) {
        let fixture = fixture();
        let (path, media_type, good) = ENDPOINTS[which];
        let mut near = good.as_bytes().to_vec();
        let index = at % near.len();
        near[index] = byte;
        for body in [body, near] {
            let response = post(&fixture, path, media_type, body);
            prop_assert!([200, 400].contains(&response.status), "{}", response.status);
            let reply = response.json().to_string();
            for yes in ["\"valid\":true", "\"active\":true", "\"authenticated\":true"] {
                prop_assert!(!reply.contains(yes), "{reply}");
            }
        }
    }
}
