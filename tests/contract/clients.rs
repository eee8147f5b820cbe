//! The clients of `examples/clients`, unchanged, with a token that works and ones that do not.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::stage::{LOOPBACK, Stage};

pub fn authlib_introspects_with_a_client_secret(stage: &Stage) {
    introspection_returns_the_identity(stage, || {
        let mut python = stage.python.program("python");
        python.arg(example("introspect.py"));
        python
    });
}

/// The example, with the other of the two methods of RFC 6749 section 2.3.1.
pub fn authlib_introspects_with_a_secret_in_the_form(stage: &Stage) {
    let basic = std::fs::read_to_string(example("introspect.py")).expect("an example");
    assert!(basic.contains("client_secret_basic"));
    let post = basic.replace("client_secret_basic", "client_secret_post");
    introspection_returns_the_identity(stage, || {
        let mut python = stage.python.program("python");
        python.args(["-c", &post]);
        python
    });
}

pub fn curl_introspects_as_a_bearer(stage: &Stage) {
    introspection_returns_the_identity(stage, || Command::new(example("introspect.sh")));
}

pub fn curl_verifies(stage: &Stage) {
    let client = || Command::new(example("verify.sh"));
    let answer = ask(stage, client(), &["orders:read"], &stage.caller, &stage.token);
    let token = &body(&answer)["token"];
    assert_eq!(token["namespace"], stage.space.name.as_str());
    assert_eq!(token["name"], "orders");
    assert_eq!(token["scopes"], json!(["orders:read", "orders:write"]));
    let refusals = [
        (&*stage.token, "orders:delete", "INSUFFICIENT_SCOPE"),
        ("tw_never_was", "orders:read", "NOT_FOUND"),
    ];
    for (token, scope, code) in refusals {
        let answer = ask(stage, client(), &[scope], &stage.caller, token);
        assert_eq!(body(&answer), json!({"valid": false, "code": code}));
    }
    let stranger = ask(stage, client(), &["orders:read"], &stage.token, &stage.token);
    assert_failed(&stranger, "403");
}

fn introspection_returns_the_identity(stage: &Stage, client: impl Fn() -> Command) {
    let subject = format!("{}/orders", stage.space.name);
    let answer = ask(stage, client(), &["orders:read"], &stage.caller, &stage.token);
    let claims = body(&answer);
    assert_eq!(claims["active"], true);
    assert_eq!(claims["sub"], subject.as_str());
    assert_eq!(claims["scope"], "orders:read orders:write");
    assert_eq!(claims["token_type"], "Bearer");
    // Of an inactive token, nothing else is revealed.
    for (token, scope) in [(&*stage.token, "orders:delete"), ("tw_never_was", "orders:read")] {
        let answer = ask(stage, client(), &[scope], &stage.caller, token);
        assert_eq!(body(&answer), json!({"active": false}));
    }
    let stranger = ask(stage, client(), &["orders:read"], &stage.token, &stage.token);
    assert_failed(&stranger, "403");
}

/// Runs a client, with which `caller` checks `token` for the scopes.
fn ask(stage: &Stage, mut client: Command, scopes: &[&str], caller: &str, token: &str) -> Output {
    let caller_file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("caller-{}", std::process::id()));
    std::fs::write(&caller_file, caller).expect("the caller's token");
    client
        .args(scopes)
        .env("TOKENWARD_URL", stage.url(""))
        .env("TOKENWARD_CALLER_FILE", &caller_file)
        .env("NO_PROXY", LOOPBACK)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut client = client.spawn().expect("a client");
    let mut stdin = client.stdin.take().expect("its input");
    stdin.write_all(token.as_bytes()).expect("the token");
    drop(stdin);
    let output = client.wait_with_output().expect("an answer");
    std::fs::remove_file(&caller_file).expect("the caller's token");
    output
}

/// The JSON that a client has printed; it must have succeeded.
fn body(output: &Output) -> Value {
    let Output { status, stdout, stderr } = output;
    assert!(status.success(), "{status}: {}", String::from_utf8_lossy(stderr));
    serde_json::from_slice(stdout).expect("JSON")
}

/// Asserts that a client has failed, and printed the HTTP status.
fn assert_failed(output: &Output, http_status: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(http_status), "{}: {said}", output.status);
}

fn example(name: &str) -> String {
    format!("{}/examples/clients/{name}", env!("CARGO_MANIFEST_DIR"))
}
