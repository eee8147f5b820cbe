//! The endpoints: each decodes its protocol, asks for the one decision, and encodes the response.
//!
//! `/auth` is public and says only yes or no. The others say why, so callers authenticate ([`crate::caller_auth`]). A
//! router costs more than a check does, so the path is matched by hand. Sockets are `server.rs`'s affair.

mod authenticated;
mod authorization;
mod challenge;
mod client_address;
#[cfg(test)]
pub(crate) mod fixture;
pub mod gateway;
mod introspection;
mod json;
pub mod openapi;
mod refusal;
mod requirements;
mod schema;
mod token_review;
mod verify;

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body, Bytes};

use self::authenticated::Authenticated;
pub use self::client_address::TrustedProxies;
use self::gateway::forward_auth::ForwardAuth;
use self::introspection::Introspection;
use self::token_review::TokenReviews;
use self::verify::{Verify, VerifyBatch};
use crate::caller_auth::CallerAuthenticator;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;

/// An answer, whose body is small and at hand.
pub type Answer = Response<Full<Bytes>>;

/// The HTTP endpoints of a verifier.
pub struct Endpoints {
    forward_auth: ForwardAuth,
    introspection: Authenticated<Introspection>,
    token_reviews: Authenticated<TokenReviews>,
    verify: Authenticated<Verify>,
    verify_batch: Authenticated<VerifyBatch>,
    trusted_proxies: TrustedProxies,
    openapi: Bytes,
}

impl Endpoints {
    /// Endpoints that answer from this snapshot.
    pub fn new(
        snapshot: Arc<Snapshot>,
        trusted_proxies: TrustedProxies,
        callers: Arc<CallerAuthenticator>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            introspection: Authenticated::new(snapshot.clone(), callers.clone(), metrics),
            token_reviews: Authenticated::new(snapshot.clone(), callers.clone(), metrics),
            verify: Authenticated::new(snapshot.clone(), callers.clone(), metrics),
            verify_batch: Authenticated::new(snapshot.clone(), callers, metrics),
            forward_auth: ForwardAuth::new(snapshot, trusted_proxies.clone(), metrics),
            trusted_proxies,
            openapi: openapi::json().into(),
        }
    }

    /// Answers a request that came from `peer`. A body that the endpoint does not use is left unread.
    pub async fn answer<B: Body + Unpin>(&self, request: &mut Request<B>, peer: IpAddr) -> Answer {
        match self.answer_at_once(request, peer) {
            Some(answer) => answer,
            // Boxed, or each connection would keep the room for what few of them ever do.
            None => Box::pin(self.answer_with_body(request, peer)).await,
        }
    }

    /// The answer, where the head of a request says all.
    fn answer_at_once<B>(&self, request: &Request<B>, peer: IpAddr) -> Option<Answer> {
        match request.uri().path() {
            "/auth" => Some(self.forward_auth.answer(request, peer)),
            path if path.starts_with("/auth/") => Some(self.forward_auth.answer(request, peer)),
            _ => None,
        }
    }

    async fn answer_with_body<B: Body + Unpin>(&self, request: &mut Request<B>, peer: IpAddr) -> Answer {
        let caller = self.trusted_proxies.client(request.headers(), peer);
        match request.uri().path() {
            "/oauth2/introspect" => self.introspection.answer(request, caller).await,
            "/tokenreview" => self.token_reviews.answer(request, caller).await,
            "/v1/verify" => self.verify.answer(request, caller).await,
            "/v1/verify:batch" => self.verify_batch.answer(request, caller).await,
            "/openapi.json" if matches!(*request.method(), Method::GET | Method::HEAD) => {
                body(StatusCode::OK, "application/json", self.openapi.clone())
            }
            _ => body(
                StatusCode::NOT_FOUND,
                "text/plain; charset=utf-8",
                Bytes::from_static(
                    b"not found; endpoints are /auth, /v1/verify, /v1/verify:batch, /oauth2/introspect and \
                      /tokenreview; GET /openapi.json describes them\n",
                ),
            ),
        }
    }
}

/// A response that must not be cached: it is about one token at one moment. A 404, too, would outlive its mistake.
fn body(status: StatusCode, media_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
mod tests;
