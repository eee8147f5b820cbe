//! The token parser: whatever it accepts is a token, byte for byte.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tokenward_core::token::Token;
use tokenward_core::token::format::MAX_LEN;

fuzz_target!(|text: &str| {
    let Some(token) = Token::parse(text) else { return };
    assert_eq!(token.expose(), text);
    assert!(text.len() <= MAX_LEN && text.is_ascii());
    let (prefix, tail) = text.rsplit_once('_').expect("an underscore");
    assert!(tail.starts_with(token.key_id().as_str()) && !prefix.is_empty());
    assert!(!format!("{token:?}").contains(tail), "the secret shows");
    // With any other character it is no token.
    let mut changed = text.to_owned();
    let last = changed.pop();
    changed.push(if last == Some('0') { '1' } else { '0' });
    assert!(Token::parse(&changed).is_none());
});
