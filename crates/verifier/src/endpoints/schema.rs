//! OpenAPI schemas of values that several endpoints share, and whose Rust types contain less than the document says.

use std::borrow::Cow;

use serde_json::json;
use utoipa::openapi::schema::{AnyOfBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::{KnownFormat, ObjectBuilder, RefOr};
use utoipa::{PartialSchema, ToSchema};

use tokenward_core::check::Code;
use tokenward_core::token::scope::{MAX_SCOPE_LEN, MAX_SCOPES};

/// A scope that [`is_scope`](tokenward_core::token::scope::is_scope) accepts.
pub(super) struct Scope;

impl Scope {
    const PATTERN: &str = r"[A-Za-z0-9][A-Za-z0-9._/-]*(:[A-Za-z0-9._/-]+)*:([A-Za-z0-9._/-]+|\*)";
}

impl ToSchema for Scope {}

impl PartialSchema for Scope {
    fn schema() -> RefOr<Schema> {
        text("`resource:action`. `orders:*` stands for every action, `a:b:*` for all that is below `a:b`.")
            .pattern(Some(format!("^{}$", Self::PATTERN)))
            .max_length(Some(MAX_SCOPE_LEN))
            .examples([json!("orders:read")])
            .into()
    }
}

/// The schema of [`Code`], whose crate does not depend on utoipa.
pub(super) struct CodeSchema;

impl ToSchema for CodeSchema {
    fn name() -> Cow<'static, str> {
        "Code".into()
    }
}

impl PartialSchema for CodeSchema {
    fn schema() -> RefOr<Schema> {
        text(
            "Why a check is denied, for authenticated callers. Public endpoints merge most of these into one response, so \
             that a client can't distinguish a revoked token from one that never existed.",
        )
        .enum_values(Some(Code::ALL.map(Code::as_str)))
            .into()
    }
}

/// A list of scopes separated by spaces (RFC 6749 section 3.3).
pub(super) struct Scopes;

impl ToSchema for Scopes {}

impl PartialSchema for Scopes {
    fn schema() -> RefOr<Schema> {
        text("Up to 64 scopes, separated by spaces.")
            .pattern(Some(format!(
                r"^(?!.*\S{{{too_long}}}){scope}( {scope}){{0,{more}}}$",
                too_long = MAX_SCOPE_LEN + 1,
                scope = Scope::PATTERN,
                more = MAX_SCOPES - 1,
            )))
            .examples([json!("orders:read orders:write")])
            .into()
    }
}

/// An IPv4 or IPv6 address.
pub(super) struct IpAddress;

impl ToSchema for IpAddress {}

impl PartialSchema for IpAddress {
    fn schema() -> RefOr<Schema> {
        let address = |format| ObjectBuilder::new().schema_type(Type::String).format(Some(format));
        AnyOfBuilder::new()
            .description(Some("An IPv4 or IPv6 address."))
            .item(address(SchemaFormat::KnownFormat(KnownFormat::Ipv4)))
            .item(address(SchemaFormat::KnownFormat(KnownFormat::Ipv6)))
            .examples([json!("192.0.2.1")])
            .into()
    }
}

fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description))
}
