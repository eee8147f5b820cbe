//! The verifier's endpoints without a socket, with three known ApiTokens, and the expected decision for any text.
//!
//! A target turns bytes into a request, passes it to the real [`Endpoints::answer`], and compares the decision with
//! [`is_valid`]. libFuzzer reports panics.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokenward_core::check::WireToken;
use tokenward_core::check::caller::AUDIENCE;
pub use tokenward_core::check::caller::SCOPE;
use tokenward_core::crd::{ApiToken, ApiTokenSpec};
use tokenward_core::lifecycle::authenticate;
use tokenward_core::token::format;
use tokenward_core::token::format::{KeyId, Prefix};
use tokenward_core::token::{Peppers, Plaintext};
use tokenward_verifier::caller_auth::CallerAuthenticator;
use tokenward_verifier::endpoints::{Endpoints, TrustedProxies};
use tokenward_verifier::metrics::Metrics;
use tokenward_verifier::snapshot::Snapshot;
use tokio::runtime::{Builder, Runtime};

/// The scopes of [`TOKEN`].
pub const SCOPES: [&str; 3] = ["orders:*", "audit:read", LOGIN];
/// The scope of users of kube-apiserver.
pub const LOGIN: &str = "tokens:login";

/// The token of a service. A constant, because the dictionary contains it.
pub static TOKEN: LazyLock<Plaintext> = LazyLock::new(|| plaintext(1));
/// The token of a caller.
pub static CALLER: LazyLock<Plaintext> = LazyLock::new(|| plaintext(2));

static ENDPOINTS: LazyLock<Endpoints> = LazyLock::new(endpoints);
/// Time limits need a runtime, though no test waits for one.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().expect("a runtime"));

/// Whether a check of this text for these scopes and this audience must be allowed. Without an audience, the caller compares
/// them itself.
pub fn is_valid<'s>(
    presented: &[u8],
    scopes: impl IntoIterator<Item = &'s str>,
    audience: Option<&str>,
) -> bool {
    let mut scopes = scopes.into_iter();
    if presented == TOKEN.expose().as_bytes() {
        scopes.all(|scope| scope == "audit:read" || scope == LOGIN || scope.starts_with("orders:"))
    } else {
        presented == CALLER.expose().as_bytes()
            && scopes.all(|scope| scope == SCOPE)
            && audience.is_none_or(|audience| audience == AUDIENCE)
    }
}

/// Posts a body as [`CALLER`]. Returns the JSON of the response, or `None` if the request was rejected.
pub fn post(path: &str, media_type: &'static str, body: &[u8]) -> Option<Value> {
    let bearer = HeaderValue::try_from(format!("Bearer {}", CALLER.expose())).expect("a header");
    let request = Request::post(path)
        .header(AUTHORIZATION, bearer)
        .header(CONTENT_TYPE, media_type)
        .body(Full::from(Bytes::copy_from_slice(body)))
        .expect("a request");
    let (status, answer) = answer(request);
    match status {
        StatusCode::OK => Some(answer),
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => None,
        status => panic!("{status} {answer}"),
    }
}

/// Sends a request; returns the status and the JSON of the response, null if it has no body.
pub fn answer(mut request: Request<Full<Bytes>>) -> (StatusCode, Value) {
    let (head, body) = RUNTIME.block_on(async {
        let (head, body) = ENDPOINTS.answer(&mut request, IpAddr::V4(Ipv4Addr::LOCALHOST)).await.into_parts();
        (head, body.collect().await.expect("a body at hand").to_bytes())
    });
    let json = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") };
    (head.status, json)
}

fn plaintext(number: u8) -> Plaintext {
    format::make(&Prefix::default(), KeyId::from_bytes([number; 16]), &[number; 32])
}

fn endpoints() -> Endpoints {
    for token in [&TOKEN, &CALLER] {
        // A fuzzer can't guess tokens.
        assert!(
            include_str!("../dictionary").contains(token.expose()),
            "the dictionary contains other tokens"
        );
    }
    let snapshot = Arc::new(Snapshot::default());
    let peppers = Peppers::from_data(&Peppers::new_data(&[1; 32])).expect("peppers");
    let scopes = SCOPES.map(str::to_owned).to_vec();
    let token = api_token(&peppers, ("team", "orders"), scopes, &TOKEN);
    let mut caller = api_token(&peppers, ("team", "caller"), vec![SCOPE.to_owned()], &CALLER);
    caller.spec.audiences = Some(vec![AUDIENCE.to_owned()]);
    // A copy of the status of `orders`, with more scopes.
    let mut thief = api_token(&peppers, ("thief", "copy"), vec!["payments:*".to_owned()], &TOKEN);
    thief.status.clone_from(&token.status);
    for token in [&token, &caller, &thief] {
        // As the API server sends it.
        let wire: WireToken =
            serde_json::to_value(token).and_then(serde_json::from_value).expect("an ApiToken");
        snapshot.index.apply(&wire, &peppers, 0);
    }
    snapshot.peppers.store(Some(Arc::new(peppers)));
    snapshot.set_tokens_listed(true);
    snapshot.set_locks_listed(true);
    let metrics = Metrics::register(&mut Registry::default());
    let callers = Arc::new(CallerAuthenticator::new(snapshot.clone(), None));
    // Trusted, so that X-Forwarded-For is parsed.
    let proxies = TrustedProxies(vec!["127.0.0.0/8".parse().expect("a network")]);
    Endpoints::new(snapshot, proxies, callers, &metrics)
}

fn api_token(
    peppers: &Peppers,
    (namespace, name): (&str, &str),
    scopes: Vec<String>,
    secret: &Plaintext,
) -> ApiToken {
    let key_id = format::Token::parse(secret.expose()).expect("a token").key_id();
    let hash = peppers.hash(namespace, name, secret).expect("a hash").to_string();
    let status = json!({
        "tokenId": format!("tok_{name}"),
        "versions": [{
            "version": 1, "keyId": key_id.as_str(), "hash": hash, "state": "Active", "scopes": scopes,
            "issuedAt": "2026-01-01T00:00:00Z", "reason": "Created",
        }],
    });
    let mut token = ApiToken::new(name, ApiTokenSpec { scopes, ..Default::default() });
    token.metadata.namespace = Some(namespace.to_owned());
    let mut status = serde_json::from_value(status).expect("a status");
    authenticate(&mut status, &token.metadata, peppers);
    token.status = Some(status);
    token
}
