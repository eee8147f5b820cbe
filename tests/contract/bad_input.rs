//! Each endpoint rejects bad input in the form of its protocol. The slowest kind of request is printed.

use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, WWW_AUTHENTICATE};
use reqwest::{Client, Method, StatusCode};
use serde_json::Value;

use crate::stage::Stage;

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";
/// How often each bad request is sent.
const ROUNDS: usize = 20;

/// An endpoint with authenticated callers, and its protocol's rules.
struct Endpoint {
    path: &'static str,
    media_type: &'static str,
    /// The largest body, in bytes.
    max_body: usize,
    /// A body that is well-formed.
    good: &'static str,
    /// Bodies that are malformed.
    bad: &'static [&'static [u8]],
    form: fn(&Value, StatusCode) -> bool,
}

const ENDPOINTS: [Endpoint; 4] = [
    Endpoint {
        path: "/v1/verify",
        media_type: JSON,
        max_body: 32 * 1024,
        good: r#"{"token":"x"}"#,
        bad: &[
            b"",
            b"null",
            b"[]",
            b"{",
            b"\xff\xfe",
            br#"{"token":"\ud800"}"#,
            br#"{"token":"x","token":"y"}"#,
            br#"{"token":"x","scope":["a:b"]}"#,
            br#"{"token":"x","scopes":["nonsense"]}"#,
            br#"{"token":"x","audience":""}"#,
            br#"{"token":"x","clientIp":"999.0.0.1"}"#,
            br#"{"token":1e999}"#,
        ],
        form: is_verify_error,
    },
    Endpoint {
        path: "/v1/verify:batch",
        media_type: JSON,
        max_body: 1000 * 1024,
        good: r#"{"checks":[{"token":"x"}]}"#,
        bad: &[
            b"",
            b"{}",
            br#"{"checks":[]}"#,
            br#"{"checks":[{}]}"#,
            br#"{"checks":[{"token":"x"}],"a":1}"#,
        ],
        form: is_verify_error,
    },
    Endpoint {
        path: "/oauth2/introspect",
        media_type: FORM,
        max_body: 16 * 1024,
        good: "token=x",
        bad: &[
            b"",
            b"%",
            b"\xff\xfe",
            b"token=x&token=y",
            b"token=x&scope=nonsense",
            b"token=x&client_ip=here",
        ],
        form: is_oauth_error,
    },
    Endpoint {
        path: "/tokenreview",
        media_type: JSON,
        max_body: 64 * 1024,
        good: r#"{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":"x"}}"#,
        bad: &[
            b"",
            b"{}",
            b"\xff\xfe",
            br#"{"apiVersion":"authentication.k8s.io/v1beta1","kind":"TokenReview","spec":{"token":"x"}}"#,
            br#"{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":1}}"#,
        ],
        form: is_status,
    },
];

/// RFC 6749 section 5.2.
fn is_oauth_error(body: &Value, _: StatusCode) -> bool {
    body["error"].is_string() && body["error_description"].is_string()
}

fn is_verify_error(body: &Value, _: StatusCode) -> bool {
    body["error"].is_string() && body["message"].is_string()
}

/// <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/>
fn is_status(body: &Value, status: StatusCode) -> bool {
    body["kind"] == "Status" && body["status"] == "Failure" && body["code"] == status.as_u16()
}

/// A bad request, and the status of the response that it must get.
struct Bad {
    what: String,
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    expected: u16,
    form: fn(&Value, StatusCode) -> bool,
}

pub fn each_endpoint_rejects_in_its_own_form(stage: &Stage) {
    let mut requests = bad_gateway_requests(stage);
    requests.extend(ENDPOINTS.iter().flat_map(|endpoint| bad_requests(endpoint, stage)));
    // Reuses its connection, as the clients of gateways and services do.
    let client = Client::builder().timeout(Duration::from_secs(10)).build().expect("a client");
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); requests.len()];
    for _ in 0..ROUNDS {
        for (times, request) in times.iter_mut().zip(&requests) {
            times.push(stage.runtime.block_on(rejected(&client, stage, request)));
        }
    }
    report(&requests, &mut times);
}

/// Prints how long the slowest kind of bad request took, which is not asserted, as it depends on the machine.
fn report(requests: &[Bad], times: &mut [Vec<Duration>]) {
    times.iter_mut().for_each(|times| times.sort_unstable());
    let all = times.iter().zip(requests);
    let slowest = all.max_by_key(|(times, _)| times[ROUNDS / 2]);
    let (times, Bad { method, path, what, .. }) = slowest.expect("bad requests");
    eprintln!(
        "{} bad requests, each sent {ROUNDS} times; the slowest was {method} {path} ({}), answered within {:?} half of \
         the times, and always within {:?}",
        requests.len(),
        what.escape_debug(),
        times[ROUNDS / 2],
        times[ROUNDS - 1],
    );
}

/// Bad requests of a gateway's clients.
fn bad_gateway_requests(stage: &Stage) -> Vec<Bad> {
    let bearer = |token: &str| ("authorization", format!("Bearer {token}"));
    let cases = [
        ("no token", "/auth", vec![], 401),
        ("junk", "/auth", vec![bearer("junk")], 401),
        ("a long token", "/auth", vec![bearer(&"x".repeat(20_000))], 401),
        ("a malformed scope", "/auth?scope=nonsense", vec![bearer(&stage.token)], 400),
        ("an unknown parameter", "/auth?scopes=orders:read", vec![bearer(&stage.token)], 400),
        ("two tokens", "/auth", vec![bearer(&stage.token), ("x-api-key", stage.caller.clone())], 400),
        ("a scope that it lacks", "/auth?scope=orders:delete", vec![bearer(&stage.token)], 403),
    ];
    let bad = |(what, path, headers, expected): (&str, &str, _, _)| Bad {
        what: what.to_owned(),
        method: Method::GET,
        path: path.to_owned(),
        headers,
        body: Vec::new(),
        expected,
        form: is_verify_error,
    };
    cases.map(bad).into()
}

fn bad_requests(endpoint: &Endpoint, stage: &Stage) -> Vec<Bad> {
    let request = |what: &str, body: &[u8], expected| Bad {
        what: what.to_owned(),
        method: Method::POST,
        path: endpoint.path.to_owned(),
        headers: vec![
            (AUTHORIZATION.as_str(), format!("Bearer {}", stage.caller)),
            (CONTENT_TYPE.as_str(), endpoint.media_type.to_owned()),
        ],
        body: body.to_owned(),
        expected,
        form: endpoint.form,
    };
    let good = |what, expected| request(what, endpoint.good.as_bytes(), expected);
    let as_caller = |what, credentials: String, expected| {
        let mut bad = good(what, expected);
        bad.headers[0].1 = credentials;
        bad
    };
    let mut bad = vec![
        Bad { headers: Vec::new(), ..good("nobody asks", 401) },
        as_caller("an unknown caller", "Bearer junk".to_owned(), 401),
        as_caller("Basic without base64", "Basic %".to_owned(), 401),
        as_caller("another scheme", "Digest x".to_owned(), 401),
        as_caller("a caller without the scope", format!("Bearer {}", stage.token), 403),
        Bad { method: Method::GET, ..good("not a POST", 405) },
        Bad { method: Method::DELETE, ..good("not a POST", 405) },
        request("a body too large", &vec![b' '; endpoint.max_body + 1], 413),
    ];
    let mut unlabelled = good("no media type", 415);
    unlabelled.headers.truncate(1);
    bad.push(unlabelled);
    bad.extend(endpoint.bad.iter().map(|body| request(&String::from_utf8_lossy(body), body, 400)));
    if endpoint.media_type == JSON {
        bad.push(request("nested to the largest size", &vec![b'['; endpoint.max_body], 400));
    }
    bad
}

/// Sends a request, which must be rejected in the right form; returns how long that took.
async fn rejected(client: &Client, stage: &Stage, bad: &Bad) -> Duration {
    let Bad { what, method, path, headers, body, expected, form } = bad;
    let request = client.request(method.clone(), stage.url(path)).body(body.clone());
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
    let start = Instant::now();
    let answer = request.send().await.unwrap_or_else(|error| panic!("{path}, {what}: {error:?}"));
    let (status, headers) = (answer.status(), answer.headers().clone());
    let text = answer.text().await.expect("a body");
    let took = start.elapsed();
    assert_eq!(status, *expected, "{path}, {what}: {text}");
    assert_eq!(header(&headers, CONTENT_TYPE.as_str()), JSON, "{path}, {what}");
    assert_eq!(header(&headers, "cache-control"), "no-store", "{path}, {what}");
    // Required by RFC 9110: a challenge with 401, the permitted methods with 405.
    assert!(*expected != 401 || headers.contains_key(WWW_AUTHENTICATE), "{path}, {what}");
    assert!(*expected != 405 || header(&headers, "allow") == "POST", "{path}, {what}");
    let body = serde_json::from_str(&text).expect("JSON");
    assert!(form(&body, status), "{path}, {what}: {text}");
    took
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
