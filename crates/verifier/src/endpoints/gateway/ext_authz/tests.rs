//! The endpoint without a socket: requests are values, and everything in a response that Envoy acts on is checked.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::address::Address as Kind;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{Address, HeaderMap, HeaderValue, Pipe, SocketAddress};
use envoy_types::pb::envoy::service::auth::v3::AttributeContext;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{self, HttpRequest, Peer};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use tonic_prost::prost::Message;

use super::*;
use crate::endpoints::fixture::{Fixture, bearer, plaintext, spec};
use tokenward_core::crd::{ApiTokenSpec, Constraints};

const GATEWAY: &str = "10.0.0.7";

/// An endpoint that knows token 1.
fn endpoint(trusted_proxies: &[&str]) -> ExtAuthz {
    on(&Fixture::behind(trusted_proxies), trusted_proxies)
}

fn on(fixture: &Fixture, trusted_proxies: &[&str]) -> ExtAuthz {
    let trusted_proxies = trusted_proxies.iter().map(|net| net.parse().expect("a network")).collect();
    let trusted_proxies = TrustedProxies(trusted_proxies);
    ExtAuthz::new(fixture.snapshot.clone(), trusted_proxies, &Metrics::register(&mut Registry::default()))
}

/// Builds a CheckRequest as Envoy does.
#[derive(Clone, Default)]
struct RequestBuilder(AttributeContext);

impl RequestBuilder {
    fn new() -> Self {
        let request = attribute_context::Request { http: Some(HttpRequest::default()), ..Default::default() };
        Self(AttributeContext { request: Some(request), ..Default::default() })
    }

    /// A request with token 1.
    fn good() -> Self {
        Self::new().header("authorization", &String::from_utf8(bearer(1)).expect("text"))
    }

    fn http(&mut self) -> &mut HttpRequest {
        self.0.request.as_mut().and_then(|request| request.http.as_mut()).expect("an HTTP request")
    }

    fn header(mut self, name: &str, value: &str) -> Self {
        self.http().headers.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A header in the form of `encode_raw_headers`.
    fn raw(mut self, name: &str, value: &[u8]) -> Self {
        let header = HeaderValue { key: name.to_owned(), raw_value: value.to_vec(), ..Default::default() };
        self.http().header_map.get_or_insert_default().headers.push(header);
        self
    }

    fn extension(mut self, name: &str, value: &str) -> Self {
        self.0.context_extensions.insert(name.to_owned(), value.to_owned());
        self
    }

    fn from(self, address: &str) -> Self {
        let socket = SocketAddress { address: address.to_owned(), ..Default::default() };
        self.at(Kind::SocketAddress(socket))
    }

    fn at(mut self, address: Kind) -> Self {
        let address = Some(Address { address: Some(address) });
        self.0.source = Some(Peer { address, ..Default::default() });
        self
    }

    fn send(self, endpoint: &ExtAuthz) -> Reply {
        let request = CheckRequest { attributes: Some(self.0) };
        Reply::of(endpoint.respond(&request, GATEWAY.parse().expect("an address")))
    }
}

/// The part of a CheckResponse that Envoy acts on.
#[derive(Debug, PartialEq)]
struct Reply {
    http: u16,
    code: i32,
    headers: BTreeMap<String, String>,
    removed: Vec<String>,
    body: String,
    metadata: Option<Struct>,
}

impl Reply {
    fn of(response: CheckResponse) -> Self {
        let (http, headers, removed, body) = match response.http_response.expect("an HTTP response") {
            HttpResponse::OkResponse(ok) => (200, ok.headers, ok.headers_to_remove, String::new()),
            HttpResponse::DeniedResponse(denied) => {
                let status = denied.status.expect("a status").code;
                (u16::try_from(status).expect("a status"), denied.headers, Vec::new(), denied.body)
            }
            HttpResponse::ErrorResponse(error) => panic!("left to failure_mode_allow: {error:?}"),
        };
        let headers = headers.into_iter().map(|option| {
            assert_eq!(option.append_action, i32::from(HeaderAppendAction::OverwriteIfExistsOrAdd));
            let header = option.header.expect("a header");
            (header.key, header.value)
        });
        Self {
            http,
            code: response.status.expect("a status").code,
            headers: headers.collect(),
            removed,
            body,
            metadata: response.dynamic_metadata,
        }
    }

    fn error(&self) -> String {
        let body: serde_json::Value = serde_json::from_str(&self.body).expect("JSON");
        assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
        body["error"].as_str().expect("an error").to_owned()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn metadata(&self, name: &str) -> Option<&Value> {
        self.metadata.as_ref()?.fields.get(name)
    }
}

fn text(value: Option<&Value>) -> &str {
    match value.and_then(|value| value.kind.as_ref()) {
        Some(value::Kind::StringValue(text)) => text,
        other => panic!("not a string: {other:?}"),
    }
}

#[test]
fn a_valid_token_passes_with_its_identity() {
    let reply = RequestBuilder::good().extension("scope", "orders:read audit:read").send(&endpoint(&[]));
    assert_eq!((reply.http, reply.code), (200, 0));
    assert_eq!(reply.header("x-tokenward-id"), Some("tok_1"));
    assert_eq!(reply.header("x-tokenward-subject"), Some("team/token-1"));
    assert_eq!(reply.header("x-tokenward-scopes"), Some("orders:* audit:read"));
    assert_eq!(reply.headers.len(), 3, "headers of a response are not added to the request");
    assert_eq!(reply.removed, [""; 0]);
    let expected = [("id", "tok_1"), ("subject", "team/token-1"), ("namespace", "team"), ("name", "token-1")];
    for (name, value) in expected {
        assert_eq!(text(reply.metadata(name)), value, "{name}");
    }
    let token = plaintext(1);
    let key_id = text(reply.metadata("key_id"));
    assert!(token.expose().contains(key_id) && key_id.len() == 12, "{key_id}");
    let Some(value::Kind::ListValue(scopes)) =
        reply.metadata("scopes").and_then(|scopes| scopes.kind.as_ref())
    else {
        panic!("no list: {reply:?}")
    };
    let scopes: Vec<_> = scopes.values.iter().map(|scope| text(Some(scope))).collect();
    assert_eq!(scopes, ["orders:*", "audit:read"]);
}

#[test]
fn a_token_is_read_in_every_form_but_not_in_two_at_once() {
    let (one, two) = (plaintext(1), plaintext(2));
    let (good, bad) = (one.expose(), two.expose());
    let bearer = format!("Bearer {good}");
    let endpoint = endpoint(&[]);
    let raw = |name: &str, value: &str| RequestBuilder::new().raw(name, value.as_bytes());
    let table = [
        (RequestBuilder::new().header("authorization", &bearer), 200),
        (RequestBuilder::new().header("x-api-key", good), 200),
        (RequestBuilder::good().header("x-api-key", good), 200),
        (raw("authorization", &bearer), 200),
        (raw("X-Api-Key", good), 200),
        (RequestBuilder::new().header("authorization", &format!("Basic {good}")), 401),
        (RequestBuilder::new().header("authorization", &format!("{bearer},{bearer}")), 401),
        (RequestBuilder::new().header("x-tokenward-id", "tok_1"), 401),
        (raw("authorization", "Bearer \u{e9}"), 401),
        (RequestBuilder::good().header("x-api-key", bad), 400),
        (raw("authorization", &bearer).raw("authorization", bearer.as_bytes()), 400),
        (RequestBuilder::good().raw("authorization", bearer.as_bytes()), 400),
        (RequestBuilder::good().header("Authorization", &bearer), 400),
        (RequestBuilder::new().header("x-api-key", "a\nb"), 400),
    ];
    for (row, (request, status)) in table.into_iter().enumerate() {
        assert_eq!(request.send(&endpoint).http, status, "row {row}");
    }
}

#[test]
fn a_denial_is_that_of_auth_with_a_grpc_code() {
    let invalid = r#"Bearer realm="tokenward", error="invalid_token""#;
    let lacking = r#"Bearer realm="tokenward", error="insufficient_scope", scope="orders:read x:y""#;
    let malformed = r#"Bearer realm="tokenward", error="invalid_request""#;
    let junk = || RequestBuilder::new().header("x-api-key", "junk");
    let table = [
        (RequestBuilder::new(), 401, 16, "no_token", Some(r#"Bearer realm="tokenward""#)),
        (junk(), 401, 16, "invalid_token", Some(invalid)),
        (RequestBuilder::good().extension("audience", "billing"), 200, 0, "", None),
        (
            RequestBuilder::good().extension("scope", "orders:read x:y"),
            403,
            7,
            "insufficient_scope",
            Some(lacking),
        ),
        (RequestBuilder::good().extension("scope", "nonsense"), 400, 3, "invalid_request", Some(malformed)),
        (RequestBuilder::good().extension("scope", " "), 400, 3, "invalid_request", Some(malformed)),
        (
            RequestBuilder::good().extension("scope", &"a:b ".repeat(65)),
            400,
            3,
            "invalid_request",
            Some(malformed),
        ),
        // A misspelt extension would leave the route open.
        (RequestBuilder::good().extension("scopes", "a:b"), 400, 3, "invalid_request", Some(malformed)),
        (RequestBuilder::good().extension("Scope", "a:b"), 400, 3, "invalid_request", Some(malformed)),
    ];
    let endpoint = endpoint(&[]);
    for (request, http, code, error, challenge) in table {
        let reply = request.send(&endpoint);
        assert_eq!((reply.http, reply.code), (http, code), "{error}: {reply:?}");
        if http != 200 {
            assert_eq!(reply.error(), error);
            assert_eq!(reply.header("www-authenticate"), challenge, "{error}");
            assert_eq!(reply.header("content-type"), Some("application/json"));
            assert_eq!(reply.header("cache-control"), Some("no-store"));
            assert_eq!(reply.metadata, None, "a denial has no identity");
        }
    }
}

#[test]
fn a_message_without_an_http_request_is_denied() {
    let endpoint = endpoint(&[]);
    let gateway = GATEWAY.parse().expect("an address");
    let no_request = AttributeContext::default();
    let tcp = AttributeContext { request: Some(attribute_context::Request::default()), ..Default::default() };
    for attributes in [None, Some(no_request), Some(tcp)] {
        let reply = Reply::of(endpoint.respond(&CheckRequest { attributes }, gateway));
        assert_eq!((reply.http, reply.code, &*reply.error()), (400, 3, "invalid_request"));
    }
}

#[test]
fn an_unready_verifier_denies_instead_of_failing_the_call() {
    let reply = RequestBuilder::good().send(&on(&Fixture::unready(&[]), &[]));
    assert_eq!((reply.http, reply.code, &*reply.error()), (503, 14, "not_ready"));
    assert_eq!(reply.header("retry-after"), Some("1"));
}

#[test]
fn a_clients_own_identity_headers_do_not_survive() {
    let reply = RequestBuilder::good()
        .header("x-tokenward-id", "tok_forged")
        .header("x-tokenward-admin", "yes")
        .header("x_tokenward_subject", "kube-system/admin")
        .header("x-tokenwardens", "not ours")
        .header("x-tokenward", "not ours")
        .header("x-\u{e9}okenward-id", "not ours")
        .raw("X-Tokenward-Namespace", b"kube-system")
        .send(&endpoint(&[]));
    assert_eq!(reply.http, 200);
    // Replaced, and not removed: Envoy removes after it has set.
    assert_eq!(reply.header("x-tokenward-id"), Some("tok_1"));
    let mut removed = reply.removed;
    removed.sort();
    assert_eq!(removed, ["X-Tokenward-Namespace", "x-tokenward-admin", "x_tokenward_subject"]);
}

#[test]
fn only_trusted_gateways_may_report_the_clients_address() {
    const OFFICE: &str = "192.0.2.7";
    let proxies = ["10.0.0.0/8"];
    let status = |request: RequestBuilder, trusted: &[&str]| {
        let fixture = Fixture::behind(trusted);
        let constraints =
            Constraints { cidrs: Some(vec!["192.0.2.0/24".to_owned(), GATEWAY.to_owned() + "/32"]) };
        fixture.with(2, ApiTokenSpec { constraints: Some(constraints), ..spec() });
        request.header("x-api-key", plaintext(2).expose()).send(&on(&fixture, trusted)).http
    };
    let forwarded = |value: &str| RequestBuilder::new().header("x-forwarded-for", value);
    let pipe = Kind::Pipe(Pipe::default());
    let table: [(&str, RequestBuilder, u16); 11] = [
        ("from the office", RequestBuilder::new().from(OFFICE), 200),
        ("mapped into IPv6", RequestBuilder::new().from("::ffff:192.0.2.7"), 200),
        ("from elsewhere", RequestBuilder::new().from("198.51.100.1"), 403),
        ("from elsewhere, with a forged header", forwarded(OFFICE).from("198.51.100.1"), 403),
        ("through a load balancer", forwarded(OFFICE).from("10.1.1.1"), 200),
        (
            "through a load balancer, with a forged header",
            forwarded("192.0.2.7, 198.51.100.1").from("10.1.1.1"),
            403,
        ),
        (
            "with the address that Envoy itself has appended",
            forwarded("192.0.2.7, 10.1.1.1").from("10.1.1.1"),
            200,
        ),
        ("with junk appended by a proxy", forwarded("192.0.2.7, junk").from("10.1.1.1"), 403),
        ("without a source", RequestBuilder::new(), 403),
        ("from something that is no address", RequestBuilder::new().from("the office"), 403),
        ("from a socket file", RequestBuilder::new().at(pipe), 403),
    ];
    for (what, request, expected) in table {
        assert_eq!(status(request.clone(), &proxies), expected, "{what}");
        // A gateway that is not trusted is the client itself, and this one's address is in a permitted network.
        assert_eq!(status(request, &[]), 200, "{what}, by an untrusted gateway");
    }
    let elsewhere = status(RequestBuilder::new().from(OFFICE), &["10.0.0.0/30"]);
    assert_eq!(elsewhere, 200, "the gateway's own address is in a network");
}

fn text_or_junk() -> impl Strategy<Value = String> {
    prop_oneof!["scope", "audience", "authorization", "x-api-key", "x-forwarded-for", "Bearer tw_a", ".*"]
}

proptest! {
    #[test]
    fn no_message_makes_it_panic_or_passes_without_a_token(
        headers in prop::collection::hash_map(text_or_junk(), text_or_junk(), 0..5),
        raw in prop::collection::vec((text_or_junk(), prop::collection::vec(any::<u8>(), 0..9)), 0..5),
        extensions in prop::collection::hash_map(text_or_junk(), text_or_junk(), 0..3),
        source in text_or_junk(),
    ) {
        let mut request = RequestBuilder::new().from(&source);
        request.0.context_extensions = extensions;
        request.http().headers = headers;
        for (name, value) in raw {
            request = request.raw(&name, &value);
        }
        let reply = request.send(&endpoint(&["0.0.0.0/0"]));
        prop_assert!(matches!(reply.http, 400 | 401), "{reply:?}");
    }

    #[test]
    fn arbitrary_bytes_fail_to_decode_or_are_denied(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(request) = CheckRequest::decode(&*bytes) {
            let reply = Reply::of(endpoint(&[]).respond(&request, GATEWAY.parse().expect("an address")));
            prop_assert!(matches!(reply.http, 400 | 401), "{reply:?}");
        }
    }
}

#[test]
fn raw_headers_without_bytes_are_read_by_their_text() {
    let mut request = RequestBuilder::new();
    let value = String::from_utf8(bearer(1)).expect("text");
    let header = HeaderValue { key: "authorization".to_owned(), value, ..Default::default() };
    request.http().header_map = Some(HeaderMap { headers: vec![header] });
    assert_eq!(request.send(&endpoint(&[])).http, 200);
}
