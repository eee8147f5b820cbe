//! `ANY /auth` and `ANY /require/…`: a gateway checks a request that it is about to forward.
//!
//! nginx calls this `auth_request`, Traefik ForwardAuth, Caddy `forward_auth`, and Envoy an HTTP authorization service.
//! The gateway passes the client's headers on; its operator writes the route's requirements into the URL (`url.rs`).

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use http::header::{CACHE_CONTROL, HeaderMap, HeaderValue};
use http::{Request, Response};
use http_body_util::Full;

use super::{GatewayCheck, GatewayRequest};
use crate::endpoints::gateway::error::GatewayError;
use crate::endpoints::gateway::requirements::Requirements;
use crate::endpoints::gateway::response::insert_identity;
use crate::endpoints::{HttpResponse, TrustedProxies};
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use tokenward_core::check::Identity;

mod url;

/// The handler of `/auth` and `/require`, and of every path below them.
pub(in crate::endpoints) struct ForwardAuth(GatewayCheck);

impl ForwardAuth {
    pub(in crate::endpoints) fn new(
        snapshot: Arc<Snapshot>,
        trusted_proxies: TrustedProxies,
        metrics: &Metrics,
    ) -> Self {
        Self(GatewayCheck::new("auth", snapshot, trusted_proxies, metrics))
    }

    pub(in crate::endpoints) fn respond<B>(&self, request: &Request<B>, peer: IpAddr) -> HttpResponse {
        self.0.respond(Ok(HttpCheck { request, peer }))
    }
}

/// A gateway's request, and the address of the gateway.
struct HttpCheck<'a, B> {
    request: &'a Request<B>,
    peer: IpAddr,
}

impl<B> GatewayRequest for HttpCheck<'_, B> {
    type Response = HttpResponse;

    fn requirements(&self) -> Result<Requirements<'_>, GatewayError> {
        url::requirements(self.request.uri())
    }

    fn headers(&self) -> Result<Cow<'_, HeaderMap>, GatewayError> {
        Ok(Cow::Borrowed(self.request.headers()))
    }

    fn client(&self, headers: &HeaderMap, trusted: &TrustedProxies) -> Option<IpAddr> {
        trusted.client(headers, self.peer)
    }

    fn allowed(&self, identity: Identity<'_>) -> HttpResponse {
        let mut response = Response::new(Full::default());
        let headers = response.headers_mut();
        insert_identity(headers, identity);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    fn denied(response: HttpResponse) -> HttpResponse {
        response
    }
}

#[cfg(test)]
mod tests;
