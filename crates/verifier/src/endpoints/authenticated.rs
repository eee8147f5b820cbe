//! What the endpoints that give reasons have in common: a POST, an authenticated caller, a bounded body.
//!
//! In that order: no body is read for a caller that is not authorized, unless its credentials are in the body.

use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use http_body_util::BodyExt;
use hyper::body::{Body, Buf};
use serde::Serialize;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::json::json;
use super::request_error::RequestError;
use super::routes::Route;
use super::{HttpResponse, TrustedProxies};
use crate::caller_auth::{CallerAuthenticator, presented_secret};
use crate::metrics::{EndpointMetrics, Metrics};
use crate::outcome::Outcome;
use crate::snapshot::Snapshot;

/// How long a body may take from its first byte to its last. The largest has a megabyte, which any network that callers
/// and verifiers share carries in less than a second.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Finds the caller's secret in a body.
pub(super) type SecretInBody = fn(&[u8]) -> Option<Zeroizing<String>>;

/// A protocol behind [`Authenticated`]: from a snapshot and a body to a response.
pub(super) trait Handler {
    /// The label `endpoint` of its metrics.
    const NAME: &'static str;
    const ROUTE: Route;
    /// The media type of its requests.
    const MEDIA_TYPE: &'static str;
    const MAX_BODY_BYTES: usize;

    /// The caller's secret in the body, if the protocol has a place for it there. It counts for callers without the header
    /// `Authorization`.
    const SECRET_IN_BODY: Option<SecretInBody> = None;

    /// The body of a request, for the OpenAPI document.
    type Request: ToSchema;
    /// The body of a successful response, for the OpenAPI document.
    type Response: ToSchema;
    /// The body of every other response, in the protocol's own form.
    type Error: ToSchema + Serialize;

    /// Responds to a request, and reports the outcome of each check in it. Called again after a while if something is not
    /// known yet that the request asks for ([`RequestError::Behind`]), of which nothing must have been reported.
    fn respond(
        snapshot: &Snapshot,
        body: &[u8],
        report: &mut dyn FnMut(Outcome),
    ) -> Result<HttpResponse, RequestError>;

    fn error_body(error: &RequestError) -> Self::Error;
}

/// An endpoint whose callers authenticate.
pub(super) struct Authenticated<H> {
    snapshot: Arc<Snapshot>,
    trusted_proxies: TrustedProxies,
    callers: Arc<CallerAuthenticator>,
    metrics: EndpointMetrics,
    handler: PhantomData<H>,
}

impl<H: Handler> Authenticated<H> {
    pub(super) fn new(
        snapshot: &Arc<Snapshot>,
        trusted_proxies: &TrustedProxies,
        callers: &Arc<CallerAuthenticator>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            snapshot: snapshot.clone(),
            trusted_proxies: trusted_proxies.clone(),
            callers: callers.clone(),
            metrics: metrics.endpoint(H::NAME),
            handler: PhantomData,
        }
    }

    pub(super) async fn respond<B: Body + Unpin>(
        &self,
        request: &mut Request<B>,
        peer: IpAddr,
    ) -> HttpResponse {
        let began = Instant::now();
        let response = match self.try_respond(request, peer).await {
            Ok(response) => response,
            Err(error) => {
                self.metrics.count(error.outcome());
                error_response::<H>(&error)
            }
        };
        self.metrics.observe_latency(began.elapsed());
        response
    }

    async fn try_respond<B: Body + Unpin>(
        &self,
        request: &mut Request<B>,
        peer: IpAddr,
    ) -> Result<HttpResponse, RequestError> {
        if !H::ROUTE.allows(request.method()) {
            return Err(RequestError::Method);
        }
        let address = self.trusted_proxies.client(request.headers(), peer);
        let authorize =
            async |secret: &str| self.callers.authorize(secret, address, H::ROUTE.non_resource_url()).await;
        let headers = request.headers();
        let is_readable = is_media_type(headers, H::MEDIA_TYPE);
        let in_body = H::SECRET_IN_BODY.filter(|_| is_readable && !headers.contains_key(AUTHORIZATION));
        if in_body.is_none() {
            authorize(&presented_secret(headers)?).await?;
        }
        if !is_readable {
            return Err(RequestError::MediaType(H::MEDIA_TYPE));
        }
        let body = tokio::time::timeout(BODY_TIMEOUT, read(request.body_mut(), H::MAX_BODY_BYTES))
            .await
            .unwrap_or(Err(RequestError::Incomplete))?;
        if let Some(secret_in) = in_body {
            // Without one, the error says that the header is missing.
            let secret = secret_in(&body).map_or_else(|| presented_secret(request.headers()), Ok)?;
            authorize(&secret).await?;
        }
        let respond = || H::respond(&self.snapshot, &body, &mut |outcome| self.metrics.count(outcome));
        match respond() {
            Err(RequestError::Behind(behind)) => {
                behind.wait().await;
                respond()
            }
            response => response,
        }
    }
}

fn error_response<H: Handler>(error: &RequestError) -> HttpResponse {
    let mut response = json(&H::error_body(error));
    *response.status_mut() = error.status();
    if let Some((name, value)) = error.header() {
        response.headers_mut().insert(name, value);
    }
    response
}

/// Whether a request declares its body to be of a media type. Parameters such as a charset are ignored.
fn is_media_type(headers: &HeaderMap, expected: &str) -> bool {
    let value = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let media_type = value.split(|byte| *byte == b';').next().unwrap_or_default();
    media_type.trim_ascii().eq_ignore_ascii_case(expected.as_bytes())
}

/// Reads a body into memory that is wiped afterwards, because it contains tokens.
async fn read<B: Body + Unpin>(body: &mut B, limit: usize) -> Result<Zeroizing<Vec<u8>>, RequestError> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit {
        return Err(RequestError::TooLarge(limit));
    }
    // Allocated once: a vector that grows leaves copies behind.
    let capacity = body.size_hint().exact().map_or(limit, |_| announced);
    let mut read = Zeroizing::new(Vec::with_capacity(capacity));
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Err(RequestError::Incomplete) };
        let Ok(mut data) = frame.into_data() else { continue };
        if data.remaining() > limit - read.len() {
            return Err(RequestError::TooLarge(limit));
        }
        while data.has_remaining() {
            let chunk = data.chunk();
            read.extend_from_slice(chunk);
            let length = chunk.len();
            data.advance(length);
        }
    }
    Ok(read)
}
