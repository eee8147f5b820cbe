//! What a CheckResponse says.

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

use crate::endpoints::Answer;
use crate::endpoints::challenge::insert_identity;
use tokenward_core::check::Identity;

/// The request may pass. It gets our headers and loses those of the client that look like ours: a service behind
/// the gateway may take any of them for the truth.
///
/// The client's token stays: a service may want to check it for itself. Envoy can remove it by the route's
/// `request_headers_to_remove`.
pub(super) fn allowed<'a>(identity: Identity<'_>, like_ours: impl Iterator<Item = &'a str>) -> CheckResponse {
    let mut headers = HeaderMap::new();
    insert_identity(&mut headers, identity);
    // Envoy removes after it has set: what is set must not be named here.
    let forged = like_ours.filter(|name| !headers.contains_key(*name)).map(str::to_owned);
    let passed = OkHttpResponse {
        headers_to_remove: forged.collect(),
        headers: replaced(&headers),
        ..Default::default()
    };
    CheckResponse {
        status: Some(status(Code::Ok, "")),
        dynamic_metadata: Some(metadata(identity)),
        http_response: Some(HttpResponse::OkResponse(passed)),
    }
}

/// The request may not pass, and its client is answered as `/auth` would have it answered.
pub(super) fn denied(answer: Answer) -> CheckResponse {
    let (head, body) = answer.into_parts();
    let denied = DeniedHttpResponse {
        status: Some(HttpStatus { code: head.status.as_u16().into() }),
        headers: replaced(&head.headers),
        body: String::from_utf8_lossy(&body.into_inner().unwrap_or_default()).into_owned(),
    };
    CheckResponse {
        status: Some(status(code(head.status), head.status.canonical_reason().unwrap_or_default())),
        dynamic_metadata: None,
        http_response: Some(HttpResponse::DeniedResponse(denied)),
    }
}

/// What gRPC calls an HTTP status.
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

/// Headers that take the place of all others of the same names.
fn replaced(headers: &HeaderMap) -> Vec<HeaderValueOption> {
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

/// What filters after this one, and the access log, may know.
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
