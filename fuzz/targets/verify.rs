//! `/v1/verify`. The input is JSON.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tokenward_fuzz::{is_valid, post};

fuzz_target!(|body: &[u8]| {
    let Some(response) = post("/v1/verify", "application/json", body) else { return };
    let asked: Value = serde_json::from_slice(body).expect("JSON");
    let token = asked["token"].as_str().expect("a token");
    let scopes = asked["scopes"].as_array().into_iter().flatten();
    let scopes = scopes.map(|scope| scope.as_str().expect("a scope"));
    let valid = is_valid(token.as_bytes(), scopes, Some(asked["audience"].as_str().unwrap_or_default()));
    assert_eq!(response["valid"], valid);
    // Either the identity, or why it is not valid.
    assert_eq!(response["token"].is_object(), valid);
    assert_eq!(response["code"].is_string(), !valid);
});
