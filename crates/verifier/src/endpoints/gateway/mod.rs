//! The endpoints for gateways, which are public: may a request pass, and whose token does it present?
//!
//! The protocols differ in how a check is decoded and how its result is encoded. The rules are the same, and are here.

mod error;
pub mod ext_authz;
pub mod forward_auth;
mod presented_token;
mod requirements;
mod response;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;

use self::error::GatewayError;
use self::presented_token::presented_token;
use self::requirements::Requirements;
use self::response::{deny_response, error_response};
use crate::endpoints::{HttpResponse, TrustedProxies};
use crate::metrics::{EndpointMetrics, Metrics};
use crate::outcome::Outcome;
use crate::snapshot::{Snapshot, TokenCheck};
use tokenward_core::check::{Audience, Decision, Identity};

/// A request that a gateway is about to forward, as its protocol describes it.
trait GatewayRequest {
    type Response;

    fn requirements(&self) -> Result<Requirements<'_>, GatewayError>;

    /// The client's headers, or at least those that a check reads.
    fn headers(&self) -> Result<Cow<'_, HeaderMap>, GatewayError>;

    /// The client's address. `None`: a trusted proxy sent one that can't be parsed.
    fn client(&self, headers: &HeaderMap, trusted: &TrustedProxies) -> Option<IpAddr>;

    fn allowed(&self, identity: Identity<'_>) -> Self::Response;

    /// Encodes the response that the client gets instead of the service's.
    fn denied(response: HttpResponse) -> Self::Response;
}

/// Decides on the requests of one protocol, and counts the outcomes.
struct GatewayCheck {
    snapshot: Arc<Snapshot>,
    trusted_proxies: TrustedProxies,
    metrics: EndpointMetrics,
}

impl GatewayCheck {
    fn new(
        endpoint: &'static str,
        snapshot: Arc<Snapshot>,
        trusted_proxies: TrustedProxies,
        metrics: &Metrics,
    ) -> Self {
        Self { snapshot, trusted_proxies, metrics: metrics.endpoint(endpoint) }
    }

    /// Responds to a decoded request, or to one that could not be decoded.
    fn respond<R: GatewayRequest>(&self, request: Result<R, GatewayError>) -> R::Response {
        let began = Instant::now();
        let response = request.and_then(|request| self.decide(&request)).unwrap_or_else(|error| {
            self.metrics.count(error.outcome());
            R::denied(error_response(&error))
        });
        self.metrics.observe_latency(began.elapsed());
        response
    }

    fn decide<R: GatewayRequest>(&self, request: &R) -> Result<R::Response, GatewayError> {
        let requirements = request.requirements()?;
        let headers = request.headers()?;
        let scopes: Vec<&str> = requirements.scopes.iter().map(AsRef::as_ref).collect();
        let presented = presented_token(&headers)
            .map_err(|error| GatewayError::of_presented(error, requirements.challenge))?;
        let check = TokenCheck {
            presented: &presented,
            scopes: &scopes,
            audience: Audience::of(requirements.audience.as_deref()),
            client: request.client(&headers, &self.trusted_proxies),
        };
        let response = self.snapshot.decide(&check, |decision| {
            self.metrics.count(Outcome::from(&decision));
            match decision {
                Decision::Allow(identity) => request.allowed(identity),
                Decision::Deny(code) => R::denied(deny_response(code, &requirements)),
            }
        });
        Ok(response?)
    }
}
