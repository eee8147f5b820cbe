//! The endpoints: each decodes its protocol, asks for the one decision, and encodes the response.
//!
//! `/auth` and `/require` are public and say only yes or no. The others give reasons, so their callers authenticate
//! ([`crate::caller_auth`]). Sockets are the business of [`crate::server`].

mod authenticated;
mod client_address;
#[cfg(test)]
pub(crate) mod fixture;
pub mod gateway;
mod introspection;
mod json;
pub mod openapi;
mod request_error;
mod resource_version;
mod routes;
mod schema;
mod token_review;
mod verify;

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body, Bytes};

use self::authenticated::Authenticated;
pub use self::client_address::TrustedProxies;
use self::gateway::forward_auth::ForwardAuth;
use self::introspection::Introspection;
use self::routes::Route;
use self::token_review::TokenReviews;
use self::verify::{Verify, VerifyBatch};
use crate::caller_auth::CallerAuthenticator;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;

/// A response with a small body, all of it in memory.
pub type HttpResponse = Response<Full<Bytes>>;

/// Marks a successful response that anybody gets.
#[derive(Clone, Copy, Debug)]
struct Public;

/// Whether a response shows that a valid token was presented.
pub(crate) fn knows_the_client(response: &HttpResponse) -> bool {
    response.status().is_success() && response.extensions().get::<Public>().is_none()
}

/// `Retry-After` of a 503, in seconds: a replica that is not ready yet usually is within that time.
const RETRY_AFTER_SECONDS: &str = "1";

/// The HTTP endpoints of a verifier.
pub struct Endpoints {
    forward_auth: ForwardAuth,
    introspection: Authenticated<Introspection>,
    token_reviews: Authenticated<TokenReviews>,
    verify: Authenticated<Verify>,
    verify_batch: Authenticated<VerifyBatch>,
    openapi: Bytes,
    not_found: Bytes,
}

impl Endpoints {
    /// Endpoints that decide by this snapshot.
    pub fn new(
        snapshot: Arc<Snapshot>,
        trusted_proxies: TrustedProxies,
        callers: Arc<CallerAuthenticator>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            introspection: Authenticated::new(&snapshot, &trusted_proxies, &callers, metrics),
            token_reviews: Authenticated::new(&snapshot, &trusted_proxies, &callers, metrics),
            verify: Authenticated::new(&snapshot, &trusted_proxies, &callers, metrics),
            verify_batch: Authenticated::new(&snapshot, &trusted_proxies, &callers, metrics),
            forward_auth: ForwardAuth::new(snapshot, trusted_proxies, metrics),
            openapi: openapi::json().into(),
            not_found: routes::not_found().into(),
        }
    }

    /// Answers a request that came from `peer`. A body that the endpoint does not use is left unread.
    ///
    /// All but the hot path is boxed: otherwise the future of each connection would contain space for what few
    /// connections ever do.
    pub async fn answer<B: Body + Unpin>(&self, request: &mut Request<B>, peer: IpAddr) -> HttpResponse {
        match Route::parse(request.uri().path()) {
            Some(Route::ForwardAuth | Route::Require) => self.forward_auth.respond(request, peer),
            Some(Route::Verify) => Box::pin(self.verify.respond(request, peer)).await,
            Some(Route::VerifyBatch) => Box::pin(self.verify_batch.respond(request, peer)).await,
            Some(Route::Introspection) => Box::pin(self.introspection.respond(request, peer)).await,
            Some(Route::TokenReview) => Box::pin(self.token_reviews.respond(request, peer)).await,
            Some(Route::OpenApi) if Route::OpenApi.allows(request.method()) => {
                let mut response = response(StatusCode::OK, "application/json", self.openapi.clone());
                response.extensions_mut().insert(Public);
                response
            }
            Some(Route::OpenApi) | None => {
                response(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", self.not_found.clone())
            }
        }
    }
}

/// A response that must not be cached, because it is about one token at one moment. A 404 is no exception: a cache could
/// return it after its cause was corrected.
fn response(status: StatusCode, media_type: &'static str, body: Bytes) -> HttpResponse {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
