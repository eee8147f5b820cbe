//! `/v1/verify:batch`. The input is JSON; results are in the order of the checks.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tokenward_fuzz::{is_valid, post};

fuzz_target!(|body: &[u8]| {
    let Some(response) = post("/v1/verify:batch", "application/json", body) else { return };
    let asked: Value = serde_json::from_slice(body).expect("JSON");
    let checks = asked["checks"].as_array().expect("checks");
    let results = response["results"].as_array().expect("results");
    assert_eq!(results.len(), checks.len());
    for (result, check) in results.iter().zip(checks) {
        let token = check["token"].as_str().expect("a token");
        let scopes = check["scopes"].as_array().into_iter().flatten();
        let scopes = scopes.map(|scope| scope.as_str().expect("a scope"));
        let valid = is_valid(token.as_bytes(), scopes, Some(check["audience"].as_str().unwrap_or_default()));
        assert_eq!(result["valid"], valid);
    }
});
