//! `/tokenreview`: a TokenReview of Kubernetes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tokenward_fuzz::{TOKEN, is_valid, post};

fuzz_target!(|body: &[u8]| {
    let Some(told) = post("/tokenreview", "application/json", body) else { return };
    let asked: Value = serde_json::from_slice(body).expect("JSON");
    let token = asked["spec"]["token"].as_str().unwrap_or_default();
    let status = &told["status"];
    assert_eq!(status["authenticated"], is_valid(token.as_bytes(), []));
    if token == TOKEN.expose() {
        assert_eq!(status["user"]["username"], "tokenward:team:orders");
    }
});
