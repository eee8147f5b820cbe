//! Durations as users write them: `90m`, `1h30m`, `720h`.
//!
//! The text is stored as it was written: a controller that rewrote `60m` as `1h` would differ from Git.

use std::borrow::Cow;

use jiff::SignedDuration;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A duration in the units h, m and s, as text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct DurationString(String);

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is not a duration: write numbers with the unit h, m or s, such as 90m or 720h (30 days are 720h)"
)]
pub struct DurationError(String);

impl DurationString {
    /// Wraps a text without checking it. [`Self::parse`] checks what the API server stored.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text as the user wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The length of time that the text names.
    ///
    /// The CRD rejects what does not parse. It is checked here again, since a CRD can be edited.
    pub fn parse(&self) -> Result<SignedDuration, DurationError> {
        let invalid = || DurationError(self.0.clone());
        let mut rest = self.0.as_str();
        let mut total = SignedDuration::ZERO;
        if rest.is_empty() {
            return Err(invalid());
        }
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            let number: i64 = number.parse().map_err(|_| invalid())?;
            let seconds = match tail.as_bytes().first() {
                Some(b'h') => 3600,
                Some(b'm') => 60,
                Some(b's') => 1,
                _ => return Err(invalid()),
            };
            let part = number.checked_mul(seconds).map(SignedDuration::from_secs).ok_or_else(invalid)?;
            total = total.checked_add(part).ok_or_else(invalid)?;
            rest = &tail[1..];
        }
        Ok(total)
    }
}

impl From<&str> for DurationString {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl JsonSchema for DurationString {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    // A rule instead of `pattern`: the API server prints the pattern itself, which helps a user less than a sentence. CEL has
    // no durations above 292 years, so what the pattern admits must be less, or rules that compute with it fail without one.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 2,
            "maxLength": 24,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^[0-9]{1,6}(s|m|h)([0-9]{1,5}(s|m|h)){0,2}$')",
                "message": "must be numbers with the unit h, m or s, such as 90m, 1h30m or 720h (there is no unit for days: 30 days are 720h); at most three numbers, the first of at most six digits, the others of at most five",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_add_up() {
        for (text, seconds) in
            [("0s", 0), ("90m", 5400), ("1h30m", 5400), ("720h", 2_592_000), ("1h1m1s", 3661)]
        {
            assert_eq!(DurationString::from(text).parse(), Ok(SignedDuration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_rejected_with_advice() {
        for text in
            ["", "h", "30d", "1.5h", "-1h", "1h ", "1", "9999999999999999999h", "9223372036854775807h"]
        {
            let error = DurationString::from(text).parse().expect_err(text).to_string();
            assert!(error.contains("720h"), "{error}");
        }
    }
}
