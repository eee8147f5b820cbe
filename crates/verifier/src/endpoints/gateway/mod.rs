//! The endpoints for gateways: may a request pass, and whose is it?
//!
//! The protocols differ in how a check is decoded and how its result is encoded; the rules are the same, and stand
//! here once.

pub mod ext_authz;
pub mod forward_auth;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;

use crate::endpoints::authorization::presented;
use crate::endpoints::challenge::{denial, refused};
use crate::endpoints::refusal::Refusal;
use crate::endpoints::requirements::Requirements;
use crate::endpoints::{Answer, TrustedProxies};
use crate::metrics::{EndpointMetrics, Metrics, Outcome};
use crate::snapshot::{Snapshot, TokenCheck};
use tokenward_core::check::{Decision, Identity};

/// A request that a gateway is about to forward, as its protocol describes it.
trait GatewayRequest {
    /// The response in this protocol.
    type Response;

    fn requirements(&self) -> Result<Requirements<'_>, Refusal>;

    /// The client's headers; at least those that a check reads.
    fn headers(&self) -> Result<Cow<'_, HeaderMap>, Refusal>;

    /// The client's address. `None`: a trusted proxy sent one that can't be parsed.
    fn client(&self, headers: &HeaderMap, trusted: &TrustedProxies) -> Option<IpAddr>;

    fn allowed(&self, identity: Identity<'_>) -> Self::Response;

    /// Encodes the response that the client gets instead of the service's.
    fn denied(response: Answer) -> Self::Response;
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

    /// Takes a decoded request, or why it could not be decoded.
    fn respond<R: GatewayRequest>(&self, request: Result<R, Refusal>) -> R::Response {
        let began = Instant::now();
        let response = request.and_then(|request| self.decide(&request)).unwrap_or_else(|refusal| {
            self.metrics.count(refusal.outcome());
            R::denied(refused(&refusal))
        });
        self.metrics.took(began.elapsed());
        response
    }

    fn decide<R: GatewayRequest>(&self, request: &R) -> Result<R::Response, Refusal> {
        let requirements = request.requirements()?;
        let headers = request.headers()?;
        let scopes: Vec<&str> = requirements.scopes.iter().map(AsRef::as_ref).collect();
        let check = TokenCheck {
            presented: presented(&headers)?,
            scopes: &scopes,
            audience: requirements.audience.as_deref(),
            client: request.client(&headers, &self.trusted_proxies),
        };
        let response = self.snapshot.decide(&check, |decision| {
            self.metrics.count(Outcome::from(&decision));
            match decision {
                Decision::Allow(identity) => request.allowed(identity),
                Decision::Deny(code) => R::denied(denial(code, &requirements)),
            }
        });
        Ok(response?)
    }
}
