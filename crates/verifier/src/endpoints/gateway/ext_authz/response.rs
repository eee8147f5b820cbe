//! Encodes a `CheckResponse`.

use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value};
use envoy_types::pb::google::rpc;
use http::{HeaderMap, StatusCode};
use tonic::Code;

use crate::endpoints::HttpResponse as ClientResponse;
use crate::endpoints::gateway::response::insert_identity;
use tokenward_core::check::Identity;

/// Lets the request pass with the identity headers, and without the client's headers that a service could take for them.
///
/// The client's token stays, because the service may want to check it itself. Envoy can remove it by the route's
/// `request_headers_to_remove`.
pub(super) fn allowed<'a>(identity: Identity<'_>, forged: impl Iterator<Item = &'a str>) -> CheckResponse {
    let mut headers = HeaderMap::new();
    insert_identity(&mut headers, identity);
    // Envoy removes headers after it has set others, so those that are set must not be listed.
    let forged = forged.filter(|name| !headers.contains_key(*name)).map(str::to_owned);
    let allowed = OkHttpResponse {
        headers_to_remove: forged.collect(),
        headers: replacing(&headers),
        ..Default::default()
    };
    CheckResponse {
        status: Some(status(Code::Ok, "")),
        dynamic_metadata: Some(metadata(identity)),
        http_response: Some(HttpResponse::OkResponse(allowed)),
    }
}

/// Denies the request. Its client gets the response that it would get by `/auth`.
pub(super) fn denied(response: ClientResponse) -> CheckResponse {
    let (head, body) = response.into_parts();
    let denied = DeniedHttpResponse {
        status: Some(HttpStatus { code: head.status.as_u16().into() }),
        headers: replacing(&head.headers),
        body: String::from_utf8_lossy(&body.into_inner().unwrap_or_default()).into_owned(),
    };
    CheckResponse {
        status: Some(status(code(head.status), head.status.canonical_reason().unwrap_or_default())),
        dynamic_metadata: None,
        http_response: Some(HttpResponse::DeniedResponse(denied)),
    }
}

/// The gRPC code for an HTTP status.
fn code(status: StatusCode) -> Code {
    match status {
        StatusCode::BAD_REQUEST => Code::InvalidArgument,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        _ => Code::PermissionDenied,
    }
}

fn status(code: Code, message: &str) -> rpc::Status {
    rpc::Status { code: code.into(), message: message.to_owned(), details: Vec::new() }
}

/// Headers that replace all others of the same names.
fn replacing(headers: &HeaderMap) -> Vec<HeaderValueOption> {
    let one = |(name, value): (&http::HeaderName, &http::HeaderValue)| HeaderValueOption {
        header: Some(HeaderValue {
            key: name.as_str().to_owned(),
            value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
            ..Default::default()
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..Default::default()
    };
    headers.iter().map(one).collect()
}

/// The dynamic metadata, for later filters and the access log.
fn metadata(identity: Identity<'_>) -> Struct {
    let entry = identity.entry;
    let scopes = identity.each_scope().map(text).collect();
    let fields = [
        ("id", text(entry.token_id())),
        ("subject", text(entry.subject())),
        ("namespace", text(entry.namespace())),
        ("name", text(entry.name())),
        ("key_id", text(identity.key_id.as_str())),
        ("scopes", value(Kind::ListValue(ListValue { values: scopes }))),
    ];
    Struct { fields: fields.map(|(name, value)| (name.to_owned(), value)).into() }
}

fn text(text: &str) -> Value {
    value(Kind::StringValue(text.to_owned()))
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}
