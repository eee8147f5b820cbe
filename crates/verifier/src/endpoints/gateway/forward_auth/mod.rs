//! `ANY /auth`: a gateway checks a request that it is about to forward.
//!
//! What nginx calls `auth_request`, Traefik ForwardAuth, Caddy `forward_auth` and Envoy an HTTP authorization
//! service. The gateway passes the client's headers on, the operator of the gateway puts into the query what the
//! route needs. Tokens are presented as RFC 6750 section 2.1 has it, or in `X-API-Key`; never in the query, which
//! ends up in logs. Refusals follow RFC 6750 section 3.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use http::header::{CACHE_CONTROL, HeaderMap, HeaderValue};
use http::{Request, Response};
use http_body_util::Full;

use super::{GatewayCheck, GatewayRequest};
use crate::endpoints::Answer;
use crate::endpoints::challenge::insert_identity;
use crate::endpoints::client_address::TrustedProxies;
use crate::endpoints::refusal::Refusal;
use crate::endpoints::requirements;
use crate::endpoints::requirements::Requirements;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use tokenward_core::check::Identity;

/// The handler of `/auth` and of every path below it.
pub(in crate::endpoints) struct ForwardAuth(GatewayCheck);

impl ForwardAuth {
    pub(in crate::endpoints) fn new(
        snapshot: Arc<Snapshot>,
        trusted_proxies: TrustedProxies,
        metrics: &Metrics,
    ) -> Self {
        Self(GatewayCheck::new("auth", snapshot, trusted_proxies, metrics))
    }

    pub(in crate::endpoints) fn answer<B>(&self, request: &Request<B>, peer: IpAddr) -> Answer {
        self.0.respond(Ok(HttpCheck { request, peer }))
    }
}

/// A check over HTTP, with the address that it came from.
struct HttpCheck<'a, B> {
    request: &'a Request<B>,
    peer: IpAddr,
}

impl<B> GatewayRequest for HttpCheck<'_, B> {
    type Response = Answer;

    fn requirements(&self) -> Result<Requirements<'_>, Refusal> {
        // Below /auth/ a gateway has appended the client's own path and query, which may have other parameters.
        let strict = self.request.uri().path() == "/auth";
        requirements::from_query(self.request.uri().query().unwrap_or_default(), strict)
    }

    fn headers(&self) -> Result<Cow<'_, HeaderMap>, Refusal> {
        Ok(Cow::Borrowed(self.request.headers()))
    }

    fn client(&self, headers: &HeaderMap, trusted: &TrustedProxies) -> Option<IpAddr> {
        trusted.client(headers, self.peer)
    }

    fn allowed(&self, identity: Identity<'_>) -> Answer {
        let mut response = Response::new(Full::default());
        let headers = response.headers_mut();
        insert_identity(headers, identity);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    fn denied(response: Answer) -> Answer {
        response
    }
}

#[cfg(test)]
mod tests;
