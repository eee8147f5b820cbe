//! The text of a token: how it is made from random bytes, and parsed.
//!
//! The shape follows GitHub's token format: a prefix that people and scanners recognise, an underscore so that a
//! double click selects the whole, and a CRC-32 that distinguishes a token from junk without a look-up. The
//! tail has a fixed length, so the prefix itself may contain underscores.

use std::fmt;

use thiserror::Error;
use zeroize::Zeroizing;

use super::Plaintext;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
// Lengths of the parts, in bytes. 256 bits take 43 digits of base 62, and 32 bits take 6.
const KEY_ID: usize = 12;
const SECRET: usize = 43;
const CRC: usize = 6;
const TAIL: usize = KEY_ID + SECRET + CRC;
const PREFIX: std::ops::RangeInclusive<usize> = 2..=16;

/// The length of the longest token, in bytes.
pub const MAX_LEN: usize = *PREFIX.end() + 1 + TAIL;

/// The public part of a token, which names one version of one ApiToken. Safe to log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; KEY_ID]);

/// Why a text is not a key id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a key id is 12 letters and digits")]
pub struct KeyIdError;

impl KeyId {
    /// Makes a key id from 16 random bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let mut number = u128::from_be_bytes(bytes);
        let mut text = [0; KEY_ID];
        for digit in text.iter_mut().rev() {
            *digit = BASE62[(number % 62) as usize];
            number /= 62;
        }
        Self(text)
    }

    /// Parses a key id as a status stores it.
    pub fn parse(text: &str) -> Result<Self, KeyIdError> {
        let bytes: [u8; KEY_ID] = text.as_bytes().try_into().map_err(|_| KeyIdError)?;
        if bytes.iter().all(u8::is_ascii_alphanumeric) { Ok(Self(bytes)) } else { Err(KeyIdError) }
    }

    /// The key id as text, 12 letters and digits.
    pub fn as_str(&self) -> &str {
        // Both constructors admit ASCII only.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// `status.tokenId` of the ApiToken with this uid: `tok_` and 22 letters and digits, the uid's 128 bits in base 62.
///
/// Derived from the uid, not random, so that it survives a lost status, and a recreated token of the same name has another.
pub fn token_id(uid: &str) -> String {
    let digits = uid.bytes().filter_map(|b| char::from(b).to_digit(16));
    let number = digits.take(32).fold(0u128, |number, digit| number << 4 | u128::from(digit));
    format!("tok_{}", base62_of(number))
}

/// 128 bits as 22 letters and digits.
pub fn base62_of(mut number: u128) -> String {
    let mut text = [b'0'; 22];
    for digit in text.iter_mut().rev() {
        *digit = BASE62[(number % 62) as usize];
        number /= 62;
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The first part of a token: a lower-case letter, then 1 to 15 lower-case letters, digits or underscores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(String);

/// Why a text is not a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a prefix is a lower-case letter, then 1 to 15 lower-case letters, digits or underscores")]
pub struct PrefixError;

impl Prefix {
    /// The text as a prefix, if it is valid.
    pub fn new(text: &str) -> Result<Self, PrefixError> {
        if is_prefix(text.as_bytes()) { Ok(Self(text.to_owned())) } else { Err(PrefixError) }
    }

    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Prefix {
    fn default() -> Self {
        Self("tw".to_owned())
    }
}

fn is_prefix(text: &[u8]) -> bool {
    PREFIX.contains(&text.len())
        && text[0].is_ascii_lowercase()
        && text.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_')
}

/// Makes a token of a prefix, a key id and 32 random bytes.
pub fn make(prefix: &Prefix, key_id: KeyId, secret: &[u8; 32]) -> Plaintext {
    let mut text = Zeroizing::new(String::with_capacity(MAX_LEN));
    text.push_str(prefix.as_str());
    text.push('_');
    text.push_str(key_id.as_str());
    let mut digits = Zeroizing::new([0; SECRET]);
    base62(secret, &mut *digits);
    text.extend(digits.iter().map(|b| char::from(*b)));
    let mut crc = [0; CRC];
    base62(&crc32fast::hash(text.as_bytes()).to_be_bytes(), &mut crc);
    text.extend(crc.iter().map(|b| char::from(*b)));
    Plaintext::new(text)
}

/// Writes a big-endian number as base 62 digits, which must have room for it.
fn base62(number: &[u8], digits: &mut [u8]) {
    let mut number = Zeroizing::new(number.to_vec());
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0u32;
        for byte in number.iter_mut() {
            let value = remainder << 8 | u32::from(*byte);
            *byte = (value / 62) as u8;
            remainder = value % 62;
        }
        *digit = BASE62[remainder as usize];
    }
}

/// A text that has a token's shape and checksum. Whether it is one of ours is not checked yet.
#[derive(Clone, Copy)]
pub struct Token<'a> {
    text: &'a str,
    key_id: KeyId,
}

impl<'a> Token<'a> {
    /// Parses what a client presented. `None`: its length, alphabet, prefix or checksum is wrong.
    pub fn parse(text: &'a str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() > MAX_LEN {
            return None;
        }
        let (head, tail) = bytes.split_at_checked(bytes.len().checked_sub(TAIL)?)?;
        let (underscore, prefix) = head.split_last()?;
        if *underscore != b'_' || !is_prefix(prefix) || !tail.iter().all(u8::is_ascii_alphanumeric) {
            return None;
        }
        let (covered, presented) = bytes.split_at(bytes.len() - CRC);
        let mut crc = [0; CRC];
        base62_u32(crc32fast::hash(covered), &mut crc);
        if presented != crc {
            return None;
        }
        let key_id = KeyId(tail[..KEY_ID].try_into().ok()?);
        Some(Self { text, key_id })
    }

    /// The public part, which is safe to log.
    pub fn key_id(&self) -> KeyId {
        self.key_id
    }

    /// The whole text, which is secret.
    pub fn expose(&self) -> &'a str {
        self.text
    }
}

impl fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}, redacted)", self.key_id)
    }
}

/// [`base62`] for the checksum of the hot path, without its buffer.
fn base62_u32(mut number: u32, digits: &mut [u8; CRC]) {
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(number % 62) as usize];
        number /= 62;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(prefix: &str, key: [u8; 16], secret: [u8; 32]) -> Plaintext {
        make(&Prefix::new(prefix).expect("prefix"), KeyId::from_bytes(key), &secret)
    }

    /// A vector that another implementation (Python, zlib) gives too: a change would orphan every token in the world.
    #[test]
    fn the_format_is_stable() {
        let made = token("tok_live", [7; 16], [9; 32]);
        assert_eq!(made.expose(), "tok_live_6AkSp3WsPxY728pwpFvXuOCuClQJSgvJUKf8mA3ApwedogOvpU3VfJJ47OuL0");
        let zero = token("tw", [0; 16], [0; 32]);
        assert_eq!(zero.expose().len(), 2 + 1 + TAIL);
        assert!(zero.expose().starts_with("tw_0000000000000000"));
    }

    #[test]
    fn a_token_id_follows_the_uid() {
        let id = token_id("0f8fad5b-d9cb-469f-a165-70867728950e");
        assert_eq!(id, token_id("0F8FAD5BD9CB469FA16570867728950E"));
        assert_eq!(id.len(), 26);
        assert_ne!(id, token_id("0f8fad5b-d9cb-469f-a165-70867728950f"));
    }

    #[test]
    fn junk_does_not_parse() {
        let good = token("tw", [1; 16], [2; 32]);
        let good = good.expose();
        let without_last = &good[..good.len() - 1];
        for junk in [
            "",
            "tw_",
            "_",
            &"a".repeat(TAIL),
            &"a".repeat(MAX_LEN + 1),
            without_last,
            &format!("{good}0"),
            &format!(" {good}"),
            &good.replacen('_', "-", 1),
            &good.replacen("tw", "TW", 1),
            &good.replacen("tw", "é", 1),
        ] {
            assert!(Token::parse(junk).is_none(), "{junk}");
        }
    }

    proptest! {
        #[test]
        fn what_is_made_parses(prefix in "[a-z][a-z0-9_]{1,15}", key: [u8; 16], secret: [u8; 32]) {
            let made = token(&prefix, key, secret);
            let parsed = Token::parse(made.expose()).expect("a token");
            prop_assert_eq!(parsed.key_id(), KeyId::from_bytes(key));
            prop_assert_eq!(KeyId::parse(parsed.key_id().as_str()), Ok(parsed.key_id()));
            prop_assert!(made.expose().len() <= MAX_LEN);
        }

        #[test]
        fn one_changed_character_is_detected(key: [u8; 16], secret: [u8; 32], at in 0usize..64, with in "[0-9A-Za-z_]") {
            let made = token("tw", key, secret);
            let mut changed = made.expose().to_owned();
            changed.replace_range(at..=at, &with);
            prop_assume!(changed != made.expose());
            prop_assert!(Token::parse(&changed).is_none());
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = Token::parse(&text);
        }

        #[test]
        fn both_base62_agree(number: u32) {
            let (mut long, mut short) = ([0; CRC], [0; CRC]);
            base62(&number.to_be_bytes(), &mut long);
            base62_u32(number, &mut short);
            prop_assert_eq!(long, short);
        }

        #[test]
        fn different_secrets_make_different_tokens(a: [u8; 32], b: [u8; 32]) {
            prop_assume!(a != b);
            let (a, b) = (token("tw", [0; 16], a), token("tw", [0; 16], b));
            prop_assert_ne!(a.expose(), b.expose());
        }
    }
}
