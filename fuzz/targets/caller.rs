//! The Authorization header of callers, at the endpoints that give reasons.

#![no_main]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request};
use libfuzzer_sys::{Corpus, fuzz_target};
use tokenward_fuzz::{SCOPE, answer, is_valid};

fuzz_target!(|input: &[u8]| -> Corpus {
    let Ok(authorization) = HeaderValue::from_bytes(input) else { return Corpus::Reject };
    let request = Request::post("/v1/verify")
        .header(AUTHORIZATION, authorization)
        .header(CONTENT_TYPE, "application/json")
        .body(r#"{"token":""}"#.into())
        .expect("a request");
    let (status, body) = answer(request);
    match status.as_u16() {
        200 => assert!(secret(input).is_some_and(|secret| is_valid(&secret, [SCOPE], None))),
        // 503: a JWT, as there is no API server here to review it.
        401 | 403 | 503 => assert!(body["error"].is_string() && body["message"].is_string()),
        _ => panic!("{status} {body}"),
    }
    Corpus::Keep
});

/// The secret in an Authorization header: `Bearer SECRET`, or `Basic` with the base64 of `NAME:SECRET`.
fn secret(authorization: &[u8]) -> Option<Vec<u8>> {
    let (scheme, rest) = std::str::from_utf8(authorization).ok()?.trim().split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().into());
    }
    let pair = STANDARD.decode(rest.trim()).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].into())
}
