//! `/oauth2/introspect`. The input is a form.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tokenward_fuzz::{is_valid, post};

fuzz_target!(|form: &[u8]| {
    let Some(response) = post("/oauth2/introspect", "application/x-www-form-urlencoded", form) else {
        return;
    };
    let field = |wanted: &str| form_urlencoded::parse(form).find(|(name, _)| name == wanted);
    let (_, token) = field("token").expect("a token");
    let scope = field("scope").map(|(_, scope)| scope).unwrap_or_default();
    let audience = field("audience").map(|(_, audience)| audience);
    let valid = is_valid(token.as_bytes(), scope.split_ascii_whitespace(), audience.as_deref());
    assert_eq!(response["active"], valid);
    // Of a token that is not active, nothing else is revealed.
    assert!(response["active"] == true || response.as_object().is_some_and(|response| response.len() == 1));
});
