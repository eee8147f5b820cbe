//! JSON bodies of requests and responses.

use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::error::Category;

use super::request_error::RequestError;
use super::{HttpResponse, response};

pub(super) const MEDIA_TYPE: &str = "application/json";

/// A JSON response with status 200.
pub(super) fn json(value: &impl Serialize) -> HttpResponse {
    match serde_json::to_vec(value) {
        Ok(text) => response(StatusCode::OK, MEDIA_TYPE, text.into()),
        // All types here have string keys, so this does not happen.
        Err(_) => response(StatusCode::INTERNAL_SERVER_ERROR, MEDIA_TYPE, "{}".into()),
    }
}

/// Parses a JSON body. The error may name a field but never quotes a value, which may be a token.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, RequestError> {
    // serde_json skips unread fields without validating their UTF-8 (RFC 8259 section 8.1).
    let text = str::from_utf8(body).map_err(|_| RequestError::Malformed("not JSON: not UTF-8".into()))?;
    serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        let of_a_field = ["unknown field", "missing field", "duplicate field"];
        let message = match error.classify() {
            Category::Data if of_a_field.iter().any(|start| message.starts_with(start)) => message,
            Category::Data => {
                let (line, column) = (error.line(), error.column());
                format!("not of the form that /openapi.json describes, at line {line} column {column}")
            }
            _ => format!("not JSON, at line {} column {}", error.line(), error.column()),
        };
        RequestError::Malformed(message.into())
    })
}
