//! `/tokenreview`. The input is a TokenReview.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Deserialize;
use tokenward_fuzz::{LOGIN, TOKEN, is_valid, post};

/// What is read of a review. The rest need not even be valid.
#[derive(Deserialize)]
struct Review {
    spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    token: String,
}

fuzz_target!(|body: &[u8]| {
    let Some(response) = post("/tokenreview", "application/json", body) else { return };
    let Review { spec: Spec { token } } = serde_json::from_slice(body).expect("a review");
    let status = &response["status"];
    assert_eq!(status["authenticated"], is_valid(token.as_bytes(), [LOGIN], None));
    if token == TOKEN.expose() {
        assert_eq!(status["user"]["username"], "tokenward:team:orders");
    }
});
