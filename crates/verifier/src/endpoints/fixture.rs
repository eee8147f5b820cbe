//! Endpoints without a port, for tests: requests are values, and each token has a number.

use std::sync::{Arc, LazyLock};

use futures::FutureExt;
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use prometheus_client::registry::Registry;
use tokio::runtime::Runtime;

use super::{Endpoints, TrustedProxies};
use crate::caller_auth::CallerAuthenticator;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::watermark::{Mark, Marks};
use tokenward_core::check::WireToken;
use tokenward_core::crd::{ApiToken, ApiTokenSpec};
use tokenward_core::lifecycle::authenticate;
use tokenward_core::token::format;
use tokenward_core::token::format::{KeyId, Prefix};
use tokenward_core::token::{Peppers, Plaintext};

/// Timers need a runtime; no test waits for one to fire.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));

pub(crate) const PEER: &str = "192.0.2.1";
/// Names and values, in the order in which they are sent.
pub(crate) type Headers<'a> = &'a [(&'a str, &'a [u8])];

/// An object as the API server sends it, with the MACs of the controller.
pub(crate) fn signed(mut token: ApiToken, peppers: &Peppers) -> WireToken {
    if let Some(status) = &mut token.status {
        authenticate(status, &token.metadata, peppers);
    }
    let text = serde_json::to_string(&token).expect("JSON");
    serde_json::from_str(&text).expect("an ApiToken")
}

/// Endpoints, and the state that they decide by.
pub(crate) struct Fixture {
    pub(crate) endpoints: Endpoints,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) peppers: Peppers,
    pub(crate) registry: Registry,
}

/// A response with its whole body.
#[derive(Debug, PartialEq)]
pub(crate) struct Received {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// The error code in the body.
    pub(crate) fn error(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).expect("JSON");
        assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
        body["error"].as_str().expect("an error").to_owned()
    }
}

/// Endpoints that know token 1.
pub(crate) fn known_endpoints() -> Endpoints {
    Fixture::new().endpoints
}

pub(crate) fn plaintext(number: u8) -> Plaintext {
    format::make(&Prefix::default(), KeyId::from_bytes([number; 16]), &[number; 32])
}

pub(crate) fn bearer(number: u8) -> Vec<u8> {
    format!("Bearer {}", plaintext(number).expose()).into_bytes()
}

/// The spec of token 1.
pub(crate) fn spec() -> ApiTokenSpec {
    ApiTokenSpec { scopes: vec!["orders:*".to_owned(), "audit:read".to_owned()], ..Default::default() }
}

impl Fixture {
    /// Endpoints without a list of tokens and without a pepper.
    pub(crate) fn unready(trusted_proxies: &[&str]) -> Self {
        let mark = || (None, Mark::default());
        let marks = Marks { tokens: vec![mark()], locks: vec![mark()], cluster_locks: Some(Mark::default()) };
        let snapshot = Arc::new(Snapshot::of(marks));
        let mut registry = Registry::with_prefix("tokenward");
        let metrics = Metrics::register(&mut registry);
        let trusted_proxies = trusted_proxies.iter().map(|net| net.parse().expect("a network")).collect();
        let trusted_proxies = TrustedProxies(trusted_proxies);
        let callers = Arc::new(CallerAuthenticator::new(snapshot.clone(), None));
        let peppers = Peppers::from_data(&Peppers::new_data(&[1; 32])).expect("peppers");
        Self {
            endpoints: Endpoints::new(snapshot.clone(), trusted_proxies, callers, &metrics),
            snapshot,
            peppers,
            registry,
        }
    }

    /// Endpoints that know token 1 and trust these proxies.
    pub(crate) fn behind(trusted_proxies: &[&str]) -> Self {
        let fixture = Self::unready(trusted_proxies);
        fixture.snapshot.peppers.store(Some(Arc::new(fixture.peppers.clone())));
        fixture.snapshot.set_tokens_listed(true);
        fixture.snapshot.set_locks_listed(true);
        fixture.with(1, spec());
        fixture
    }

    pub(crate) fn new() -> Self {
        Self::behind(&[])
    }

    /// Adds the token of this number to the index, as ApiToken `token-N` of the namespace `team`.
    pub(crate) fn with(&self, number: u8, spec: ApiTokenSpec) {
        let name = format!("token-{number}");
        let hash = self.peppers.hash("team", &name, &plaintext(number)).expect("a hash");
        let mut token = ApiToken::new(&name, spec);
        token.metadata.namespace = Some("team".to_owned());
        let status = serde_json::json!({
            "tokenId": format!("tok_{number}"),
            "versions": [{
                "version": 1, "keyId": KeyId::from_bytes([number; 16]).as_str(), "hash": hash.to_string(),
                "state": "Active", "scopes": token.spec.scopes, "issuedAt": "2026-01-01T00:00:00Z",
                "reason": "Created",
            }],
        });
        token.status = serde_json::from_value(status).expect("a status");
        self.snapshot.index.apply(&signed(token, &self.peppers), &self.peppers, 0);
    }

    pub(crate) fn get(&self, uri: &str, headers: Headers<'_>) -> Received {
        self.get_from(PEER, uri, headers)
    }

    pub(crate) fn get_from(&self, peer: &str, uri: &str, headers: Headers<'_>) -> Received {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_bytes(value).expect("a header value"));
        }
        self.send(request.body(Full::<Bytes>::default()).expect("a request"), peer)
    }

    pub(crate) fn send(&self, request: Request<Full<Bytes>>, peer: &str) -> Received {
        let _context = RUNTIME.enter();
        self.send_and_wait(request, peer).now_or_never().expect("no waiting")
    }

    pub(crate) async fn send_and_wait(&self, mut request: Request<Full<Bytes>>, peer: &str) -> Received {
        let peer = peer.parse().expect("an address");
        let response = self.endpoints.answer(&mut request, peer).await;
        let (head, body) = response.into_parts();
        let body = body.collect().now_or_never().expect("a body in memory").expect("a body").to_bytes();
        Received { status: head.status.as_u16(), headers: head.headers, body }
    }

    /// The metrics, as Prometheus scrapes them.
    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("metrics");
        text
    }
}
