//! The resourceVersions that a request may ask for, and their form.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::json;
use utoipa::openapi::schema::{Schema, Type};
use utoipa::openapi::{ObjectBuilder, RefOr};
use utoipa::{PartialSchema, ToSchema};

use super::request_error::RequestError;
use crate::at_least::AtLeast;

/// The most digits: etcd counts in 63 bits, and so does the API server.
const MAX_DIGITS: usize = 19;

/// What a verifier must know before it decides: for each kind, the `metadata.resourceVersion` of what was written. It waits for
/// it up to 250 ms; the response is then 503. An unknown field is an error, because a misspelt one would require nothing.
#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = AtLeast)]
pub(super) struct AtLeastRequest<'a> {
    /// That of an ApiToken.
    #[schema(value_type = Option<ResourceVersion>)]
    api_tokens: Option<Cow<'a, str>>,
    /// That of a TokenLock.
    #[schema(value_type = Option<ResourceVersion>)]
    token_locks: Option<Cow<'a, str>>,
    /// That of a ClusterTokenLock.
    #[schema(value_type = Option<ResourceVersion>)]
    cluster_token_locks: Option<Cow<'a, str>>,
}

impl AtLeastRequest<'_> {
    pub(super) fn parse(&self) -> Result<AtLeast, RequestError> {
        Ok(AtLeast {
            api_tokens: resource_version("atLeast.apiTokens", self.api_tokens.as_deref())?,
            token_locks: resource_version("atLeast.tokenLocks", self.token_locks.as_deref())?,
            cluster_token_locks: resource_version(
                "atLeast.clusterTokenLocks",
                self.cluster_token_locks.as_deref(),
            )?,
        })
    }
}

/// Parses a resourceVersion (KEP-5504: decimal digits, the first not 0). 0 is that of no object.
pub(super) fn resource_version(field: &str, text: Option<&str>) -> Result<Option<u64>, RequestError> {
    let Some(text) = text else { return Ok(None) };
    let is_decimal =
        text.len() <= MAX_DIGITS && !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    let version = Some(text).filter(|_| is_decimal).and_then(|text| text.parse().ok());
    version.map(Some).ok_or_else(|| {
        RequestError::Malformed(format!("{field} is not the metadata.resourceVersion of an object").into())
    })
}

/// A resourceVersion that [`resource_version`] accepts.
pub(super) struct ResourceVersion;

impl ToSchema for ResourceVersion {}

impl PartialSchema for ResourceVersion {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("`metadata.resourceVersion` of an object, as the API server returned it."))
            .pattern(Some(format!("^[1-9][0-9]{{0,{}}}$", MAX_DIGITS - 1)))
            .examples([json!("48151")])
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_version_is_a_positive_decimal_number() {
        let parse = |text| resource_version("f", Some(text)).ok().flatten();
        assert_eq!(parse("1"), Some(1));
        assert_eq!(parse("9223372036854775807"), Some(9_223_372_036_854_775_807));
        assert_eq!(parse("9999999999999999999"), Some(9_999_999_999_999_999_999));
        for text in
            ["", "0", "01", "+1", "-1", " 1", "1 ", "1.0", "1e3", "0x1", "१", "a", "10000000000000000000"]
        {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert!(matches!(resource_version("f", None), Ok(None)));
    }
}
